"""The Arrow file of token rows, columns `input_ids` and `labels`, and the tally of what went in.

Written straight by pyarrow: it has no cache of its own, and `datasets.Dataset.from_file` maps it
into memory. Called by `prepare.py`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from train_loops.data.mask import Example

if TYPE_CHECKING:
    import pyarrow


class TokenFile:
    """An open file of rows. The counts hold every copy of a row."""

    def __init__(self, writer: "pyarrow.RecordBatchStreamWriter", schema: "pyarrow.Schema") -> None:
        self._writer = writer
        self._schema = schema
        self.rows = 0
        self.truncated_rows = 0
        self.dropped_rows = 0
        self.tokens = 0
        self.trainable_tokens = 0
        self.longest_row_tokens = 0

    def append(self, examples: Iterable[tuple[Example, int]]) -> None:
        """Write each example as often as its number says; one with nothing to learn is dropped."""
        import pyarrow

        kept = [
            example for example, times in examples for _ in range(self._counted(example, times))
        ]
        columns = [[example.input_ids for example in kept], [example.labels for example in kept]]
        arrays = [
            pyarrow.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pyarrow.record_batch(arrays, schema=self._schema))

    def _counted(self, example: Example, times: int) -> int:
        """How often the row is written, after entering it into the counts."""
        self.longest_row_tokens = max(self.longest_row_tokens, example.full_tokens)
        if not (trainable := example.trainable_tokens):
            self.dropped_rows += times
            return 0
        self.rows += times
        self.truncated_rows += times * example.truncated
        self.tokens += times * len(example.input_ids)
        self.trainable_tokens += times * trainable
        return times


@contextmanager
def open_token_file(path: Path) -> Iterator[TokenFile]:
    """A new file at `path`, complete when the block ends."""
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("input_ids", ids), ("labels", ids)])
    with path.open("wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        yield TokenFile(writer, schema)
