"""One row of a user's file, and how an error names its place. Made by the readers, used by
`shapes.py`. Not for tokenised rows."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from configs.errors import DatasetInvalid

MAX_ROW_BYTES = 16 * 1024 * 1024


class Row(NamedTuple):
    """A row as the file has it; `line` counts from 1, `place` is how messages name it."""

    line: int
    values: dict[str, Any]
    place: str


def invalid(place: str, found: str, accepted: str) -> DatasetInvalid:
    """The error of one defect: where it is, what was found and what is accepted."""
    return DatasetInvalid(f"{place}: {found}; accepted: {accepted}", param="datasets")


def kind(value: object) -> str:
    """The type of `value` in the words of the file formats."""
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return type(value).__name__


def names(columns: Iterable[object]) -> str:
    """Column names for a message, shortened: a stranger chose them."""
    shown = [repr(str(column)[:64]) for column in islice(columns, 20)]
    return ", ".join(shown) or "none"


def text(value: object, where: str) -> str:
    """`value` if it is a text that can be learnt from; else the error says what it is."""
    if not isinstance(value, str):
        raise invalid(where, f"found {kind(value)}", "a text that is not empty")
    if not value.strip():
        raise invalid(where, "the text is empty", "a text that is not empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = f"half of a surrogate pair at character {error.start + 1}"
            raise invalid(where, found, "text that is valid Unicode") from None
    return value


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "null"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a string"),
    ((list, tuple), "an array"),
    (dict, "an object"),
)
