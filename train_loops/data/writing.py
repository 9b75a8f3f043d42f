"""Writes the rows of inspected files as the recipe says. Called by `prepare.py`."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from configs.adapter import Objective
from configs.dataset import Split
from configs.errors import DatasetInvalid, RunError
from train_loops.data.encoders import Encoder
from train_loops.data.pack import Packing, pack
from train_loops.data.row_file import RowFile, open_row_file
from train_loops.data.sources import Draw, Source, drawn

ROW_FILES: dict[Split, str] = {"train": "tokens.arrow", "validation": "validation.arrow"}
_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How files become rows."""

    max_sequence_length: int
    """Tokens of a row, and of a pack, at most."""
    seed: int
    objective: Objective = "sft"
    packing: bool = False
    validation_share: float = 0.0
    """Share of the training rows that is held back."""


class _Drawn(NamedTuple):
    rendered: Any
    times: int
    split: Split


def write(
    sources: Sequence[Source], encode: Encoder, recipe: Recipe, folder: Path
) -> dict[Split, RowFile]:
    """Write all rows below `folder`; the closed files, for their counts.

    Raises:
        DatasetInvalid, ConfigInvalid: a row cannot be rendered, or no row is left, or, for
            `kto`, none of one label.
    """
    splits: list[Split] = ["train"]
    if recipe.validation_share or any(s.spec.split == "validation" for s in sources):
        splits.append("validation")
    draws = drawn(sources, recipe.objective, recipe.validation_share, recipe.seed)
    with ExitStack() as open_files:
        files: dict[Split, RowFile] = {
            split: open_files.enter_context(
                open_row_file(folder / ROW_FILES[split], encode.columns)
            )
            for split in splits
        }
        for batch in _batches(_rendered(draw, encode) for draw in draws):
            encoded = encode.encode([row.rendered for row in batch])
            for split, file in files.items():
                pairs = zip(encoded, batch, strict=True)
                file.append((item, row.times) for item, row in pairs if row.split == split)
    for split, file in files.items():
        if not file.rows:
            raise _nothing_left(file, split, recipe)
    if recipe.objective == "kto" and len(files["train"].flags) == 1:
        raise _one_label(files["train"])
    return files


def _rendered(draw: Draw, encode: Encoder) -> _Drawn:
    try:
        return _Drawn(encode.render(draw.sample.content), draw.times, draw.split)
    except RunError as error:
        raise type(error)(
            f"{draw.sample.place}: {error.message}", error.param, error.hint
        ) from error


def _batches(rows: Iterable[_Drawn]) -> Iterator[list[_Drawn]]:
    """Groups for the tokenizer, bounded in rows and in text."""
    batch: list[_Drawn] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(part) for part in row.rendered if isinstance(part, str))
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def put_into_packs(
    tally: dict[Split, RowFile], recipe: Recipe, folder: Path
) -> dict[Split, Packing]:
    """Put packs in the place of the rows."""
    packs: dict[Split, Packing] = {}
    for split in tally:
        path = folder / ROW_FILES[split]
        unpacked = path.rename(folder / f"{split}-rows.arrow")
        packs[split] = pack(unpacked, path, recipe.max_sequence_length, recipe.seed)
        unpacked.unlink()
    return packs


def _nothing_left(file: RowFile, split: Split, recipe: Recipe) -> DatasetInvalid:
    purpose = "train" if split == "train" else "evaluate"
    return DatasetInvalid(
        f"nothing to {purpose} on: none of the {file.dropped_rows} rows has anything to learn "
        f"within max_sequence_length {recipe.max_sequence_length} (the longest row has "
        f"{file.longest_row_tokens} tokens)",
        param="tuning_parameters.max_sequence_length",
        hint="Raise max_sequence_length, or shorten the text before the first answer.",
    )


def _one_label(file: RowFile) -> DatasetInvalid:
    left = str(next(iter(file.flags))).lower()
    return DatasetInvalid(
        f"all {file.rows} rows that are left to train on have the label {left}: the others were "
        "held back, weighted out or too long",
        param="datasets",
        hint="Add rows of the other label, raise max_sequence_length, or hold fewer rows back.",
    )
