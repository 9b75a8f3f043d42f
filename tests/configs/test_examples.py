"""The requests and Serve files that ship with the project are what the project accepts."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from configs.capabilities import choose_engine
from configs.names import BACKENDS, Backend
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


@pytest.mark.parametrize(
    ("backend", "engine"), [("nemo", "automodel"), ("meta", "fsdp2"), ("hf-unsloth", "trl")]
)
def test_the_first_example_trains_for_real_on_every_api(backend: Backend, engine: str) -> None:
    assert choose_engine(example(FIRST), backend).engine == engine


def test_the_second_example_is_proxied_from_meta_to_nemo() -> None:
    choice = choose_engine(example(OTHERS[0]), "meta")
    assert (choice.engine, choice.proxied_to) == ("automodel", "nemo")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_third_example_is_simulated_on_every_api(backend: Backend) -> None:
    assert choose_engine(example(OTHERS[1]), backend).engine == "simulated"


def test_every_example_asks_for_no_gpu() -> None:
    assert {example(name).resources.gpus for name in [FIRST, *OTHERS]} == {0}


@pytest.mark.parametrize("name", sorted(path.name for path in SERVE.glob("*.yaml")))
def test_a_serve_file_is_valid_and_names_the_three_apis(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load((SERVE / name).read_text()))
    assert [app.name for app in config.applications] == list(BACKENDS)
    assert [app.route_prefix for app in config.applications] == [f"/{name}" for name in BACKENDS]
