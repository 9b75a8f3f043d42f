"""From a job's dataset files to one folder of prepared rows that every engine reads.

`prepare` reads strangers' data, so it belongs in the attempt's own process, never in the service;
its arguments are plain, so that it can run in a child process too. Memory does not grow with the
text of the files: by a byte a row for a share held back, and by the rows' lengths for packing.
Not for batches or order: `batches.py`. `load` and `load_validation` give the rows back.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from configs.adapter import Objective
from configs.dataset import DatasetSpec, Split
from configs.errors import ConfigInvalid
from train_loops.data.encoders import TOKEN_COLUMNS, Encoder, encoder
from train_loops.data.pack import Packing
from train_loops.data.report import DataReport, SourceReport
from train_loops.data.row_file import RowFile
from train_loops.data.sources import Source, inspected
from train_loops.data.template import chat_template, load_tokenizer
from train_loops.data.writing import ROW_FILES, Recipe, put_into_packs, write

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REPORT_FILE = "report.json"


def prepare(
    files: Sequence[tuple[DatasetSpec, Path]],
    tokenizer_folder: Path,
    *,
    max_sequence_length: int,
    seed: int,
    folder: Path,
    objective: Objective = "sft",
    packing: bool = False,
    validation_share: float = 0.0,
    trust_remote_code: bool = False,
) -> DataReport:
    """Write the rows of all `files`, for training and for validation, to `folder`: all or nothing.

    A folder that is already there is reused as it is; its name is the caller's key.

    Raises:
        DatasetInvalid: a row cannot be used, or nothing is left to train on or to evaluate on.
        ConfigInvalid: the tokenizer or its chat template does not allow it.
        ModelAccess: the tokenizer cannot be read.
    """
    if (folder / REPORT_FILE).exists():
        return _report(folder)
    recipe = Recipe(max_sequence_length, seed, objective, packing, validation_share)
    tokenizer = load_tokenizer(tokenizer_folder, trust_remote_code=trust_remote_code)
    encode = _encoder(recipe, tokenizer)
    template = None if objective == "cpt" else chat_template(tokenizer).source
    sources = inspected(files, objective)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "data"
        unfinished.mkdir()
        tally = write(sources, encode, recipe, unfinished)
        packs = put_into_packs(tally, recipe, unfinished) if packing else {}
        report = _reported(tally, packs, sources, template)
        (unfinished / REPORT_FILE).write_text(report.model_dump_json(indent=2), "utf-8")
        return _published(unfinished, folder)


def inspect(
    files: Sequence[tuple[DatasetSpec, Path]], objective: Objective = "sft"
) -> list[SourceReport]:
    """Validate all `files`, each row of them, without a tokenizer: for runs that have no model.

    Raises:
        DatasetInvalid: a row cannot be used.
    """
    return [source.report for source in inspected(files, objective)]


def load(folder: Path) -> tuple["Dataset", DataReport]:
    """The training rows that `prepare` wrote, mapped and not read in, and what became of the data.

    Columns: `input_ids`, `labels` (-100: not learnt) and, of packs, `position_ids`; for `dpo`,
    `orpo`, `reward` the texts `prompt`, `chosen`, `rejected`; for `kto` `prompt`, `completion` and
    `label` (bool); for `grpo` `prompt` and `reference` ('' without). Texts are rendered whole, the
    begin token included: tokenise them without special tokens.
    """
    from datasets import Dataset

    return Dataset.from_file(str(folder / ROW_FILES["train"])), _report(folder)


def load_validation(folder: Path) -> "Dataset | None":
    """The rows to evaluate on, with the columns of the training rows; None when there are none."""
    from datasets import Dataset

    path = folder / ROW_FILES["validation"]
    return Dataset.from_file(str(path)) if path.exists() else None


def _encoder(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Encoder:
    encode = encoder(recipe.objective, tokenizer, recipe.max_sequence_length)
    if recipe.packing and encode.columns is not TOKEN_COLUMNS:
        raise ConfigInvalid(
            f"rows of objective {recipe.objective!r} cannot be packed: each is compared as a whole",
            param="tuning_parameters.packing",
            hint="Leave packing out.",
        )
    return encode


def _report(folder: Path) -> DataReport:
    return DataReport.model_validate_json((folder / REPORT_FILE).read_text("utf-8"))


def _published(unfinished: Path, folder: Path) -> DataReport:
    """Give the finished folder its name. Where another process was faster, its folder stays."""
    try:
        os.replace(unfinished, folder)  # noqa: PTH105
    except OSError:
        if not (folder / REPORT_FILE).exists():
            raise
        shutil.rmtree(unfinished)
    return _report(folder)


def _reported(
    tally: dict[Split, RowFile],
    packs: dict[Split, Packing],
    sources: Sequence[Source],
    template: Literal["model", "default"] | None,
) -> DataReport:
    train, validation = tally["train"], tally.get("validation")
    train_packs, validation_packs = packs.get("train"), packs.get("validation")
    return DataReport(
        rows=train.rows,
        truncated_rows=train.truncated_rows,
        dropped_rows=train.dropped_rows,
        split_rows=train.split_rows,
        pieces=train.pieces,
        tokens=train.tokens,
        trainable_tokens=train.trainable_tokens,
        longest_row_tokens=train.longest_row_tokens,
        packs=train_packs.packs if train_packs else None,
        pack_fill_percent=train_packs.fill_percent if train_packs else None,
        validation_rows=validation.rows if validation else 0,
        validation_dropped_rows=validation.dropped_rows if validation else 0,
        validation_packs=validation_packs.packs if validation_packs else None,
        chat_template=template,
        sources=[source.report for source in sources],
    )
