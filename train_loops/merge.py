"""An adapter merged into its base: one 16-bit model, and a report that it answers the same.

Merged in fp32 in main memory, because a small update may be lost in a sum of 16-bit numbers, and
rounded once at the end. Called by `exports.py` on rank 0, after training.
Source: PEFT `merge_and_unload`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from configs.job import Record

if TYPE_CHECKING:
    import torch


class MergeReport(Record):
    """How a merged model compares with base and adapter, on the same rows of the training data."""

    merged_into: str
    """Which weights the adapter was added to."""
    dtype: str
    """Number format of the merged weights."""
    compared_rows: int
    """Rows that the logits were compared on."""
    largest_logit_difference: float = Field(allow_inf_nan=False)
    """Between base with adapter and merged model, both in fp32: what merging changed."""
    largest_logit_difference_rounded: float = Field(allow_inf_nan=False)
    """Between base with adapter in fp32 and the written 16-bit model, read back: what is lost by
    the number format too."""


def merge(
    base_folder: Path,
    adapter_folder: Path,
    target: Path,
    *,
    rows: Sequence[Sequence[int]],
    dtype: str,
    quantized: bool,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Write base + adapter to `target` in `dtype` (`bfloat16` or `float16`) with the tokenizer.

    `rows`: token ids to compare logits on. `quantized`: the adapter was trained on a quantized copy
    of the base, which is not what it is merged into.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    model = PeftModel.from_pretrained(_load(base_folder, trust_remote_code), str(adapter_folder))
    before = _logits(model, rows)
    merged = model.merge_and_unload()
    after = _logits(merged, rows)
    merged.to(getattr(torch, dtype)).save_pretrained(target)
    AutoTokenizer.from_pretrained(
        adapter_folder, local_files_only=True, trust_remote_code=trust_remote_code
    ).save_pretrained(target)
    del model, merged
    return MergeReport(
        merged_into=_into(quantized),
        dtype=dtype,
        compared_rows=len(rows),
        largest_logit_difference=_largest(before, after),
        largest_logit_difference_rounded=_largest(
            before, _logits(_load(target, trust_remote_code), rows)
        ),
    )


def cast(model_folder: Path, target: Path, dtype: str, *, trust_remote_code: bool = False) -> None:
    """Write the model of `model_folder` to `target` in `dtype`, with its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    _load(model_folder, trust_remote_code).to(getattr(torch, dtype)).save_pretrained(target)
    AutoTokenizer.from_pretrained(
        model_folder, local_files_only=True, trust_remote_code=trust_remote_code
    ).save_pretrained(target)


def _into(quantized: bool) -> str:
    if quantized:
        return "the base's own weights, not the quantized copy of them that it was trained on"
    return "the base's own weights"


def _load(folder: Path, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
    ).eval()


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> "list[torch.Tensor]":
    import torch

    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row])).logits for row in rows]


def _largest(left: "list[torch.Tensor]", right: "list[torch.Tensor]") -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))
