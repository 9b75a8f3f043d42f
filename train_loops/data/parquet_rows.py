"""Rows of a Parquet file. Called by `read.py`, in the attempt's own process: the parser is C++."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_loops.data.row import Row, invalid

_BATCH_ROWS = 256


def parquet_rows(path: Path, name: str) -> Iterator[Row]:
    """A row per record; `line` is the record's number from 1."""
    import pyarrow

    defects = (pyarrow.ArrowException, OSError, ValueError)
    number = 0
    values = _values(path)
    while True:
        try:
            row = next(values, None)
        except defects as error:
            found = (
                f"cannot be read ({str(error).splitlines()[0][:200] if str(error) else error!r})"
            )
            raise invalid(f"{name}, row {number + 1}", found, "a Parquet file") from None
        if row is None:
            return
        number += 1
        yield Row(number, row, f"{name}, row {number}")


def _values(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with path.open("rb") as source, pyarrow.parquet.ParquetFile(source) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()
