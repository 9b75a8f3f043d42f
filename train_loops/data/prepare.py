"""From a job's dataset files to one folder of token rows that every engine reads.

`prepare` reads strangers' data, so it belongs in the attempt's own process, never in the service;
its arguments are plain, so that it can run in a child process too. Memory does not grow with the
files. Not for batches, order or packing: engines do that. `load` gives the rows back.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.dataset import DatasetSpec, Split
from configs.errors import DatasetInvalid
from train_loops.data.mask import Rendered, tokenize
from train_loops.data.report import DataReport, SourceReport
from train_loops.data.sources import Source, inspected, weighted
from train_loops.data.template import chat_template, load_tokenizer
from train_loops.data.token_file import TokenFile, open_token_file

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REPORT_FILE = "report.json"
TOKENS_FILE = "tokens.arrow"
_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1_000_000


def prepare(
    files: Sequence[tuple[DatasetSpec, Path]],
    tokenizer_folder: Path,
    *,
    max_sequence_length: int,
    seed: int,
    folder: Path,
    split: Split = "train",
    trust_remote_code: bool = False,
) -> DataReport:
    """Write the token rows of all `files` of `split` to `folder`: all of it, or nothing.

    A folder that is already there is reused as it is; its name is the caller's key.

    Raises:
        DatasetInvalid: a row cannot be used, or nothing is left to train on.
        ConfigInvalid: the tokenizer or its chat template does not allow it.
        ModelAccess: the tokenizer cannot be read.
    """
    if (folder / REPORT_FILE).exists():
        return _report(folder)
    tokenizer = load_tokenizer(tokenizer_folder, trust_remote_code=trust_remote_code)
    sources = [inspected(spec, path) for spec, path in files if spec.split == split]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "data"
        unfinished.mkdir()
        report = _write(sources, tokenizer, max_sequence_length, seed, unfinished)
        (unfinished / REPORT_FILE).write_text(report.model_dump_json(indent=2), "utf-8")
        return _published(unfinished, folder)


def inspect(files: Sequence[tuple[DatasetSpec, Path]]) -> list[SourceReport]:
    """Validate all `files`, each row of them, without a tokenizer: for runs that have no model.

    Raises:
        DatasetInvalid: a row cannot be used.
    """
    return [inspected(spec, path).report for spec, path in files]


def load(folder: Path) -> tuple["Dataset", DataReport]:
    """The rows that `prepare` wrote, columns `input_ids` and `labels`, mapped and not read in."""
    from datasets import Dataset

    return Dataset.from_file(str(folder / TOKENS_FILE)), _report(folder)


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


def _write(
    sources: Sequence[Source],
    tokenizer: "PreTrainedTokenizerBase",
    max_sequence_length: int,
    seed: int,
    folder: Path,
) -> DataReport:
    template = chat_template(tokenizer)
    with open_token_file(folder / TOKENS_FILE) as file:
        for batch in _batches(weighted(sources, template, seed)):
            examples = tokenize([row for row, _ in batch], tokenizer, max_sequence_length)
            file.append(
                (example, times) for example, (_, times) in zip(examples, batch, strict=True)
            )
    if not file.trainable_tokens:
        raise _nothing_to_train(file, max_sequence_length)
    return DataReport(
        rows=file.rows,
        truncated_rows=file.truncated_rows,
        dropped_rows=file.dropped_rows,
        tokens=file.tokens,
        trainable_tokens=file.trainable_tokens,
        longest_row_tokens=file.longest_row_tokens,
        chat_template=template.source,
        sources=[source.report for source in sources],
    )


def _batches(
    weighted: Iterable[tuple[Rendered, int]],
) -> Iterator[list[tuple[Rendered, int]]]:
    """Groups for the tokenizer, bounded in rows and in text."""
    batch: list[tuple[Rendered, int]] = []
    characters = 0
    for row in weighted:
        batch.append(row)
        characters += len(row[0].text)
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _nothing_to_train(file: TokenFile, max_sequence_length: int) -> DatasetInvalid:
    return DatasetInvalid(
        f"nothing to train on: none of the {file.dropped_rows} rows has a token of the assistant "
        f"within max_sequence_length {max_sequence_length} (the longest row has "
        f"{file.longest_row_tokens} tokens)",
        param="tuning_parameters.max_sequence_length",
        hint="Raise max_sequence_length, or shorten the text before the first answer.",
    )
