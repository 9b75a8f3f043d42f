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


class DataReport(DataCounts):
    """What a job shows of the rows of one epoch, weights applied; and more of it."""

    split_rows: int = 0
    """Texts (objective `cpt`) longer than `max_sequence_length`, which were split and not cut."""
    pieces: int = 0
    """Rows that they became."""
    longest_row_tokens: int
    """Tokens of the longest row before the cut."""
    pack_fill_percent: float | None = None
    """Tokens per place in the packs; null without packing."""
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
    return DataCounts.model_validate(report.model_dump(include=set(DataCounts.model_fields)))
