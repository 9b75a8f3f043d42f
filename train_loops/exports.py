"""What a job asked for beside what its method trains: a merged 16-bit model, Meta's layout.

Called by `worker.py` on rank 0 with the folder of finished weights. What cannot be exported is
refused before training: by the capability table, and by `check` once the model is on disk.
"""

import json
import shutil
import tempfile
from pathlib import Path

from configs.adapter import LOW_BIT_METHODS
from configs.errors import ConfigInvalid
from configs.request import ExportFormat
from train_loops.engines.base import Inputs
from train_loops.merge import MergeReport, cast, merge
from train_loops.plan import Plan

MERGE_REPORT_FILE = "merge.json"
_COMPARED_ROWS = 4
_COMPARED_TOKENS = 128


def check(plan: Plan, model_folder: Path) -> None:
    """Refuse an export that the model does not allow.

    Raises:
        ConfigInvalid: Meta's layout of a model that is no Llama.
    """
    config = model_folder / "config.json"
    if "meta" not in _formats(plan) or not config.exists():
        return
    if (found := json.loads(config.read_text()).get("model_type")) != "llama":
        raise ConfigInvalid(
            f"artifacts.export: Meta's layout holds Llama models, and this one is {found!r}",
            param="artifacts.export",
            hint="Leave 'meta' out, or use 'merged_16bit'.",
        )


def write(plan: Plan, inputs: Inputs, weights: Path) -> None:
    """Write every asked-for format beside `weights`, the folder of the adapter or model."""
    formats = _formats(plan)
    if not formats:
        return
    folder = weights.parent
    with tempfile.TemporaryDirectory(dir=inputs.scratch) as scratch:
        merged = folder / "merged_16bit" if "merged_16bit" in formats else Path(scratch) / "merged"
        report = _merged(plan, inputs, weights, merged)
        if report is not None:
            (folder / MERGE_REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n")
        if "meta" in formats:
            from train_loops.meta_layout import from_hugging_face

            from_hugging_face(merged, folder / "meta")


def simulate(plan: Plan, weights: Path) -> None:
    """The same folders for a run without a model; each says that it is simulated."""
    for name in _formats(plan):
        shutil.copytree(weights, weights.parent / name)


def _merged(plan: Plan, inputs: Inputs, weights: Path, target: Path) -> MergeReport | None:
    custom, remote_code = plan.spec.customization, plan.spec.base_model.trust_remote_code
    dtype = "float16" if custom.precision == "fp16" else "bfloat16"
    if custom.method == "full":
        cast(weights, target, dtype, trust_remote_code=remote_code)
        return None
    return merge(
        inputs.model_folder,
        weights,
        target,
        rows=_rows(plan, inputs),
        dtype=dtype,
        quantized=custom.method in LOW_BIT_METHODS,
        trust_remote_code=remote_code,
    )


def _rows(plan: Plan, inputs: Inputs) -> list[list[int]]:
    """The first tokens of a few training rows, or of their prompts where rows are texts."""
    from train_loops.data.prepare import load
    from train_loops.data.template import load_tokenizer, token_ids

    rows, _ = load(inputs.data_folder)
    chosen = rows.select(range(min(_COMPARED_ROWS, len(rows))))
    if "input_ids" in rows.column_names:
        tokens = chosen["input_ids"]
    else:
        remote_code = plan.spec.base_model.trust_remote_code
        tokenizer = load_tokenizer(inputs.model_folder, trust_remote_code=remote_code)
        tokens = token_ids(tokenizer, chosen["prompt"])
    return [ids[:_COMPARED_TOKENS] for ids in tokens]


def _formats(plan: Plan) -> set[ExportFormat]:
    return set(plan.spec.artifacts.export or []) - {"adapter"}
