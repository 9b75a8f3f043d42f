"""Order and batches: every row once an epoch, the same for any number of ranks, after any stop."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train_loops.data.batches import EpochOrder, StepBatches, collate, tokens_in
from train_loops.data.mask import IGNORED


class Numbered(list[dict[str, Any]]):
    """Rows whose only learnt token is their number."""

    def __init__(self, count: int) -> None:
        super().__init__({"input_ids": [n, n], "labels": [IGNORED, n]} for n in range(count))


def steps(
    rows: int, micro: int, accumulation: int, *, after: int = 0, total: int, **how: Any
) -> list[list[list[int]]]:
    """Row numbers of each micro-batch of each step."""
    batches = StepBatches(
        Numbered(rows),  # type: ignore[arg-type]
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        seed=how.pop("seed", 3),
        **how,
    )
    return [[b["labels"][:, 1].tolist() for b in step] for _, step in batches.after(after, total)]


SIZES = {
    "rows": st.integers(1, 40),
    "micro": st.integers(1, 5),
    "accumulation": st.integers(1, 4),
    "seed": st.integers(0, 99),
}


def steps_per_epoch(rows: int, micro: int, accumulation: int, ranks: int = 1) -> int:
    return math.ceil(math.ceil(rows / (micro * ranks)) / accumulation)


@given(**SIZES)
def test_an_epoch_holds_each_row_once(rows: int, micro: int, accumulation: int, seed: int) -> None:
    total = steps_per_epoch(rows, micro, accumulation)
    epoch = steps(rows, micro, accumulation, total=total, seed=seed)
    assert sorted(n for step in epoch for batch in step for n in batch) == list(range(rows))


@given(**SIZES)
def test_steps_go_on_into_further_epochs(
    rows: int, micro: int, accumulation: int, seed: int
) -> None:
    total = 3 * steps_per_epoch(rows, micro, accumulation)
    seen = [
        n
        for step in steps(rows, micro, accumulation, total=total, seed=seed)
        for batch in step
        for n in batch
    ]
    assert sorted(seen) == sorted(3 * list(range(rows)))


@given(**SIZES, ranks=st.integers(2, 4))
def test_all_ranks_see_every_row_and_only_the_fewest_twice(
    rows: int, micro: int, accumulation: int, seed: int, ranks: int
) -> None:
    total = steps_per_epoch(rows, micro, accumulation, ranks)
    how = {"total": total, "seed": seed, "world_size": ranks}
    seen = [
        n
        for rank in range(ranks)
        for step in steps(rows, micro, accumulation, rank=rank, **how)
        for batch in step
        for n in batch
    ]
    assert set(seen) == set(range(rows))
    assert len(seen) == rows + -rows % (micro * ranks)


@given(groups=st.integers(1, 6), micro=st.integers(1, 3), accumulation=st.integers(1, 3))
def test_two_ranks_together_see_the_global_batch_of_one(
    groups: int, micro: int, accumulation: int
) -> None:
    rows = groups * 2 * micro
    total = 2 * steps_per_epoch(rows, micro, accumulation, 2)
    alone = steps(rows, micro, 2 * accumulation, total=total)
    shares = [
        steps(rows, micro, accumulation, total=total, rank=rank, world_size=2) for rank in (0, 1)
    ]
    for step in range(total):
        together = [n for share in shares for batch in share[step] for n in batch]
        assert sorted(together) == sorted(n for batch in alone[step] for n in batch)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("done", range(12))
def test_a_resumed_run_goes_on_with_the_same_batches(done: int, ranks: int) -> None:
    how = {"total": 12, "rank": ranks - 1, "world_size": ranks}
    assert steps(11, 2, 2, after=done, **how) == steps(11, 2, 2, **how)[done:]


def test_the_last_batch_of_an_epoch_is_what_is_left() -> None:
    sizes = [[len(batch) for batch in step] for step in steps(11, 2, 2, total=3)]
    assert sizes == [[2, 2], [2, 2], [2, 1]]


def test_epochs_are_told_as_shares_of_their_steps() -> None:
    batches = StepBatches(Numbered(6), micro_batch_size=2, accumulation_steps=2, seed=1)  # type: ignore[arg-type]
    assert [epoch for epoch, _ in batches.after(0, 3)] == [0.5, 1.0, 1.5]


def test_the_order_follows_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochOrder(30, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@settings(deadline=None)
@given(rows=st.integers(1, 40), micro=st.integers(1, 5), ranks=st.sampled_from([2, 3]))
def test_ranks_get_what_accelerate_would_give_them(rows: int, micro: int, ranks: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    total = steps_per_epoch(rows, micro, 1, ranks)
    for rank in range(ranks):
        whole = BatchSampler(EpochOrder(rows, 3), batch_size=micro, drop_last=False)
        theirs = list(BatchSamplerShard(whole, ranks, rank, even_batches=True))
        ours = steps(rows, micro, 1, total=total, rank=rank, world_size=ranks)
        assert [step[0] for step in ours] == theirs


def test_rows_are_filled_up_on_the_right() -> None:
    batch = collate(
        [
            {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
            {"input_ids": [8], "labels": [IGNORED]},
        ]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokens_in(batch) == 4


def test_a_batch_of_packs_has_positions_and_no_mask() -> None:
    pack = {
        "input_ids": [5, 6, 7, 8, 9],
        "labels": [IGNORED, 6, 7, IGNORED, 9],
        "position_ids": [0, 1, 2, 0, 1],
    }
    short = {"input_ids": [8, 9], "labels": [IGNORED, 9], "position_ids": [0, 1]}
    batch = collate([pack, short])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert "attention_mask" not in batch
    assert tokens_in(batch) == 7


def test_a_batch_is_of_whole_numbers() -> None:
    batch = collate([{"input_ids": [5], "labels": [IGNORED]}])
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
