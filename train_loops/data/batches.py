"""Order and batches of a run's rows: a function of seed, epoch and step, the same for every engine.

So a resumed run needs its step number only, and engines, worker counts and packings can be compared
row by row. Rows lie in order; micro-batch `j` of an epoch goes to data-parallel rank
`j % world_size`. An epoch's last batch may be smaller; where its rows do not reach for all ranks,
the first rows of the epoch fill it up, because every rank must take part in each step.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler

from train_loops.data.mask import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, torch.Tensor]


class EpochOrder(Sampler):  # type: ignore[misc]
    """Row numbers of one epoch, shuffled by seed and epoch."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch (from 0) the next iteration is."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from torch.randperm(self._rows, generator=chance).tolist()

    def __len__(self) -> int:
        return self._rows


class StepBatches:
    """The micro-batches of one data-parallel rank, an optimizer step at a time."""

    def __init__(
        self,
        rows: "Dataset",
        *,
        micro_batch_size: int,
        accumulation_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows = rows
        self._micro = micro_batch_size
        self._accumulation = accumulation_steps
        self._order = EpochOrder(len(rows), seed)
        self._rank = rank
        self._world_size = world_size
        micro_batches = -(-len(rows) // (micro_batch_size * world_size))
        self.steps_per_epoch = -(-micro_batches // accumulation_steps)

    def after(self, step: int, total_steps: int) -> Iterator[tuple[float, list[Batch]]]:
        """For each step from `step + 1` to `total_steps`: epochs done after it, and its batches."""
        while step < total_steps:
            epoch, done = divmod(step, self.steps_per_epoch)
            for index, batches in enumerate(self._epoch(epoch)):
                if index < done:
                    continue
                if step == total_steps:
                    return
                step += 1
                yield step / self.steps_per_epoch, [self.collated(numbers) for numbers in batches]

    def _epoch(self, epoch: int) -> Iterator[list[list[int]]]:
        """Row numbers of this rank's micro-batches, by step."""
        self._order.set_epoch(epoch)
        order = list(self._order)
        if self._world_size > 1:
            missing = -len(order) % (self._micro * self._world_size)
            order += [order[index % len(order)] for index in range(missing)]
        stride = self._micro * self._world_size
        mine = [
            order[start : start + self._micro]
            for start in range(self._rank * self._micro, len(order), stride)
        ]
        for start in range(0, len(mine), self._accumulation):
            yield mine[start : start + self._accumulation]

    def collated(self, numbers: Sequence[int]) -> Batch:
        """The rows of these numbers as one batch."""
        return collate([self._rows[number] for number in numbers])


def collate(rows: Sequence[dict[str, Any]]) -> Batch:
    """Rows of equal columns as tensors (B, T), filled up on the right.

    A row of several packed ones has `position_ids`, which start again at 0 with each of them; then
    there is no `attention_mask`, and transformers keeps them apart by the positions, provided that
    the model is called with `use_cache=False`: beside a cache it does not look for packs.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    packed = "position_ids" in rows[0]
    batch = {
        "input_ids": _filled([row["input_ids"] for row in rows], longest, 0),
        "labels": _filled([row["labels"] for row in rows], longest, IGNORED),
    }
    if packed:
        # Each filler is a row of its own: it attends to itself, and can be told from real tokens.
        batch["position_ids"] = _filled([row["position_ids"] for row in rows], longest, 0)
    else:
        batch["attention_mask"] = _filled([[1] * len(row["input_ids"]) for row in rows], longest, 0)
    return batch


def tokens_in(batch: Batch) -> int:
    """Tokens of a batch, without those that fill it up."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    # A real row has two tokens at least, so the last real position is none that is 0.
    columns = torch.arange(1, batch["position_ids"].shape[1] + 1)
    real = (batch["position_ids"] != 0) * columns.to(batch["position_ids"].device)
    return int(real.amax(dim=1).sum())


def trainable_in(batch: Batch) -> int:
    """Tokens of a batch that the loss counts."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def validation_batches(
    rows: "Dataset", size: int, *, rank: int, world_size: int
) -> Iterator[Batch]:
    """One rank's batches of `rows`: every rank has the same number, because a forward pass of a
    sharded model is a collective. Where rows run out, the first one comes with nothing to learn."""
    for start in range(0, len(rows), size * world_size):
        first = start + rank * size
        numbers = range(first, min(first + size, len(rows)))
        batch = collate([rows[number] for number in numbers or range(1)])
        if not numbers:
            batch["labels"].fill_(IGNORED)
        yield batch


def _filled(values: Sequence[Sequence[int]], longest: int, filler: int) -> torch.Tensor:
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in values])
