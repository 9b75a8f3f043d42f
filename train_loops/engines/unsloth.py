"""Unsloth: its kernels on one GPU, in an environment of their own; the loop is the `trl` engine's.

Unsloth rewrites transformers and TRL when it is imported, so it must come before them, in a process
of its own, and never at the import of this module. Source: Unsloth's documentation of
`FastLanguageModel`.
"""

import sys
from pathlib import Path
from typing import Any

from configs.adapter import LoraSpec
from configs.errors import ConfigInvalid, ModelAccess
from train_loops.engines.base import Inputs
from train_loops.engines.peft_methods import Adapted, trainable_kept
from train_loops.engines.trl_arguments import arguments
from train_loops.engines.trl_loop import TrlLoop
from train_loops.engines.trl_objectives import rows
from train_loops.engines.trl_trainers import trainer
from train_loops.plan import Plan, require_supported

PATCHED = ("transformers", "trl", "peft")
# What its kernels know of `all-linear`, in the architectures that it supports.
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class UnslothEngine:
    """Builds loops around Unsloth's models."""

    name = "unsloth"
    uses_torch = True

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> TrlLoop:
        """A loop on this worker's GPU.

        Raises:
            ConfigInvalid: no GPU, or transformers was imported before Unsloth could change it.
        """
        _needs_gpu()
        _comes_first()
        require_supported(plan)
        import unsloth  # noqa: F401  # Before all that imports transformers.
        from transformers import set_seed

        from train_loops.data.prepare import load

        args = arguments(plan, inputs.scratch / "trainer", world_size=world_size)
        set_seed(plan.tuning.seed)
        model, tokenizer = load_model(plan, inputs.model_folder)
        method = adapted(plan, model)
        dataset, _ = load(inputs.data_folder)
        dataset = rows(plan, dataset, tokenizer, inputs.scratch / "rows")
        with trainable_kept(method.model):
            built = trainer(plan, args, method, dataset, tokenizer, [])
        return TrlLoop(plan, built, method, inputs)


def _needs_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigInvalid(
            "engine 'unsloth' found no GPU: its kernels need one, and without one it loads 16 bits "
            "where 4 are asked for",
            param="resources.gpus",
            hint="Ask for a GPU, or use engine 'trl'.",
        )


def _comes_first() -> None:
    early = [name for name in PATCHED if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        raise ConfigInvalid(
            f"{', '.join(early)} came before unsloth in this worker, and would stay unchanged",
            param="customization.engine",
            hint="Start the worker in the environment 'unsloth', or use engine 'trl'.",
        )


def load_model(plan: Plan, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) with Unsloth's kernels.

    Raises:
        ModelAccess: the model cannot be read, or Unsloth does not know it.
        ConfigInvalid: `qlora`, and the weights are not in 4 bits after all.
    """
    import torch
    from unsloth import FastLanguageModel

    from train_loops.data.template import load_tokenizer

    custom = plan.spec.customization
    try:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=plan.tuning.max_sequence_length,
            dtype=torch.bfloat16 if custom.precision == "bf16" else torch.float16,
            load_in_4bit=custom.method == "qlora",
            full_finetuning=custom.method == "full",
            trust_remote_code=plan.spec.base_model.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelAccess(
            f"the base model could not be loaded by Unsloth: {str(error).splitlines()[0]}",
            param="base_model",
            hint="Use engine 'trl', which loads any causal language model.",
        ) from error
    if custom.method == "qlora":
        assert_four_bits(model)
    # Ours: Unsloth may repair the model's tokenizer, and the rows are made by the unrepaired one.
    tokenizer = load_tokenizer(folder, trust_remote_code=plan.spec.base_model.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def assert_four_bits(model: Any) -> None:
    """A model that was asked for in 4 bits holds weights in 4 bits.

    Raises:
        ConfigInvalid: it holds none.
    """
    if not any(type(weight).__name__ == "Params4bit" for weight in model.parameters()):
        raise ConfigInvalid(
            "method 'qlora': the base model came without a single 4-bit weight",
            param="customization.quantization",
            hint="Use method 'lora', or engine 'trl'.",
        )


def adapted(plan: Plan, model: Any) -> Adapted:
    """`model` with Unsloth's LoRA around it; as it is when all weights move."""
    custom = plan.spec.customization
    if custom.method == "full":
        return Adapted(model)
    from unsloth import FastLanguageModel

    lora = custom.lora or LoraSpec()
    try:
        model = FastLanguageModel.get_peft_model(
            model,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=LINEAR if lora.target_modules == "all-linear" else lora.target_modules,
            bias=lora.bias,
            use_rslora=custom.method == "rslora",
            use_gradient_checkpointing="unsloth" if custom.gradient_checkpointing else False,
            random_state=plan.tuning.seed,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigInvalid(str(error), param="customization.lora") from error
    return Adapted(model)


ENGINE = UnslothEngine()
