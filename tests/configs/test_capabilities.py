"""The capability table decides, and its refusals name the field and who can."""

from typing import Any, get_args

import pytest

from configs.adapter import EngineName
from configs.capabilities import CANDIDATES, ENGINES, HOME, choose_engine, fallback
from configs.errors import Unsupported
from configs.names import BACKENDS
from configs.request import TrainRequest
from tests.serve_app.api_kit import BASE_URI, README_REQUEST, good_request

GRPO = {"objective": "grpo", "grpo": {"reward_functions": ["exact_reference"]}}


def request(**sections: Any) -> TrainRequest:
    return TrainRequest.model_validate(good_request(**sections))


def custom(**fields: Any) -> TrainRequest:
    return request(customization={"method": "lora", "precision": "fp32", **fields})


def refusal(found: TrainRequest, backend: Any) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        choose_engine(found, backend)
    return caught.value


def test_every_engine_has_a_row_and_every_api_candidates_of_its_own() -> None:
    assert set(ENGINES) == set(get_args(EngineName))
    assert set(CANDIDATES) == set(BACKENDS)
    for backend, engines in CANDIDATES.items():
        assert all(backend in ENGINES[engine].backends for engine in engines)
        assert any(HOME[engine] == backend for engine in engines)


def test_the_request_of_the_readme_runs_on_trl() -> None:
    choice = choose_engine(TrainRequest.model_validate(README_REQUEST), "hf-unsloth")
    assert choice.engine == "trl"
    assert "'unsloth' was passed over" in choice.reason


@pytest.mark.parametrize(
    ("backend", "engine"), [("nemo", "automodel"), ("meta", "fsdp2"), ("hf-unsloth", "trl")]
)
def test_a_plain_lora_job_runs_on_the_native_engine_of_each_api(backend: Any, engine: str) -> None:
    choice = choose_engine(custom(), backend)
    assert (choice.engine, choice.proxied_to) == (engine, None)


def test_a_gpu_job_runs_on_unsloth_where_its_environment_is_installed() -> None:
    job = request(resources={"gpus": 1})
    assert choose_engine(job, "hf-unsloth", environments={"unsloth"}).engine == "unsloth"
    assert choose_engine(job, "hf-unsloth").engine == "trl"


def test_unsloth_by_name_means_unsloth_or_a_refusal() -> None:
    assert refusal(custom(engine="unsloth"), "hf-unsloth").param == "resources.gpus"


def test_what_meta_lacks_is_proxied_to_nemo_and_the_reason_says_why() -> None:
    choice = choose_engine(custom(method="qlora"), "meta")
    assert (choice.engine, choice.proxied_to) == ("automodel", "nemo")
    assert "'fsdp2' was passed over: customization.method" in choice.reason


def test_a_named_engine_is_never_proxied_silently() -> None:
    assert refusal(custom(method="qlora", engine="fsdp2"), "meta").param == "customization.method"


def test_a_model_that_meta_does_not_know_is_proxied_once_it_is_read() -> None:
    choice = fallback(custom(), "meta", "fsdp2", "qwen3")
    assert choice is not None
    assert (choice.engine, choice.proxied_to) == ("automodel", "nemo")
    assert "'qwen3'" in choice.reason
    assert fallback(custom(), "meta", "fsdp2", "llama") is None


def test_a_model_that_the_named_engine_does_not_know_is_refused() -> None:
    with pytest.raises(Unsupported, match="qwen3"):
        fallback(custom(engine="fsdp2"), "meta", "fsdp2", "qwen3")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_simulated_engine_runs_on_every_api(backend: Any) -> None:
    job = custom(method="p_tuning", engine="simulated", **GRPO)
    assert choose_engine(job, backend).engine == "simulated"


def test_the_operator_overrules_the_request() -> None:
    assert choose_engine(custom(engine="trl"), "nemo", "simulated").engine == "simulated"


def test_an_engine_of_another_api_is_refused_with_its_address() -> None:
    assert "/hf-unsloth/train" in str(refusal(custom(engine="trl"), "meta").hint)


@pytest.mark.parametrize(
    ("sections", "backend", "param"),
    [
        ({"customization": {"method": "ia3"}}, "nemo", "customization.method"),
        (
            {"customization": {"method": "lora", "objective": "dpo"}},
            "nemo",
            "customization.objective",
        ),
        (
            {"customization": {"method": "p_tuning", "objective": "dpo"}},
            "hf-unsloth",
            "customization.method",
        ),
        (
            {"customization": {"method": "qlora", "quantization": "int8"}},
            "nemo",
            "customization.quantization",
        ),
        (
            {"customization": {"method": "lora", "sharding": {"strategy": "zero2"}}},
            "meta",
            "customization.sharding.strategy",
        ),
        (
            {
                "customization": {"method": "lora", "sharding": {"tensor_parallel": 2}},
                "resources": {"workers": 2},
            },
            "hf-unsloth",
            "customization.sharding.tensor_parallel",
        ),
        (
            {
                "customization": {"method": "lora", "objective": "dpo"},
                "tuning_parameters": {"packing": True},
            },
            "hf-unsloth",
            "tuning_parameters.packing",
        ),
        (
            {"customization": {"method": "lora", "precision": "fp16"}},
            "nemo",
            "customization.precision",
        ),
        ({"base_model": {"provider": "nemo", "model_name": "o/m"}}, "nemo", "base_model.provider"),
        ({"logging": [{"type": "jsonl"}, {"type": "wandb"}]}, "hf-unsloth", "logging[1].type"),
        (
            {
                "customization": {"method": "lora", "objective": "kto"},
                "datasets": [
                    {"source": f"{BASE_URI}/a"},
                    {"source": f"{BASE_URI}/b", "split": "validation"},
                ],
            },
            "hf-unsloth",
            "datasets",
        ),
    ],
)
def test_a_feature_that_the_engine_lacks(
    sections: dict[str, Any], backend: Any, param: str
) -> None:
    assert refusal(request(**sections), backend).param == param


def test_a_refusal_names_the_api_that_can() -> None:
    assert "/hf-unsloth/train" in str(refusal(custom(method="ia3"), "nemo").hint)
    assert "/nemo/train" in str(
        refusal(
            request(
                customization={"method": "lora", "sharding": {"tensor_parallel": 2}},
                resources={"workers": 2},
            ),
            "hf-unsloth",
        ).hint
    )


def test_every_refusal_is_listed() -> None:
    found = refusal(custom(method="ia3", objective="dpo", precision="fp16"), "nemo")
    assert [detail["param"] for detail in found.details] == [
        "customization.objective", "customization.precision"
    ]  # fmt: skip


def test_fp16_needs_a_gpu() -> None:
    half = {"method": "lora", "precision": "fp16"}
    assert choose_engine(request(customization=half, resources={"gpus": 1}), "hf-unsloth")
    assert refusal(request(customization=half), "hf-unsloth").param == "customization.precision"
