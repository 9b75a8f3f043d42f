"""Reads a user's dataset file row by row. Not for what the rows mean: that is `shapes.py`.

Called by `prepare.py` in the attempt's own process, never in the service. Memory follows the
largest row, not the file, and every defect is a `DatasetInvalid` that names file and line.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from configs.dataset import DatasetFormat
from configs.errors import DatasetInvalid
from train_loops.data.csv_rows import csv_rows
from train_loops.data.json_rows import json_rows, jsonl_rows
from train_loops.data.parquet_rows import parquet_rows
from train_loops.data.row import Row

_READERS: dict[DatasetFormat, Callable[[Path, str], Iterator[Row]]] = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": csv_rows,
    "parquet": parquet_rows,
}


def rows(path: Path, format: DatasetFormat, name: str) -> Iterator[Row]:
    """The rows of `path`; `name` is what messages call the file.

    Raises:
        DatasetInvalid: the file is not what `format` says, or has no rows.
    """
    empty = True
    for row in _READERS[format](path, name):
        empty = False
        yield row
    if empty:
        raise DatasetInvalid(
            f"{name} has no rows",
            param="datasets",
            hint=f"Store at least one {format} row there, or leave the dataset out.",
        )
