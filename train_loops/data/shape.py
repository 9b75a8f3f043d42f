"""What a row may look like: the columns that make it, and its conversion. Each kind of data lists
its own (`chats.py`, `texts.py`, `preferences.py`); which one a file has is decided in `shapes.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from configs.adapter import Objective

Values = dict[str, Any]


def _one_form(_: Values) -> str:
    return ""


class Shape(NamedTuple):
    """Columns and meaning of a row."""

    name: str
    objectives: tuple[Objective, ...]
    """The objectives that learn from such rows."""
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Values, str], Any]
    """From a row's values and its place in the file to its canonical form."""
    form: Callable[[Values], str] = _one_form
    """Where the same columns may hold texts or messages: which of them, as a suffix of the name."""

    @property
    def fields(self) -> frozenset[str]:
        """All fields that the shape reads."""
        return frozenset(self.required + self.optional)

    def name_of(self, values: Values) -> str:
        """The shape of one row; all rows of a file must have the same."""
        return self.name + self.form(values)
