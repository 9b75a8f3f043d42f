"""Several rows in one sequence: fewer, fuller sequences. Called by `prepare.py`.

Best-fit decreasing (Johnson 1973; as for language models in Ding et al. 2024, arXiv:2404.10830):
the longest rows first, each into the fullest pack that it still fits. No row is cut. Our own, since
TRL's `pack_dataset` brings torch and trl into the driver, knows no labels whose first token must
not be learnt, and holds the rows in memory; here only their lengths are.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from train_loops.data.mask import IGNORED
from train_loops.data.row_file import Columns, open_row_file

if TYPE_CHECKING:
    import numpy
    import pyarrow

PACK_COLUMNS: Columns = {"input_ids": "ids", "labels": "ids", "position_ids": "ids"}
_BATCH_PACKS = 64


class Packing(NamedTuple):
    """What became of the rows."""

    packs: int
    fill_percent: float
    """Tokens of the rows per place in the packs."""


def pack(rows_path: Path, packs_path: Path, capacity: int, seed: int) -> Packing:
    """Write the token rows of one file as packs of at most `capacity` tokens to another.

    `position_ids` begin again at 0 with each row, by which transformers keeps the rows apart when
    there is no `attention_mask` and no cache; the label of each row's first token is ignored.
    """
    rows = _Rows(rows_path)
    bins = best_fit(rows.lengths, capacity, seed)
    with open_row_file(packs_path, PACK_COLUMNS) as file:
        for start in range(0, len(bins), _BATCH_PACKS):
            packs = [rows.joined(members) for members in bins[start : start + _BATCH_PACKS]]
            file.write(list(zip(*packs, strict=True)))
    return Packing(len(bins), 100 * sum(rows.lengths) / (len(bins) * capacity))


def best_fit(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Numbers of the rows in each pack; every row in one pack, no pack over `capacity`.

    `seed` decides among rows of equal length, and the order of the packs.
    """
    chance = random.Random(f"{seed}/packs")
    order = list(range(len(lengths)))
    chance.shuffle(order)
    order.sort(key=lambda row: -lengths[row])
    packs: list[list[int]] = []
    spaces = _Spaces()
    for row in order:
        number, space = spaces.take(lengths[row]) or (len(packs), capacity)
        if number == len(packs):
            packs.append([])
        packs[number].append(row)
        spaces.put(number, space - lengths[row])
    chance.shuffle(packs)
    return packs


class _Spaces:
    """The space left in each open pack, found by size."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # The different ones, ascending.
        self._packs: dict[int, list[int]] = {}

    def take(self, length: int) -> tuple[int, int] | None:
        """(pack, its space) of the smallest space that `length` fits; None when there is none."""
        at = bisect_left(self._sizes, length)
        if at == len(self._sizes):
            return None
        size = self._sizes[at]
        number = self._packs[size].pop()
        if not self._packs[size]:
            del self._sizes[at], self._packs[size]
        return number, size

    def put(self, number: int, size: int) -> None:
        """The pack has this much space now; a full one is closed."""
        if not size:
            return
        if size not in self._packs:
            self._packs[size] = []
            insort(self._sizes, size)
        self._packs[size].append(number)


class _Rows:
    """Rows of a token file, mapped into memory and taken in any order."""

    def __init__(self, path: Path) -> None:
        self._batches = list(_batches(path))
        self._starts = [0]
        self.lengths: list[int] = []
        for batch in self._batches:
            self.lengths += batch.column(0).value_lengths().to_pylist()
            self._starts.append(len(self.lengths))

    def joined(
        self, members: Sequence[int]
    ) -> tuple["numpy.ndarray", "numpy.ndarray", "numpy.ndarray"]:
        """(input_ids, labels, position_ids) of one pack."""
        import numpy

        ids, labels = zip(*(self._row(number) for number in members), strict=True)
        positions = [numpy.arange(len(row), dtype=numpy.int32) for row in ids]
        return numpy.concatenate(ids), numpy.concatenate(labels), numpy.concatenate(positions)

    def _row(self, number: int) -> tuple["numpy.ndarray", "numpy.ndarray"]:
        index = bisect_left(self._starts, number + 1) - 1
        batch, place = self._batches[index], number - self._starts[index]
        ids = batch.column(0)[place].values.to_numpy()
        labels = batch.column(1)[place].values.to_numpy().copy()
        labels[0] = IGNORED
        return ids, labels


def _batches(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow

    yield from pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
