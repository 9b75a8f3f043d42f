"""Small files and what `prepare` makes of them, for the tests of the data. No test of its own."""

import json
from pathlib import Path
from typing import Any

from configs.dataset import DatasetSpec
from tests.train_loops.small_tokenizers import small_tokenizer
from train_loops.data.mask import IGNORED
from train_loops.data.prepare import load, load_validation, prepare
from train_loops.data.report import DataReport
from train_loops.data.template import load_tokenizer


def saved_tokenizer(folder: Path, template: str | None) -> Path:
    """A small tokenizer in `folder/tokenizer`."""
    small_tokenizer(template).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def dataset(folder: Path, name: str, rows: list[Any], **spec: Any) -> tuple[DatasetSpec, Path]:
    """A JSON Lines file of `rows`."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return DatasetSpec(source=f"file:///data/{name}", **spec), path


def exchanges(count: int, answer: str = "Answer {}.") -> list[dict[str, str]]:
    """Rows of one numbered question and answer each."""
    return [{"prompt": f"Question {n}?", "completion": answer.format(n)} for n in range(count)]


def prepared_rows(
    files: list[tuple[DatasetSpec, Path]], folder: Path, **how: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], DataReport]:
    """(training rows, validation rows, report) of `files`, by the tokenizer in `folder`."""
    settings = {"max_sequence_length": 512, "seed": 7, **how}
    prepare(files, folder / "tokenizer", folder=folder / "out", **settings)
    rows, report = load(folder / "out")
    validation = load_validation(folder / "out")
    return list(rows), list(validation or []), report


def learnt_texts(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """What the loss counts of each row, as text."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    return [
        tokenizer.decode([label for label in row["labels"] if label != IGNORED]) for row in rows
    ]
