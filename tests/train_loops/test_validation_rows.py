"""Rows to evaluate on: from files of their own, or a share of the training rows held back."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DatasetInvalid
from tests.train_loops.prepared_rows import (
    dataset,
    exchanges,
    learnt_texts,
    prepared_rows,
    saved_tokenizer,
)
from tests.train_loops.small_tokenizers import CHATML
from train_loops.data.prepare import load_validation
from train_loops.data.weight import held_back


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved_tokenizer(tmp_path, CHATML)
    return tmp_path


def split(folder: Path, rows: list[Any], **how: Any) -> tuple[list[str], list[str], Any]:
    """(learnt training texts, learnt validation texts, report) of one file."""
    weight = how.pop("weight", 1.0)
    files = [dataset(folder, "a.jsonl", rows, weight=weight)]
    train, validation, report = prepared_rows(files, folder, **how)
    return learnt_texts(train, folder), learnt_texts(validation, folder), report


def test_a_file_for_validation_is_not_trained_on(folder: Path) -> None:
    files = [
        dataset(folder, "a.jsonl", exchanges(3)),
        dataset(folder, "b.jsonl", exchanges(5, "Held {}."), split="validation"),
    ]
    train, validation, report = prepared_rows(files, folder)
    assert learnt_texts(train, folder) == [f"Answer {n}.<|im_end|>" for n in range(3)]
    assert learnt_texts(validation, folder) == [f"Held {n}.<|im_end|>" for n in range(5)]
    assert (report.rows, report.validation_rows) == (3, 5)
    assert [source.split for source in report.sources] == ["train", "validation"]


def test_without_any_there_are_none(folder: Path) -> None:
    report = split(folder, exchanges(3))[2]
    assert load_validation(folder / "out") is None
    assert report.validation_rows == 0


def test_a_share_is_held_back_and_the_rest_is_trained_on(folder: Path) -> None:
    train, validation, report = split(folder, exchanges(40), validation_share=0.1)
    assert len(validation) == report.validation_rows == 4
    assert sorted(train + validation) == sorted(f"Answer {n}.<|im_end|>" for n in range(40))


def test_a_small_share_holds_one_row_back(folder: Path) -> None:
    assert len(split(folder, exchanges(3), validation_share=0.01)[1]) == 1


def test_the_share_follows_the_seed(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    saved_tokenizer(other, CHATML)
    one = split(folder, exchanges(40), validation_share=0.2, seed=1)[1]
    assert one != split(other, exchanges(40), validation_share=0.2, seed=2)[1]


@pytest.mark.parametrize(("weight", "trained"), [(2.0, 60), (0.5, 15)])
def test_weight_is_for_training_rows_only(folder: Path, weight: float, trained: int) -> None:
    train, validation, _ = split(folder, exchanges(40), validation_share=0.25, weight=weight)
    assert (len(train), len(validation)) == (trained, 10)
    assert not set(train) & set(validation)


def test_validation_rows_are_packed_as_training_rows_are(folder: Path) -> None:
    files = [dataset(folder, "a.jsonl", exchanges(40))]
    train, validation, report = prepared_rows(files, folder, validation_share=0.25, packing=True)
    assert train[0].keys() == validation[0].keys()
    assert sum(row["position_ids"].count(0) for row in validation) == report.validation_rows == 10
    assert len(validation) == report.validation_packs


def test_the_only_row_cannot_be_held_back(folder: Path) -> None:
    with pytest.raises(DatasetInvalid, match="only 1 row") as caught:
        split(folder, exchanges(1), validation_share=0.5)
    assert caught.value.param == "tuning_parameters.validation_share"


def test_nothing_to_evaluate_on_is_an_error(folder: Path) -> None:
    files = [
        dataset(folder, "a.jsonl", exchanges(3)),
        dataset(folder, "b.jsonl", exchanges(1, "x" * 900), split="validation"),
        dataset(
            folder, "c.jsonl", [{"prompt": "long " * 99, "completion": "a"}], split="validation"
        ),
    ]
    assert prepared_rows(files[:2], folder, max_sequence_length=64)[2].validation_rows == 1
    (folder / "out").rename(folder / "first")
    with pytest.raises(DatasetInvalid, match="nothing to evaluate on"):
        prepared_rows([files[0], files[2]], folder, max_sequence_length=64)


@given(rows=st.integers(2, 500), share=st.floats(0.001, 0.5), seed=st.text(max_size=3))
def test_the_share_has_its_exact_size(rows: int, share: float, seed: str) -> None:
    assert sum(held_back(rows, share, seed)) == max(round(share * rows), 1)
