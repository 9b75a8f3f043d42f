"""The Arrow file of prepared rows, and the tally of what went in.

Written straight by pyarrow: it has no cache of its own, and `datasets.Dataset.from_file` maps it
into memory. Called by `prepare.py` and `pack.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow

ColumnType = Literal["ids", "text", "flag"]
Columns = Mapping[str, ColumnType]


class Prepared(NamedTuple):
    """One row to be written: a value for each column of the file, and its share of the counts."""

    values: tuple[Any, ...]
    tokens: int
    trainable_tokens: int
    truncated: bool = False


class Encoded(NamedTuple):
    """What became of one row of a user's file."""

    rows: list[Prepared]
    """None when nothing of it can be learnt; several when it was split."""
    full_tokens: int
    """Its tokens before any cut."""


class RowFile:
    """An open file of rows. The counts hold every copy of a row."""

    def __init__(self, writer: "pyarrow.RecordBatchStreamWriter", schema: "pyarrow.Schema") -> None:
        self._writer = writer
        self._schema = schema
        self.rows = 0
        self.truncated_rows = 0
        self.dropped_rows = 0
        self.split_rows = 0
        self.pieces = 0
        self.tokens = 0
        self.trainable_tokens = 0
        self.longest_row_tokens = 0
        self.flags: set[bool] = set()
        """The values that occur in a column of flags."""

    def append(self, encoded: Iterable[tuple[Encoded, int]]) -> None:
        """Write each row as often as its number says; what has nothing to learn is dropped."""
        kept = [row for item, times in encoded for row in self._counted(item, times)]
        if kept:
            self.write(list(zip(*(row.values for row in kept), strict=True)))

    def write(self, columns: Sequence[Sequence[Any]]) -> None:
        """Write rows that are counted elsewhere, given column by column."""
        import pyarrow

        for column, field in zip(columns, self._schema, strict=True):
            if field.type == pyarrow.bool_():
                self.flags.update(column)
        arrays = [
            pyarrow.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pyarrow.record_batch(arrays, schema=self._schema))

    def _counted(self, item: Encoded, times: int) -> list[Prepared]:
        """The rows to write, after entering them into the counts."""
        self.longest_row_tokens = max(self.longest_row_tokens, item.full_tokens)
        if not item.rows:
            self.dropped_rows += times
        if len(item.rows) > 1:
            self.split_rows += times
            self.pieces += times * len(item.rows)
        self.rows += times * len(item.rows)
        for row in item.rows:
            self.truncated_rows += times * row.truncated
            self.tokens += times * row.tokens
            self.trainable_tokens += times * row.trainable_tokens
        return item.rows * times


@contextmanager
def open_row_file(path: Path, columns: Columns) -> Iterator[RowFile]:
    """A new file at `path`, complete when the block ends."""
    import pyarrow

    types = {
        "ids": pyarrow.list_(pyarrow.int32()),
        "text": pyarrow.string(),
        "flag": pyarrow.bool_(),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with path.open("wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        yield RowFile(writer, schema)
