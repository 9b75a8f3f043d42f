"""The dataset that ships with the project: questions and answers about its own subject."""

import json
from pathlib import Path
from typing import Any

import pytest

import configs

DATA = Path(configs.__file__).parent / "examples/data"
FILES = sorted(DATA.glob("*.jsonl"))
TRAINING, HELD_OUT = DATA / "finetuning_faq.jsonl", DATA / "finetuning_faq.heldout.jsonl"
# The example requests cut rows at 256 tokens, and a token is seldom under two characters.
MOST_CHARACTERS = 500


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def turns(row: dict[str, Any]) -> list[dict[str, str]]:
    """The messages of a row without the system's, which may come first."""
    messages: list[dict[str, str]] = row["messages"]
    return messages[1:] if messages[0]["role"] == "system" else messages


def questions(path: Path) -> list[str]:
    """What is asked first in each row, in one spelling."""
    return [" ".join(turns(row)[0]["content"].lower().split()) for row in rows(path)]


def test_both_files_are_shipped() -> None:
    assert {TRAINING, HELD_OUT} <= set(FILES)


def test_there_are_at_least_240_rows_to_train_on() -> None:
    assert len(rows(TRAINING)) >= 240


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_row_is_a_conversation_in_which_the_roles_alternate(path: Path) -> None:
    for number, row in enumerate(rows(path), start=1):
        assert row.keys() == {"messages"}, number
        roles = [message["role"] for message in turns(row)]
        assert len(roles) >= 2, number
        assert roles == ["user", "assistant"] * (len(roles) // 2), number


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_message_says_something(path: Path) -> None:
    for number, row in enumerate(rows(path), start=1):
        for message in row["messages"]:
            assert message.keys() == {"role", "content"}, number
            assert message["content"].strip() == message["content"] != "", number


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_row_is_short(path: Path) -> None:
    lengths = [sum(len(message["content"]) for message in row["messages"]) for row in rows(path)]
    assert max(lengths) <= MOST_CHARACTERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_question_is_asked_twice(path: Path) -> None:
    asked = questions(path)
    assert sorted(asked) == sorted(set(asked))


def test_no_held_out_question_is_trained_on() -> None:
    assert set(questions(TRAINING)) & set(questions(HELD_OUT)) == set()
