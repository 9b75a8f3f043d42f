"""The requests and Serve files that ship with the project are what the project accepts."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from configs.capabilities import choose_engine
from configs.names import BACKENDS
from configs.request import TrainRequest

FOLDER = Path(str(files("configs"))) / "examples"
SERVE = Path(str(files("configs"))) / "serve"
FIRST, *OTHERS = sorted(path.name for path in FOLDER.glob("*.json"))


def example(name: str) -> TrainRequest:
    return TrainRequest.model_validate_json((FOLDER / name).read_text())


@pytest.mark.parametrize("name", [FIRST, *OTHERS])
def test_an_example_is_a_valid_request_without_a_fixed_id(name: str) -> None:
    assert example(name).job_id is None, "a second post of it would be the same job"


@pytest.mark.parametrize("name", [FIRST, *OTHERS])
def test_an_example_holds_no_secret_and_calls_nobody(name: str) -> None:
    assert example(name).secrets() == {}
    assert example(name).callbacks is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_example_is_accepted_by_every_api(backend: str) -> None:
    (known,) = (name for name in BACKENDS if name == backend)
    assert choose_engine(example(FIRST), known).engine == "simulated"


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_examples_train_for_real_on_hf_unsloth(name: str) -> None:
    assert choose_engine(example(name), "hf-unsloth").engine != "simulated"


def test_every_example_asks_for_no_gpu() -> None:
    assert {example(name).resources.gpus for name in [FIRST, *OTHERS]} == {0}


@pytest.mark.parametrize("name", sorted(path.name for path in SERVE.glob("*.yaml")))
def test_a_serve_file_is_valid_and_names_the_three_apis(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load((SERVE / name).read_text()))
    assert [app.name for app in config.applications] == list(BACKENDS)
    assert [app.route_prefix for app in config.applications] == [f"/{name}" for name in BACKENDS]
