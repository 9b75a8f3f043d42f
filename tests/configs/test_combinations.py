"""Settings that an engine has, but not together, are refused at submit with the field's name."""

from typing import Any

import pytest

from configs.capabilities import choose_engine
from configs.errors import Unsupported
from configs.request import TrainRequest
from tests.serve_app.api_kit import good_request

TWO = {"workers": 2}


def job(custom: dict[str, Any], **sections: Any) -> TrainRequest:
    custom = {"method": "lora", "precision": "fp32"} | custom
    return TrainRequest.model_validate(good_request(customization=custom, **sections))


@pytest.mark.parametrize(
    ("backend", "asked", "param"),
    [
        (
            "hf-unsloth",
            job({"sharding": {"strategy": "fsdp2"}}, resources=TWO),
            "customization.sharding.strategy",
        ),
        (
            "hf-unsloth",
            job({"method": "qlora", "sharding": {"strategy": "zero3"}}, resources=TWO),
            "customization.sharding.strategy",
        ),
        (
            "nemo",
            job({"method": "qlora", "sharding": {"strategy": "fsdp2"}}, resources=TWO),
            "customization.sharding.strategy",
        ),
        (
            "nemo",
            job({"sharding": {"strategy": "ddp", "tensor_parallel": 2}}, resources=TWO),
            "customization.sharding.tensor_parallel",
        ),
        (
            "nemo",
            job({"sharding": {"tensor_parallel": 2}, "lora": {"dropout": 0.1}}, resources=TWO),
            "customization.lora.dropout",
        ),
        ("nemo", job({"lora": {"bias": "all"}}), "customization.lora.bias"),
        (
            "hf-unsloth",
            job({"method": "prefix_tuning", "gradient_checkpointing": True}),
            "customization.gradient_checkpointing",
        ),
        (
            "hf-unsloth",
            job({"method": "p_tuning"}, tuning_parameters={"packing": True}),
            "tuning_parameters.packing",
        ),
        (
            "hf-unsloth",
            job({"method": "p_tuning"}, artifacts={"export": ["merged_16bit"]}),
            "artifacts.export",
        ),
        (
            "hf-unsloth",
            job({"objective": "reward"}, artifacts={"export": ["meta"]}),
            "artifacts.export",
        ),
    ],
)
def test_what_does_not_go_together(backend: Any, asked: TrainRequest, param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        choose_engine(asked, backend)
    assert caught.value.param == param
    assert caught.value.hint


@pytest.mark.parametrize(
    ("backend", "asked"),
    [
        ("nemo", job({"sharding": {"tensor_parallel": 2}}, resources=TWO)),
        ("nemo", job({"method": "qlora"}, resources=TWO)),
        ("hf-unsloth", job({"sharding": {"strategy": "zero3"}}, resources=TWO)),
        ("hf-unsloth", job({}, artifacts={"export": ["adapter", "merged_16bit", "meta"]})),
    ],
)
def test_what_does(backend: Any, asked: TrainRequest) -> None:
    assert choose_engine(asked, backend)
