"""Results of a run on NeMo AutoModel: an adapter as PEFT reads it, or a model as transformers does.

Every rank gathers, rank 0 writes. Safetensors only; names are those of the base model.
"""

import shutil
from pathlib import Path
from typing import Any

from train_loops.engines.automodel_model import everything, gathered, trained
from train_loops.engines.peft_methods import peft_config
from train_loops.plan import Plan


def export_adapter(model: Any, plan: Plan, base: Path, folder: Path, rank: int) -> None:
    """Write `adapter_config.json`, `adapter_model.safetensors` and the tokenizer."""
    weights = {
        f"base_model.model.{name}": tensor
        for name, tensor in gathered(trained(model), rank).items()
    }
    if rank:
        return
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _peft_config(plan, sorted(weights)).save_pretrained(folder)
    _save_tokenizer(plan, base, folder)


def export_model(model: Any, plan: Plan, base: Path, folder: Path, rank: int) -> None:
    """Write `config.json`, the weights in fp32, and the tokenizer.

    Tied weights are one parameter, written once.
    """
    weights = gathered(everything(model), rank)
    if rank:
        return
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(weights, folder)
    remote_code = plan.spec.base_model.trust_remote_code
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=remote_code)
    config.dtype = "float32"
    config.save_pretrained(folder)
    if (generation := base / "generation_config.json").exists():
        shutil.copyfile(generation, folder / generation.name)
    _save_tokenizer(plan, base, folder)


def _peft_config(plan: Plan, names: list[str]) -> Any:
    """PEFT's description of the adapter; layers by the last part of their name."""
    config = peft_config(plan)
    if config.target_modules == "all-linear":
        config.target_modules = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in names}
    config.base_model_name_or_path = plan.spec.base_model.model_name
    config.inference_mode = True
    return config


def _save_tokenizer(plan: Plan, base: Path, folder: Path) -> None:
    from train_loops.data.template import load_tokenizer

    remote_code = plan.spec.base_model.trust_remote_code
    load_tokenizer(base, trust_remote_code=remote_code).save_pretrained(folder)
