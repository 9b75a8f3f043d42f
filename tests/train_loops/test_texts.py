"""Running text for continued pre-training: every token is learnt, and nothing is cut off."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigInvalid
from tests.train_loops.prepared_rows import dataset, prepared_rows, saved_tokenizer
from tests.train_loops.small_tokenizers import BOS, CHATML, EOS, small_tokenizer
from train_loops.data.encoders import TextEncoder
from train_loops.data.mask import IGNORED
from train_loops.data.texts import Text, blocks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved_tokenizer(tmp_path, CHATML)
    return tmp_path


def texts(folder: Path, *written: str, **how: Any) -> tuple[list[dict[str, Any]], Any]:
    files = [dataset(folder, "a.jsonl", [{"text": text} for text in written])]
    rows, _, report = prepared_rows(files, folder, objective="cpt", **how)
    return rows, report


def test_a_text_goes_from_begin_to_end_token(folder: Path) -> None:
    rows, _ = texts(folder, "It is four.")
    assert small_tokenizer(CHATML).decode(rows[0]["input_ids"]) == f"{BOS}It is four.{EOS}"


def test_all_but_the_first_token_is_learnt(folder: Path) -> None:
    rows, report = texts(folder, "It is four.")
    ids = rows[0]["input_ids"]
    assert rows[0]["labels"] == [IGNORED, *ids[1:]]
    assert (report.tokens, report.trainable_tokens) == (len(ids), len(ids) - 1)


def test_a_model_without_begin_token_gets_none() -> None:
    tokenizer = small_tokenizer(CHATML)
    tokenizer.bos_token = None
    (row,) = TextEncoder(tokenizer, 64).encode([Text("four")])[0].rows
    assert tokenizer.decode(row.values[0]) == f"four{EOS}"


def test_a_model_without_end_token_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="no end token"):
        TextEncoder(small_tokenizer(CHATML, eos_token=None), 64)


def test_a_long_text_is_split_and_counted(folder: Path) -> None:
    rows, report = texts(folder, "four " * 100, "four", max_sequence_length=32)
    assert report.rows == len(rows) == report.pieces + 1
    assert (report.split_rows, report.truncated_rows, report.dropped_rows) == (1, 0, 0)
    assert all(len(row["input_ids"]) <= 32 for row in rows)
    assert report.chat_template is None


def test_every_token_of_a_long_text_is_learnt_once(folder: Path) -> None:
    tokenizer = small_tokenizer(CHATML)
    rows, _ = texts(folder, "four and two " * 50, max_sequence_length=16)
    learnt = [label for row in rows for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learnt) == "four and two " * 50 + EOS


@given(length=st.integers(1, 200), longest=st.integers(2, 50))
def test_blocks_overlap_by_one_token(length: int, longest: int) -> None:
    pieces = blocks(range(length), longest)
    assert [*pieces[0][:1], *(n for piece in pieces for n in piece[1:])] == list(range(length))
    assert all(len(piece) <= longest for piece in pieces)
    assert length == 1 or all(len(piece) > 1 for piece in pieces)
