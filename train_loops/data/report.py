"""What became of the datasets: counts of rows and tokens. Written beside the prepared rows by
`prepare.py` and shown in the job's results."""

from typing import Literal

from pydantic import Field

from configs.dataset import Split
from configs.job import DataCounts, Record


class SourceReport(Record):
    """One file that rows came from."""

    source: str
    """Its URI."""
    split: Split = "train"
    """What its rows are for."""
    sha256: str
    """SHA-256 of its bytes, hexadecimal."""
    shape: str
    """What its rows are: `messages`, `prompt + completion`, …"""
    rows: int
    """Rows in the file."""
    weight: float
    """How often an epoch sees each of them."""
    notes: list[str] = Field(default_factory=list)
    """How values were read that could have been meant otherwise."""


class DataReport(Record):
    """The rows of one epoch, weights applied."""

    rows: int
    """Rows that an epoch trains on."""
    truncated_rows: int
    """Rows among them that were cut at `max_sequence_length`."""
    dropped_rows: int
    """Rows left out, since nothing of theirs can be learnt within `max_sequence_length`: no
    trainable token, no difference of two answers, or (`reward`) an answer that would be cut."""
    split_rows: int = 0
    """Texts (objective `cpt`) longer than `max_sequence_length`, which were split and not cut."""
    pieces: int = 0
    """Rows that they became."""
    tokens: int
    """Tokens of all rows, after the template and the cut; of a pair, those of both texts."""
    trainable_tokens: int
    """Tokens among them that the loss counts: what the assistant says, and what ends its turn; all
    but the first of a text; 0 for `grpo`, whose answers are yet to be written."""
    longest_row_tokens: int
    """Tokens of the longest row before the cut."""
    packs: int | None = None
    """Sequences that the rows were packed into; null without packing."""
    pack_fill_percent: float | None = None
    """Tokens per place in the packs; null without packing."""
    validation_rows: int = 0
    """Rows that the run is evaluated on."""
    validation_dropped_rows: int = 0
    """Rows among those for validation that were left out, as in training."""
    validation_packs: int | None = None
    """Sequences that they were packed into; null without packing."""
    chat_template: Literal["model", "default"] | None
    """`model`: the tokenizer's own template. `default`: it has none, so `DEFAULT_CHAT_TEMPLATE`.
    Null: texts, which are written without one."""
    sources: list[SourceReport]
    """The files."""


def counts(report: DataReport) -> DataCounts:
    """What a job shows of the report."""
    return DataCounts(
        rows=report.rows,
        truncated_rows=report.truncated_rows,
        dropped_rows=report.dropped_rows,
        tokens=report.tokens,
        trainable_tokens=report.trainable_tokens,
        packs=report.packs,
        validation_rows=report.validation_rows,
    )
