"""Plan to the arguments of TRL's trainers, sharding included. Called by the `trl` engine.

Sources: transformers `TrainingArguments`, TRL's configs, DeepSpeed's configuration JSON (ZeRO,
Rajbhandari et al. 2020, arXiv:1910.02054), PyTorch's `fully_shard` through accelerate.
"""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from configs.adapter import GrpoSpec, PreferenceSpec, Sharding, ShardingSpec
from configs.errors import ConfigInvalid
from train_loops.engines.schedule import total_steps
from train_loops.plan import Plan

_DEEPSPEED_CONFIGS = Path(__file__).parents[2] / "configs/deepspeed"


def arguments(plan: Plan, output_dir: Path, *, world_size: int) -> Any:
    """TRL's arguments for the plan's objective. It also joins the process group.

    Make it before the model is loaded: under ZeRO-3 that is what spreads the weights at once.

    Raises:
        ConfigInvalid: the machine does not allow the sharding.
    """
    objective = plan.spec.customization.objective
    settings = _common(plan, output_dir) | _sharding(plan, world_size)
    made = _MAKERS[objective](plan, settings)
    if "deepspeed" in settings:
        _join_deepspeed(plan)
    return made


def limit_steps(args: Any, plan: Plan, rows: int) -> None:
    """Have the run end after its epochs or at `max_steps`, whichever comes first: to the Trainer
    the second alone counts."""
    if plan.tuning.max_steps is not None:
        args.max_steps = total_steps(plan, -(-rows // plan.tuning.batch_size))


def _common(plan: Plan, output_dir: Path) -> dict[str, Any]:
    tuning, custom = plan.tuning, plan.spec.customization
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "num_train_epochs": tuning.num_epochs,
        "learning_rate": tuning.learning_rate,
        "lr_scheduler_type": tuning.lr_scheduler,
        # transformers 5 takes a share of all steps as a float below 1 under this name.
        "warmup_steps": tuning.warmup_ratio,
        "weight_decay": tuning.weight_decay,
        "max_grad_norm": tuning.max_grad_norm,
        "seed": tuning.seed,
        "data_seed": tuning.seed,
        "use_cpu": plan.device == "cpu",
        "bf16": custom.precision == "bf16",
        "fp16": custom.precision == "fp16",
        "gradient_checkpointing": custom.gradient_checkpointing,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": plan.device == "cuda",
        "ddp_find_unused_parameters": False,
        # Rows come with the columns that the collators want, and no other.
        "remove_unused_columns": False,
    }


def _sft(_plan: Plan, settings: dict[str, Any]) -> Any:
    from trl import SFTConfig

    # Rows come tokenised, cut and packed.
    return SFTConfig(max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **settings)


def _dpo(plan: Plan, settings: dict[str, Any]) -> Any:
    from trl import DPOConfig

    return DPOConfig(max_length=None, beta=_beta(plan), **settings)


def _orpo(plan: Plan, settings: dict[str, Any]) -> Any:
    from trl.experimental.orpo import ORPOConfig

    return ORPOConfig(max_length=plan.tuning.max_sequence_length, beta=_beta(plan), **settings)


def _kto(plan: Plan, settings: dict[str, Any]) -> Any:
    from trl import KTOConfig

    return KTOConfig(max_length=None, beta=_beta(plan), **settings)


def _reward(_plan: Plan, settings: dict[str, Any]) -> Any:
    from trl import RewardConfig

    return RewardConfig(max_length=None, **settings)


def _grpo(plan: Plan, settings: dict[str, Any]) -> Any:
    """A row of the batch is a prompt; the micro-batch stays a number of sequences, so that memory
    does. All answers of a step are sampled at once and used once: on policy."""
    from trl import GRPOConfig

    grpo = plan.spec.customization.grpo
    assert isinstance(grpo, GrpoSpec)
    accumulation = plan.accumulation_steps * grpo.generations
    return GRPOConfig(
        num_generations=grpo.generations,
        max_completion_length=grpo.max_completion_tokens,
        temperature=grpo.temperature,
        beta=grpo.beta,
        **settings | {"gradient_accumulation_steps": accumulation},
    )


_MAKERS = {
    "sft": _sft,
    "cpt": _sft,
    "dpo": _dpo,
    "orpo": _orpo,
    "kto": _kto,
    "reward": _reward,
    "grpo": _grpo,
}


def _beta(plan: Plan) -> float:
    return (plan.spec.customization.preference or PreferenceSpec()).beta


def sharding(plan: Plan) -> Sharding:
    """The plan's strategy with its default."""
    spec = plan.spec.customization.sharding
    return (spec.strategy if spec else None) or "ddp"


def _sharding(plan: Plan, world_size: int) -> dict[str, Any]:
    strategy = sharding(plan)
    if strategy == "ddp":
        return {}
    if strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    _needs_compiler()
    if world_size == 1:
        _alone_as_a_group()
    return {"deepspeed": deepspeed_config(plan.spec.customization.sharding or ShardingSpec())}


def deepspeed_config(spec: ShardingSpec) -> dict[str, Any]:
    """DeepSpeed's configuration of a ZeRO stage; the Trainer fills in what says `auto`."""
    text = (_DEEPSPEED_CONFIGS / f"{spec.strategy}.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    if spec.offload:
        zero = config["zero_optimization"]
        zero["offload_optimizer"] = {"device": "cpu"}
        if spec.strategy == "zero3":
            zero["offload_param"] = {"device": "cpu"}
    return config


def _join_deepspeed(plan: Plan) -> None:
    """DeepSpeed takes over the group that exists; on CPU accelerate leaves that to later, too late
    for ZeRO-3, which spreads the weights while they are loaded."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo" if plan.device == "cpu" else "nccl")


def _needs_compiler() -> None:
    missing = [name for name in ("g++", "ninja") if shutil.which(name) is None]
    if missing:
        raise ConfigInvalid(
            f"DeepSpeed builds its kernels when it first starts, and {' and '.join(missing)} "
            f"cannot be found on this worker",
            param="customization.sharding.strategy",
            hint="Install g++ and ninja on the workers, or use sharding 'ddp'.",
        )


def _alone_as_a_group() -> None:
    """One worker has no launcher to name its group, and DeepSpeed wants one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (group | alone).items():
        os.environ.setdefault(name, value)
