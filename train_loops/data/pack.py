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
    spaces: list[int] = []  # The different spaces left in packs, ascending.
    with_space: dict[int, list[int]] = {}
    for row in order:
        length = lengths[row]
        at = bisect_left(spaces, length)
        if at == len(spaces):
            packs.append([])
            number, space = len(packs) - 1, capacity
        else:
            space = spaces[at]
            number = with_space[space].pop()
            if not with_space[space]:
                del spaces[at], with_space[space]
        packs[number].append(row)
        if left := space - length:
            if left not in with_space:
                with_space[left] = []
                insort(spaces, left)
            with_space[left].append(number)
    chance.shuffle(packs)
    return packs


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
