"""What became of the datasets: counts of rows and tokens. Written beside the prepared rows by
`prepare.py` and shown in the job's results."""

from typing import Literal

from configs.job import Record


class SourceReport(Record):
    """One file that rows came from."""

    source: str
    """Its URI."""
    sha256: str
    """SHA-256 of its bytes, hexadecimal."""
    shape: str
    """What its rows are: `messages`, `prompt + completion`, …"""
    rows: int
    """Rows in the file."""
    weight: float
    """How often an epoch sees each of them."""


class DataReport(Record):
    """The rows of one epoch, weights applied."""

    rows: int
    """Rows that an epoch trains on."""
    truncated_rows: int
    """Rows among them that were cut at `max_sequence_length`."""
    dropped_rows: int
    """Rows left out, since no trainable token of theirs lies within `max_sequence_length`."""
    tokens: int
    """Tokens of all rows, after the template and the cut."""
    trainable_tokens: int
    """Tokens among them that the loss counts: what the assistant says, and what ends its turn."""
    longest_row_tokens: int
    """Tokens of the longest row before the cut."""
    chat_template: Literal["model", "default"]
    """`model`: the tokenizer's own template. `default`: it has none, so `DEFAULT_CHAT_TEMPLATE`."""
    sources: list[SourceReport]
    """The files."""
