"""The row shapes that a dataset may have, and which one a file has.

Called by `sources.py` with the rows of one file. The shape is found over the whole file and never
guessed: a row of another shape, or of two, is an error that names the lines. A shape belongs to
objectives; rows of another objective's shape are refused with the name of that objective.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from configs.adapter import Objective
from configs.errors import DatasetInvalid
from train_loops.data import chats, preferences, texts
from train_loops.data.chats import Conversation
from train_loops.data.preferences import Judged, Pair, Question
from train_loops.data.row import Row, names
from train_loops.data.shape import Shape
from train_loops.data.texts import Text

Content = Conversation | Text | Pair | Judged | Question
SHAPES: tuple[Shape, ...] = (*chats.SHAPES, *texts.SHAPES, *preferences.SHAPES)


class Sample(NamedTuple):
    """A row in canonical form. `place` is how messages name the row, `shape` what it was."""

    content: Content
    place: str
    shape: str


class _Asked(NamedTuple):
    """What the request says of the file."""

    objective: Objective
    mapping: Mapping[Any, str]

    @property
    def shapes(self) -> list[Shape]:
        return [shape for shape in SHAPES if self.objective in shape.objectives]

    @property
    def accepted(self) -> str:
        return "; ".join(_described(shape) for shape in self.shapes)


def _described(shape: Shape) -> str:
    """Name and columns of a shape, once each."""
    columns = " + ".join(shape.required)
    named = columns if shape.name == columns else f"{shape.name}: {columns}"
    return named + (f" (and {', '.join(shape.optional)})" if shape.optional else "")


def samples(
    rows: Iterable[Row], column_mapping: Mapping[Any, str], objective: Objective
) -> Iterator[Sample]:
    """Each row in the canonical form of its shape, for `objective`.

    Raises:
        DatasetInvalid: a row has no shape, two shapes, another shape than the rows before it,
            a shape of another objective, or content that its shape does not allow.
    """
    asked = _Asked(objective, column_mapping)
    first: tuple[str, Row] | None = None
    for row in rows:
        values = _mapped(row, column_mapping)
        shape = _shape(values, row, asked, first)
        name = shape.name_of(values)
        if first is None:
            first = (name, row)
        elif name != first[0]:
            raise _mixed(row, name, first)
        yield Sample(shape.convert(values, row.place), row.place, name)


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


def _shape(values: dict[str, Any], row: Row, asked: _Asked, first: tuple[str, Row] | None) -> Shape:
    """The one shape of the row. A mapped field says which shape is meant; null counts as absent."""
    present = {name for name, value in values.items() if value is not None}
    fitting = _fitting(asked.shapes, present, asked.mapping)
    if len(fitting) > 1:
        raise _ambiguous(row, fitting)
    if fitting:
        return fitting[0]
    others = _fitting(SHAPES, present, asked.mapping)
    if others and first is None:
        raise _other_objective(row, max(others, key=lambda shape: len(shape.required)), asked)
    raise _shapeless(row, asked, first)


def _fitting(shapes: Iterable[Shape], present: set[str], mapping: Mapping[str, str]) -> list[Shape]:
    return [
        shape
        for shape in shapes
        if present.issuperset(shape.required) and shape.fields.issuperset(mapping)
    ]


def _ambiguous(row: Row, fitting: list[Shape]) -> DatasetInvalid:
    both = " and ".join(repr(shape.name) for shape in fitting)
    return DatasetInvalid(
        f"{row.place} can be read as {both}; columns found: {names(row.values)}",
        param="datasets.column_mapping",
        hint="Set column_mapping to say which columns are meant, such as "
        '{"prompt": "prompt", "completion": "completion"}.',
    )


def _mixed(row: Row, name: str, first: tuple[str, Row]) -> DatasetInvalid:
    return DatasetInvalid(
        f"{row.place} has the shape {name!r}, but {first[1].place} has {first[0]!r}; "
        "every row of a file must have the same shape",
        param="datasets.column_mapping",
        hint="Split the file by shape, or set column_mapping to columns that every row has.",
    )


def _other_objective(row: Row, shape: Shape, asked: _Asked) -> DatasetInvalid:
    wanting = " or ".join(repr(objective) for objective in shape.objectives)
    return DatasetInvalid(
        f"{row.place} is a {shape.name!r} row; those belong to objective {wanting}. Objective "
        f"{asked.objective!r} accepts: {asked.accepted}",
        param="customization.objective",
        hint=f"Set objective to {wanting}, or store rows that {asked.objective!r} accepts, or map "
        "their columns by column_mapping.",
    )


def _shapeless(row: Row, asked: _Asked, first: tuple[str, Row] | None) -> DatasetInvalid:
    mapping = asked.mapping
    if mapping and not any(shape.fields.issuperset(mapping) for shape in asked.shapes):
        return DatasetInvalid(
            f"column_mapping names {names(mapping)}, which are fields of different shapes or of "
            f"another objective; objective {asked.objective!r} accepts: {asked.accepted}",
            param="datasets.column_mapping",
            hint="Map the fields of one shape only.",
        )
    before = f", while {first[1].place} has {first[0]!r}" if first else ""
    found = names(name for name, value in row.values.items() if value is not None)
    return DatasetInvalid(
        f"{row.place} has no accepted shape{before}; columns found: {found}; objective "
        f"{asked.objective!r} accepts: {asked.accepted}",
        param="datasets.column_mapping",
        hint='Rename the columns, or set column_mapping, such as {"prompt": "question", '
        '"completion": "answer"}.',
    )
