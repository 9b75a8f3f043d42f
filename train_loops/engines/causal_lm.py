"""A base model with its adapter, read from and written to files: what engines on PEFT share.

Nothing here knows how a model is trained or shared among ranks. Called by `fsdp2.py`.
Sources: PEFT `LoraConfig`; PiSSA (Meng et al. 2024, arXiv:2404.02948), whose adapter begins as the
principal part of a weight, which the base then lacks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.adapter import LoraSpec
from configs.errors import ConfigInvalid, ModelAccess
from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]

LARGEST_FILE = "5GB"


def load_base(plan: Plan, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of the folder, on CPU; the tokenizer has a padding token.

    Weights that move are fp32, whatever the precision of the computation; frozen ones take it.

    Raises:
        ModelAccess: no safetensors, an unknown architecture, a broken file.
        ConfigInvalid: the tokenizer cannot close a turn.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from train_loops.data.template import load_tokenizer

    custom, remote_code = plan.spec.customization, plan.spec.base_model.trust_remote_code
    frozen_in_bf16 = custom.method != "full" and custom.precision == "bf16"
    tokenizer = load_tokenizer(folder, trust_remote_code=remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if frozen_in_bf16 else torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=remote_code,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelAccess(
            f"the base model could not be loaded: {str(error).splitlines()[0]}",
            param="base_model",
            hint="Weights must be safetensors of a causal language model that transformers knows.",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def with_adapter(model: Any, plan: Plan) -> Any:
    """The model with a fresh adapter drawn from torch's random state; itself for method `full`.

    Raises:
        ConfigInvalid: the model has no layer of the names asked for.
    """
    if plan.spec.customization.method == "full":
        return model
    from peft import get_peft_model

    try:
        return get_peft_model(model, lora_config(plan))
    except ValueError as error:
        raise ConfigInvalid(
            str(error),
            param="customization.lora.target_modules",
            hint="Name layers of the model, or use 'all-linear'.",
        ) from error


def lora_config(plan: Plan) -> Any:
    """PEFT's description of a low-rank adapter beside unquantised weights."""
    from peft import LoraConfig

    custom = plan.spec.customization
    lora = custom.lora or LoraSpec()
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        bias=lora.bias,
        use_dora=custom.method == "dora",
        use_rslora=custom.method == "rslora",
        init_lora_weights="pissa" if custom.method == "pissa" else True,
        task_type="CAUSAL_LM",
    )


def adapter_weights(model: Any, weights: "Weights | None" = None) -> dict[str, "torch.Tensor"]:
    """The adapter's part of `weights` (the model's own when left out), under PEFT's file names."""
    from peft import get_peft_model_state_dict

    # Embeddings are saved with an adapter only where they are trained; to ask PEFT to find out
    # would have it ask the hub.
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, state_dict=weights, save_embedding_layers=False
    )
    return found


def write_adapter(
    folder: Path, model: Any, weights: "Weights", base_model_name: str, initial: "Weights | None"
) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, which fit the base as it is published.

    `weights` are all trained weights by their names in the model; `initial` those of the adapter as
    it was drawn, where drawing it changed the base (PiSSA), else None.
    """
    from safetensors.torch import save_file

    settings = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=_plain))
    adapter = adapter_weights(model, weights)
    if initial is not None:
        adapter = _beside_whole_base(adapter, initial, settings)
    settings |= {"base_model_name_or_path": base_model_name, "inference_mode": True}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.contiguous() for name, weight in adapter.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n")


def write_model(folder: Path, model: Any, weights: "Weights") -> None:
    """A folder that `from_pretrained` reads: configs and safetensors of at most 5 GB each."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if model.config.tie_word_embeddings:
        weights = {name: weight for name, weight in weights.items() if not _is_tied(model, name)}
    save_torch_state_dict(dict(weights), folder, max_shard_size=LARGEST_FILE)


def _is_tied(model: Any, name: str) -> bool:
    return name in (model._tied_weights_keys or ())


def _plain(value: Any) -> Any:
    """PEFT keeps names of layers in sets."""
    return sorted(value) if isinstance(value, set) else str(value)


def _beside_whole_base(
    adapter: "Weights", initial: "Weights", settings: dict[str, Any]
) -> dict[str, "torch.Tensor"]:
    """The same change of the model as an adapter of twice the rank beside the untouched base.

    W − B₀A₀ + BA = W + [B, −B₀][A; A₀]. Alpha doubles with the rank, so that the scale stays.
    """
    import torch

    settings |= {"r": 2 * settings["r"], "lora_alpha": 2 * settings["lora_alpha"]}
    settings["init_lora_weights"] = True
    joined = dict(adapter)
    for name, weight in adapter.items():
        before = initial.get(name)
        if before is not None and ".lora_A." in name:
            joined[name] = torch.cat([weight, before], dim=0)
        elif before is not None and ".lora_B." in name:
            joined[name] = torch.cat([weight, -before], dim=1)
    return joined
