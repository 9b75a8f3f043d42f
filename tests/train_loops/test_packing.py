"""Several rows in one sequence: all of them, close together, and strangers to each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train_loops.conftest import chats
from tests.train_loops.prepared_rows import dataset, exchanges, prepared_rows, saved_tokenizer
from tests.train_loops.small_tokenizers import CHATML, PLAIN
from train_loops.data.batches import collate
from train_loops.data.mask import IGNORED
from train_loops.data.pack import best_fit
from train_loops.data.prepare import load, prepare

CAPACITY = 128
LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths=LENGTHS, capacity=st.integers(50, 200), seed=st.integers(0, 9))
def test_each_row_is_in_one_pack_that_it_fits(lengths: list[int], capacity: int, seed: int) -> None:
    packs = best_fit(lengths, capacity, seed)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in pack) <= capacity for pack in packs)


@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_no_two_packs_fit_into_one(lengths: list[int], seed: int) -> None:
    used = sorted(sum(lengths[row] for row in pack) for pack in best_fit(lengths, 60, seed))
    assert len(used) == 1 or used[0] + used[1] > 60


def test_the_fullest_pack_is_chosen() -> None:
    packs = best_fit([6, 5, 4, 3], 10, seed=1)
    assert sorted(sorted(pack) for pack in packs) == [[0, 2], [1, 3]]


def test_packs_follow_the_seed() -> None:
    lengths = [n % 7 + 1 for n in range(200)]
    assert best_fit(lengths, 32, 1) == best_fit(lengths, 32, 1)
    assert best_fit(lengths, 32, 1) != best_fit(lengths, 32, 2)


def test_packs_are_not_in_order_of_length() -> None:
    lengths = list(range(1, 100))
    longest = [max(lengths[row] for row in pack) for pack in best_fit(lengths, 128, 1)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def rows_of(pack: dict[str, Any]) -> list[dict[str, list[int]]]:
    """The rows in a pack, by where positions begin again."""
    starts = [n for n, position in enumerate(pack["position_ids"]) if position == 0]
    ends = [*starts[1:], len(pack["position_ids"])]
    return [
        {name: values[start:end] for name, values in pack.items()}
        for start, end in zip(starts, ends, strict=True)
    ]


@pytest.fixture
def both(tmp_path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """(rows, packs, report of the packs) of the same file."""
    saved_tokenizer(tmp_path, CHATML)
    files = [dataset(tmp_path, "a.jsonl", exchanges(40), weight=1.5)]
    rows, _, _ = prepared_rows(files, tmp_path, max_sequence_length=CAPACITY)
    (tmp_path / "out").rename(tmp_path / "apart")
    packs, _, report = prepared_rows(files, tmp_path, max_sequence_length=CAPACITY, packing=True)
    return rows, packs, report


def test_packs_hold_the_rows_as_they_are(both: Any) -> None:
    rows, packs, _ = both
    packed = [row for pack in packs for row in rows_of(pack)]
    alone = [(row["input_ids"], row["labels"]) for row in rows]
    assert sorted((row["input_ids"], row["labels"]) for row in packed) == sorted(alone)


def test_the_positions_of_each_row_count_from_zero(both: Any) -> None:
    for pack in both[1]:
        for row in rows_of(pack):
            assert row["position_ids"] == list(range(len(row["input_ids"])))


def test_the_report_tells_packs_and_how_full_they_are(both: Any) -> None:
    rows, packs, report = both
    assert (report.rows, report.packs) == (len(rows), len(packs))
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert report.pack_fill_percent == pytest.approx(100 * tokens / (len(packs) * CAPACITY))


def test_no_row_learns_its_first_token_from_the_row_before(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, PLAIN)
    files = [dataset(tmp_path, "a.jsonl", [{"text": "four " * n} for n in range(1, 20)])]
    packs, _, _ = prepared_rows(files, tmp_path, objective="cpt", packing=True)
    assert all(row["labels"][0] == IGNORED for pack in packs for row in rows_of(pack))


@pytest.fixture(scope="module")
def packs(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The chats of the tiny model, packed by its own tokenizer."""
    folder = tmp_path_factory.mktemp("packs")
    prepare(
        [dataset(folder, "a.jsonl", chats())],
        model_root / "tiny-llama",
        max_sequence_length=200,
        seed=1,
        folder=folder / "out",
        packing=True,
    )
    return list(load(folder / "out")[0])


def model(model_root: Path, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model_root / "tiny-llama", attn_implementation=attention, dtype=torch.float32
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_row_in_a_pack_has_the_logits_of_the_row_alone(
    attention: str, batch_size: int, packs: list[dict[str, Any]], model_root: Path
) -> None:
    tiny = model(model_root, attention)
    chosen = sorted(packs, key=lambda pack: len(pack["input_ids"]))[:batch_size]
    inputs = {**collate(chosen), "use_cache": False}
    logits = tiny(**inputs).logits
    for pack, found in zip(chosen, logits, strict=True):
        assert len(rows_of(pack)) > 1
        for row, at in zip(rows_of(pack), starts(pack), strict=True):
            alone = tiny(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            torch.testing.assert_close(found[at : at + len(alone)], alone, atol=1e-5, rtol=1e-4)


def starts(pack: dict[str, Any]) -> list[int]:
    return [n for n, position in enumerate(pack["position_ids"]) if position == 0]


@torch.no_grad()
@pytest.mark.parametrize("change", [{"position_ids": None}, {"use_cache": True}])
def test_without_positions_or_with_a_cache_rows_would_see_each_other(
    change: dict[str, Any], packs: list[dict[str, Any]], model_root: Path
) -> None:
    tiny = model(model_root, "sdpa")
    inputs = {**collate(packs[:1]), "use_cache": False}
    apart, mixed = tiny(**inputs).logits, tiny(**inputs | change).logits
    assert not torch.allclose(apart, mixed, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_loss_of_packs_is_the_token_weighted_loss_of_their_rows(
    batch_size: int, packs: list[dict[str, Any]], model_root: Path
) -> None:
    tiny = model(model_root, "sdpa")
    rows = [row for pack in packs[:batch_size] for row in rows_of(pack)]
    apart = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    together = tiny(**collate(packs[:batch_size]), use_cache=False).loss
    assert together.item() == pytest.approx(tiny(**collate(apart)).loss.item(), abs=1e-5)
