"""A plan in the words of NeMo AutoModel's fine-tuning recipe, and what the recipe has no word for.

Pure: no torch, no file. `automodel.py` hands the result to the recipe, and a test holds the table.
Source: nemo-automodel 0.7.0, `TrainFinetuneRecipeForNextTokenPrediction`, `PeftConfig`,
`FSDP2Config`, `DDPConfig`, `AdamWConfig`.
"""

from pathlib import Path
from typing import Any

from configs.adapter import LoraSpec
from train_loops.plan import Plan, require_supported

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
HEADS = ("lm_head", "embed_out", "output_layer")
"""Names of the output layer in transformers' causal language models, none of them in a block."""


def recipe_config(plan: Plan, model_folder: Path, scratch: Path) -> dict[str, Any]:
    """The recipe's configuration for `plan`, as its YAML file would say it.

    There is no `lr_scheduler` and no data in it: the rates are transformers', and rows, order and
    micro-batches are the project's own.

    Raises:
        ConfigInvalid: the recipe cannot honour a setting.
    """
    require_supported(plan)
    config: dict[str, Any] = {
        "recipe": "TrainFinetuneRecipeForNextTokenPrediction",
        # The recipe adds the rank to it, and the sum must fit into 32 bits.
        "seed": plan.tuning.seed % (2**32 - plan.workers),
        "dist_env": {"backend": "nccl" if plan.device == "cuda" else "gloo"},
        "model": _model(plan, model_folder),
        "distributed": _distributed(plan),
        "step_scheduler": _steps(plan),
        "optimizer": _optimizer(plan),
        "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
        "clip_grad_norm": {"max_norm": plan.tuning.max_grad_norm},
        # A folder that was used before would be resumed from without a word.
        "checkpoint": {"enabled": False, "checkpoint_dir": str(scratch)},
        "dataset": {"tokenizer": None},
    }
    if plan.spec.customization.method != "full":
        config["peft"] = _peft(plan)
    if plan.spec.customization.method == "qlora":
        config["quantization"] = _quantization(plan)
    return config


def strategy(plan: Plan) -> str:
    """`fsdp2` or `ddp`; what several workers do when the request leaves it open.

    One worker always takes `fsdp2`, which then leaves the model as it is: the recipe's `ddp` would
    cast it to bf16. Weights of 4 bits cannot be cut, so several workers on `qlora` take `ddp`.
    """
    if plan.workers == 1:
        return "fsdp2"
    sharding = plan.spec.customization.sharding
    if sharding is not None and sharding.strategy is not None:
        return sharding.strategy
    return "ddp" if plan.spec.customization.method == "qlora" else "fsdp2"


def _model(plan: Plan, folder: Path) -> dict[str, Any]:
    """Transformers' own classes, so that layers and adapters keep the names that PEFT knows.

    With weights of 4 bits those come by themselves: unforced, each tensor is made small as it is
    read, instead of the whole model after.
    """
    return {
        "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
        "pretrained_model_name_or_path": str(folder),
        "torch_dtype": weights_dtype(plan),
        "attn_implementation": "sdpa",
        "force_hf": plan.spec.customization.method != "qlora",
        "use_liger_kernel": plan.device == "cuda",
        "trust_remote_code": plan.spec.base_model.trust_remote_code,
        "local_files_only": True,
    }


def weights_dtype(plan: Plan) -> str:
    """Frozen weights take the run's precision; weights that move stay in fp32 under autocast."""
    custom = plan.spec.customization
    return "float32" if custom.method == "full" else PRECISIONS[custom.precision]


def _distributed(plan: Plan) -> dict[str, Any]:
    custom = plan.spec.customization
    chosen: dict[str, Any] = {
        "strategy": strategy(plan),
        "activation_checkpointing": custom.gradient_checkpointing,
        "tp_size": custom.sharding.tensor_parallel if custom.sharding else 1,
    }
    if chosen["strategy"] == "fsdp2":
        # Left out, the recipe computes in bf16 whatever the precision.
        chosen["mp_policy"] = {
            "_target_": "torch.distributed.fsdp.MixedPrecisionPolicy",
            "param_dtype": PRECISIONS[custom.precision],
            "reduce_dtype": "float32",
            "cast_forward_inputs": False,
        }
    return chosen


def _steps(plan: Plan) -> dict[str, Any]:
    """No preemption handler: signals can be bound in the main thread only, and Ray runs in one of
    its own; stopping is the service's business."""
    return {
        "global_batch_size": plan.tuning.batch_size,
        "local_batch_size": plan.micro_batch_size,
        "num_epochs": plan.tuning.num_epochs,
        # The loop counts the steps. The recipe wants a number where it does not know the rows.
        "max_steps": plan.tuning.max_steps or 1,
        "preemption_signal": None,
    }


def _optimizer(plan: Plan) -> dict[str, Any]:
    return {
        "_target_": "torch.optim.AdamW",
        "lr": plan.tuning.learning_rate,
        "weight_decay": plan.tuning.weight_decay,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
    }


def _peft(plan: Plan) -> dict[str, Any]:
    lora = plan.spec.customization.lora or LoraSpec()
    return {
        "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
        **_where(lora),
        "dim": lora.rank,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        # PEFT's: the adapter's input is dropped, not its output.
        "dropout_position": "pre",
        "lora_A_init": "uniform",
        "lora_dtype": "float32",
        # In fp32 its kernels would multiply in TF32.
        "use_triton": plan.device == "cuda" and plan.spec.customization.precision == "bf16",
    }


def _where(lora: LoraSpec) -> dict[str, Any]:
    """Which layers get an adapter. The recipe matches whole paths, the request names their ends."""
    if lora.target_modules == "all-linear":
        return {"exclude_modules": [*HEADS]}
    names = [pattern for name in lora.target_modules for pattern in (name, f"*.{name}")]
    return {"target_modules": names}


def _quantization(plan: Plan) -> dict[str, Any]:
    """NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314)."""
    return {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": weights_dtype(plan),
        # The recipe casts frozen weights to the precision by their values, packed ones as well.
        "bnb_4bit_quant_storage": weights_dtype(plan),
    }
