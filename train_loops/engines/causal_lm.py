"""A base model, read from files and written to them. Called by the `trl` and `fsdp2` engines.

Nothing here knows how a model is trained or shared among ranks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ModelAccess
from train_loops.engines.peft_methods import quantization, weights_dtype
from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]

LARGEST_FILE = "5GB"


def load_base(plan: Plan, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of the folder; the tokenizer has a padding token.

    On CPU, or with few bits on this worker's GPU. A model that scores, for objective `reward`.

    Raises:
        ModelAccess: no safetensors, an unknown architecture, a broken file.
        ConfigInvalid: the tokenizer cannot close a turn.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from train_loops.data.template import load_tokenizer

    reward = plan.spec.customization.objective == "reward"
    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    remote_code = plan.spec.base_model.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=remote_code)
    try:
        model = kind.from_pretrained(
            folder,
            dtype=weights_dtype(plan),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=remote_code,
            **({"num_labels": 1} if reward else {}),
            **quantization(plan),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelAccess(
            f"the base model could not be loaded: {str(error).splitlines()[0]}",
            param="base_model",
            hint="Weights must be safetensors of a causal language model that transformers knows.",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if reward:
        # The score is read at the last token that is none of these.
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


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
