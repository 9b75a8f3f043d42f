"""The row shapes that a dataset may have, and their one canonical form: a chat.

Called by `prepare.py` with the rows of one file. The shape is found over the whole file and never
guessed: a row of another shape, or of two, is an error that names the lines. Not for templates or
tokens (`template.py`, `mask.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from configs.errors import DatasetInvalid
from train_loops.data.chats import SHAPES, Message, Shape
from train_loops.data.row import Row, names


class Chat(NamedTuple):
    """A row in canonical form. `place` is how messages name the row, `shape` what it was."""

    messages: list[Message]
    place: str
    shape: str


def chats(rows: Iterable[Row], column_mapping: Mapping[Any, str]) -> Iterator[Chat]:
    """Each row as a chat, for objective `sft`.

    Raises:
        DatasetInvalid: a row has no shape, two shapes, another shape than the rows before it, or
            content that its shape does not allow.
    """
    first: tuple[Shape, Row] | None = None
    for row in rows:
        values = _mapped(row, column_mapping)
        shape = _shape(values, row, column_mapping, first)
        if first is None:
            first = (shape, row)
        elif shape is not first[0]:
            raise _mixed(row, shape, first)
        yield Chat(shape.convert(values, row.place), row.place, shape.name)


def _mapped(row: Row, mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row under our field names; a column that the mapping uses keeps its old name no more."""
    for field, column in mapping.items():
        if column not in row.values:
            raise DatasetInvalid(
                f"{row.place}: column_mapping takes {field!r} from column {column!r}, which the "
                f"row lacks; columns found: {names(row.values)}",
                param="datasets.column_mapping",
                hint="Name a column that every row has.",
            )
    used = set(mapping.values())
    kept = {name: value for name, value in row.values.items() if name not in used}
    return kept | {field: row.values[column] for field, column in mapping.items()}


def _shape(
    values: dict[str, Any], row: Row, mapping: Mapping[str, str], first: tuple[Shape, Row] | None
) -> Shape:
    """The one shape of the row. A mapped field says which shape is meant; null counts as absent."""
    present = {name for name, value in values.items() if value is not None}
    fitting = [
        shape
        for shape in SHAPES
        if present.issuperset(shape.required) and shape.fields.issuperset(mapping)
    ]
    if len(fitting) > 1:
        raise _ambiguous(row, fitting)
    if not fitting:
        raise _shapeless(row, present, mapping, first)
    return fitting[0]


def _ambiguous(row: Row, fitting: list[Shape]) -> DatasetInvalid:
    both = " and ".join(repr(shape.name) for shape in fitting)
    return DatasetInvalid(
        f"{row.place} can be read as {both}; columns found: {names(row.values)}",
        param="datasets.column_mapping",
        hint="Set column_mapping to say which columns are meant, such as "
        '{"prompt": "prompt", "completion": "completion"}.',
    )


def _mixed(row: Row, shape: Shape, first: tuple[Shape, Row]) -> DatasetInvalid:
    return DatasetInvalid(
        f"{row.place} has the shape {shape.name!r}, but {first[1].place} has {first[0].name!r}; "
        "every row of a file must have the same shape",
        param="datasets.column_mapping",
        hint="Split the file by shape, or set column_mapping to columns that every row has.",
    )


def _shapeless(
    row: Row, present: set[str], mapping: Mapping[str, str], first: tuple[Shape, Row] | None
) -> DatasetInvalid:
    if "text" in present and not mapping.keys() - {"text"}:
        return DatasetInvalid(
            f"{row.place} is a 'text' row; those belong to objective 'cpt', which no engine of "
            f"this build has. Objective 'sft' accepts: {_ACCEPTED}",
            param="customization.objective",
            hint="Store the rows as prompts and answers, or map their columns by column_mapping.",
        )
    if mapping and not any(shape.fields.issuperset(mapping) for shape in SHAPES):
        return DatasetInvalid(
            f"column_mapping names fields of different shapes: {names(mapping)}; "
            f"accepted: {_ACCEPTED}",
            param="datasets.column_mapping",
            hint="Map the fields of one shape only.",
        )
    before = f", while {first[1].place} has {first[0].name!r}" if first else ""
    found = names(name for name, value in row.values.items() if value is not None)
    return DatasetInvalid(
        f"{row.place} has no accepted shape{before}; columns found: {found}; accepted: {_ACCEPTED}",
        param="datasets.column_mapping",
        hint='Rename the columns, or set column_mapping, such as {"prompt": "question", '
        '"completion": "answer"}.',
    )


_ACCEPTED = "; ".join(
    shape.name + (f" (and {', '.join(shape.optional)})" if shape.optional else "")
    for shape in SHAPES
)
