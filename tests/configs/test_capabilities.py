"""The capability table decides, and its refusals name the field and who can."""

from typing import Any, get_args

import pytest

from configs.adapter import EngineName
from configs.capabilities import ENGINES, NATIVE, choose_engine
from configs.errors import NotImplementedYet, Unsupported
from configs.names import BACKENDS
from configs.request import TrainRequest
from tests.serve_app.api_kit import BASE_URI, README_REQUEST, good_request


def request(**sections: Any) -> TrainRequest:
    return TrainRequest.model_validate(good_request(**sections))


def test_every_engine_has_a_row_and_every_api_a_native_one() -> None:
    assert set(ENGINES) == set(get_args(EngineName))
    assert set(NATIVE) == set(BACKENDS)
    assert all(backend in ENGINES[engine].backends for backend, engine in NATIVE.items())


def test_the_request_of_the_readme_runs_on_trl() -> None:
    choice = choose_engine(TrainRequest.model_validate(README_REQUEST), "hf-unsloth")
    assert choice.engine == "trl"


@pytest.mark.parametrize("backend", ["nemo", "meta"])
def test_an_engine_that_is_not_built_yet(backend: Any) -> None:
    with pytest.raises(NotImplementedYet) as caught:
        choose_engine(request(), backend)
    assert caught.value.param == "customization.engine"
    assert "/hf-unsloth/train" in str(caught.value.hint)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_simulated_engine_runs_on_every_api(backend: Any) -> None:
    custom = {"method": "p_tuning", "objective": "grpo", "engine": "simulated"}
    assert choose_engine(request(customization=custom), backend).engine == "simulated"


def test_the_operator_overrules_the_request() -> None:
    custom = {"method": "lora", "engine": "trl"}
    assert choose_engine(request(customization=custom), "nemo", "simulated").engine == "simulated"


def test_an_engine_of_another_api_is_refused_with_its_address() -> None:
    with pytest.raises(Unsupported) as caught:
        choose_engine(request(customization={"method": "lora", "engine": "trl"}), "meta")
    assert "/hf-unsloth/train" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("sections", "param"),
    [
        ({"customization": {"method": "ia3"}}, "customization.method"),
        ({"customization": {"method": "lora", "objective": "dpo"}}, "customization.objective"),
        ({"customization": {"method": "lora", "precision": "fp16"}}, "customization.precision"),
        ({"base_model": {"provider": "nemo", "model_name": "o/m"}}, "base_model.provider"),
        ({"artifacts": {"export": ["merged_16bit"]}}, "artifacts.export"),
        ({"logging": [{"type": "jsonl"}, {"type": "wandb"}]}, "logging[1].type"),
        (
            {
                "datasets": [
                    {"source": f"{BASE_URI}/a"},
                    {"source": f"{BASE_URI}/b", "split": "validation"},
                ]
            },
            "datasets",
        ),
    ],
)
def test_a_feature_that_the_engine_lacks(sections: dict[str, Any], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        choose_engine(request(**sections), "hf-unsloth")
    assert caught.value.param == param


def test_every_refusal_is_listed() -> None:
    custom = {"method": "ia3", "objective": "dpo", "precision": "fp16"}
    with pytest.raises(Unsupported) as caught:
        choose_engine(request(customization=custom), "hf-unsloth")
    assert [detail["param"] for detail in caught.value.details] == [
        "customization.method", "customization.objective", "customization.precision"
    ]  # fmt: skip


def test_fp16_needs_a_gpu() -> None:
    custom = {"method": "lora", "precision": "fp16"}
    assert choose_engine(request(customization=custom, resources={"gpus": 1}), "hf-unsloth")
