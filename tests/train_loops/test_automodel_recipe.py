"""The plan in the recipe's words: the table of the mapping, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigInvalid
from tests.train_loops.plans import plan as resolved
from train_loops.engines.automodel_recipe import recipe_config
from train_loops.plan import Plan


def plan(method: str = "lora", workers: int = 1, **changes: Any) -> Plan:
    custom = {"method": method, **changes.pop("customization", {})}
    tuning = changes.pop("tuning", {})
    return resolved(
        engine="automodel",
        customization=custom,
        tuning_parameters=tuning,
        resources={"workers": workers},
        **changes,
    )


def config(chosen: Plan) -> dict[str, Any]:
    return recipe_config(chosen, Path("/models/tiny"), Path("/scratch"))


def at(found: Any, path: str) -> Any:
    for part in path.split("."):
        found = found[part]
    return found


TP = {"sharding": {"strategy": "fsdp2", "tensor_parallel": 2}}
TABLE: list[tuple[dict[str, Any], str, object]] = [
    ({}, "model.pretrained_model_name_or_path", "/models/tiny"),
    ({}, "model.torch_dtype", "float32"),
    ({}, "model.force_hf", True),
    ({}, "model.use_liger_kernel", False),
    ({"customization": {"precision": "bf16"}}, "model.torch_dtype", "bfloat16"),
    ({"method": "full", "customization": {"precision": "bf16"}}, "model.torch_dtype", "float32"),
    ({"customization": {"precision": "bf16"}}, "distributed.mp_policy.param_dtype", "bfloat16"),
    ({}, "distributed.mp_policy.param_dtype", "float32"),
    ({}, "distributed.strategy", "fsdp2"),
    ({"workers": 2}, "distributed.strategy", "fsdp2"),
    (
        {"workers": 2, "customization": {"sharding": {"strategy": "ddp"}}},
        "distributed.strategy",
        "ddp",
    ),
    ({"customization": {"sharding": {"strategy": "ddp"}}}, "distributed.strategy", "fsdp2"),
    ({"workers": 2, "method": "qlora"}, "distributed.strategy", "ddp"),
    ({"workers": 2, "customization": TP}, "distributed.tp_size", 2),
    (
        {"customization": {"gradient_checkpointing": True}},
        "distributed.activation_checkpointing",
        True,
    ),
    ({"tuning": {"seed": 7}}, "seed", 7),
    ({"tuning": {"seed": 2**32 - 1}, "workers": 2}, "seed", 1),
    ({"tuning": {"batch_size": 8}}, "step_scheduler.global_batch_size", 8),
    ({"tuning": {"micro_batch_size": 2}}, "step_scheduler.local_batch_size", 2),
    ({"tuning": {"max_steps": 5}}, "step_scheduler.max_steps", 5),
    ({"tuning": {"num_epochs": 3}}, "step_scheduler.num_epochs", 3),
    ({}, "step_scheduler.preemption_signal", None),
    ({"tuning": {"learning_rate": 0.01}}, "optimizer.lr", 0.01),
    ({"tuning": {"weight_decay": 0.1}}, "optimizer.weight_decay", 0.1),
    ({}, "optimizer.betas", [0.9, 0.999]),
    ({}, "optimizer.eps", 1e-8),
    ({"tuning": {"max_grad_norm": 0.5}}, "clip_grad_norm.max_norm", 0.5),
    ({}, "checkpoint.enabled", False),
    ({}, "checkpoint.checkpoint_dir", "/scratch"),
    ({"customization": {"lora": {"rank": 3}}}, "peft.dim", 3),
    ({"customization": {"lora": {"alpha": 5}}}, "peft.alpha", 5),
    ({"customization": {"lora": {"dropout": 0.25}}}, "peft.dropout", 0.25),
    ({}, "peft.dropout_position", "pre"),
    ({}, "peft.use_triton", False),
    ({}, "peft.exclude_modules", ["lm_head", "embed_out", "output_layer"]),
    (
        {"customization": {"lora": {"target_modules": ["q_proj"]}}},
        "peft.target_modules",
        ["q_proj", "*.q_proj"],
    ),
    ({"method": "qlora"}, "quantization.bnb_4bit_quant_type", "nf4"),
    ({"method": "qlora"}, "quantization.bnb_4bit_quant_storage", "float32"),
    (
        {"method": "qlora", "customization": {"precision": "bf16"}},
        "quantization.bnb_4bit_compute_dtype",
        "bfloat16",
    ),
]


@pytest.mark.parametrize(("how", "path", "value"), TABLE, ids=[row[1] for row in TABLE])
def test_each_setting_goes_where_the_recipe_looks(
    how: dict[str, Any], path: str, value: object
) -> None:
    assert at(config(plan(**how)), path) == value


def test_all_weights_move_without_an_adapter() -> None:
    assert {"peft", "quantization"}.isdisjoint(config(plan("full")))


def test_on_a_gpu_its_kernels_are_asked_for() -> None:
    chosen = resolved(
        engine="automodel",
        customization={"method": "lora", "precision": "bf16"},
        resources={"gpus": 1},
    )
    found = config(chosen)
    assert found["dist_env"] == {"backend": "nccl"}
    assert (found["peft"]["use_triton"], found["model"]["use_liger_kernel"]) == (True, True)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("customization.method", {"method": "dora"}),
    ("customization.objective", {"customization": {"objective": "dpo"}}),
    ("customization.precision", {"customization": {"precision": "fp16"}}),
    ("customization.quantization", {"method": "qlora", "customization": {"quantization": "int8"}}),
    ("customization.lora.bias", {"customization": {"lora": {"bias": "all"}}}),
    ("customization.sharding.strategy", {"customization": {"sharding": {"strategy": "zero2"}}}),
    (
        "customization.sharding.strategy",
        {
            "method": "qlora",
            "workers": 2,
            "customization": {"sharding": {"strategy": "fsdp2"}},
        },
    ),
    (
        "customization.sharding.tensor_parallel",
        {
            "workers": 2,
            "customization": {"sharding": {"strategy": "ddp", "tensor_parallel": 2}},
        },
    ),
    (
        "customization.lora.dropout",
        {"workers": 2, "customization": {"lora": {"dropout": 0.1}, **TP}},
    ),
]


@pytest.mark.parametrize(("param", "how"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_the_recipe_cannot_honour_is_refused_by_name(param: str, how: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match="cannot honour") as refusal:
        config(plan(**how))
    assert refusal.value.param == param
    assert refusal.value.hint
