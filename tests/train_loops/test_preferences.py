"""Preference rows: which are accepted, what text they become, and what is cut or left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.dataset import DatasetSpec
from configs.errors import ConfigInvalid, DatasetInvalid
from tests.train_loops.prepared_rows import dataset, prepared_rows, saved_tokenizer
from tests.train_loops.small_tokenizers import (
    CHATML,
    FORGETS_THOUGHTS,
    LLAMA_2,
    LLAMA_3,
    MARKED,
    PLAIN,
    PROMPT_DIFFERS,
    small_tokenizer,
)
from tests.train_loops.test_shapes import converted, refusal
from train_loops.data.prepare import load
from train_loops.data.template import chat_template

USER = {"role": "user", "content": "Why?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
FIRST = {"role": "assistant", "content": "Pardon?"}
PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
JUDGED = {"prompt": "Why?", "completion": "Because.", "label": True}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Why?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Because.", "rejected": "No."},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["texts", "messages", "text-prompt", "text-answers", "shared", "both", "null"],
)
@pytest.mark.parametrize("objective", ["dpo", "orpo", "reward"])
def test_each_form_becomes_the_same_pair(objective: Any, row: dict[str, Any]) -> None:
    assert converted(row, objective=objective) == [([USER], GOOD, BAD)]


def test_the_shared_beginning_is_the_prompt() -> None:
    before = [USER, FIRST, USER]
    row = {"chosen": [*before, GOOD], "rejected": [*before, BAD]}
    assert converted(row, objective="dpo") == [(before, GOOD, BAD)]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({**PAIR, "rejected": "Because."}, "'chosen' and 'rejected' are the same"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "are the same"),
        ({"chosen": [USER, GOOD], "rejected": [BAD]}, "differ before their last turn"),
        ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]}, "differ before"),
        ({"chosen": [USER, GOOD], "rejected": [USER, FIRST, USER, BAD]}, "differ before"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "'chosen' ends with a turn of 'user'"),
        ({"chosen": "Because.", "rejected": "No."}, "an answer without a prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "an answer without a prompt"),
        ({**PAIR, "prompt": [USER, FIRST]}, "'prompt' ends with a turn of the assistant"),
        ({"prompt": "How?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "not those of"),
        ({**PAIR, "chosen": ""}, "'chosen': the text is empty"),
        ({**PAIR, "chosen": 7}, "'chosen': found a number"),
        ({**PAIR, "chosen": [{"role": "tool", "content": "4"}]}, "objective 'sft' learns them"),
    ],
)
def test_pairs_that_cannot_be_used_say_why(row: dict[str, Any], found: str) -> None:
    message = refusal(row, objective="dpo").message
    assert message.startswith("f, line 1")
    assert found in message


def test_texts_and_messages_do_not_mix() -> None:
    error = refusal(PAIR, {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, objective="dpo")
    assert "f, line 2 has the shape 'preference (messages)'" in error.message
    assert "f, line 1 has 'preference'" in error.message


@pytest.mark.parametrize(
    ("label", "value"), [(True, True), (False, False), ("true", True), (" FALSE", False)]
)
def test_an_answer_is_judged_true_or_false(label: Any, value: bool) -> None:
    (found,) = converted({**JUDGED, "label": label}, objective="kto")
    assert found[:3] == ([USER], GOOD, value)


@pytest.mark.parametrize("label", [1, 0, "yes", "", 0.5, [True]])
def test_other_labels_are_refused(label: Any) -> None:
    assert "'label': found" in refusal({**JUDGED, "label": label}, objective="kto").message


def test_a_question_may_have_a_reference() -> None:
    rows = [{"prompt": "Why?", "reference": "Because."}, {"prompt": "Why?", "reference": None}]
    assert converted(*rows, objective="grpo") == [([USER], "Because."), ([USER], "")]


def test_a_reference_is_a_text() -> None:
    error = refusal({"prompt": "Why?", "reference": 4}, objective="grpo")
    assert "'reference': found a number" in error.message


def prepared(folder: Path, rows: list[Any], objective: str, template: Any = CHATML, **how: Any):  # type: ignore[no-untyped-def]
    saved_tokenizer(folder, template)
    written, _, report = prepared_rows(
        [dataset(folder, "a.jsonl", rows)], folder, objective=objective, **how
    )
    return written, report


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA_2, LLAMA_3, MARKED, PLAIN, FORGETS_THOUGHTS, None]
)
def test_prompt_and_answer_are_what_the_template_writes(template: Any, tmp_path: Path) -> None:
    (row,), _ = prepared(tmp_path, [PAIR], "dpo", template)
    written = chat_template(small_tokenizer(template))
    assert row["prompt"] == written.render([USER], add_generation_prompt=True)
    for answer, message in (("chosen", GOOD), ("rejected", BAD)):
        whole = written.render([USER, message])
        assert whole.startswith(row["prompt"] + row[answer])
        assert not whole.removeprefix(row["prompt"] + row[answer]).strip()


def test_an_answer_ends_with_the_token_that_ends_its_turn(tmp_path: Path) -> None:
    (row,), _ = prepared(tmp_path, [PAIR], "dpo")
    assert (row["chosen"], row["rejected"]) == ("Because.<|im_end|>", "No.<|im_end|>")


def test_a_template_that_hides_the_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"line 1: .* writes the prompt of an answer"):
        prepared(tmp_path, [PAIR], "dpo", PROMPT_DIFFERS)


def test_a_judged_answer_keeps_its_label(tmp_path: Path) -> None:
    rows, report = prepared(tmp_path, [JUDGED, {**JUDGED, "label": False}], "kto")
    assert [(row["completion"], row["label"]) for row in rows] == [
        ("Because.<|im_end|>", True),
        ("Because.<|im_end|>", False),
    ]
    assert report.sources[0].notes == []


def test_a_question_is_written_with_its_reference(tmp_path: Path) -> None:
    rows, report = prepared(tmp_path, [{"prompt": [USER]}, {"prompt": [USER]}], "grpo")
    assert rows[0] == {
        "prompt": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "reference": "",
    }
    assert report.trainable_tokens == 0


def test_labels_of_one_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match=r"a\.jsonl: every 'label' is true"):
        prepared(tmp_path, [JUDGED, JUDGED], "kto")


def test_labels_of_one_kind_that_are_left_are_refused(tmp_path: Path) -> None:
    rows = [JUDGED, {**JUDGED, "prompt": LONG, "label": False}]
    with pytest.raises(DatasetInvalid, match="all 1 rows that are left to train on have the label"):
        prepared(tmp_path, rows, "kto", max_sequence_length=32)


def test_labels_may_be_texts_and_the_report_says_so(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, CHATML)
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label\nWhy?,Because.,true\nWhy?,No.,false\n")
    files = [(DatasetSpec(source="file:///data/a.csv", format="csv"), path)]
    rows, _, report = prepared_rows(files, tmp_path, objective="kto")
    assert [row["label"] for row in rows] == [True, False]
    assert report.sources[0].notes == ["labels were texts, read as true or false"]


LONG = "four " * 40


@pytest.mark.parametrize(
    ("objective", "row", "kept", "truncated", "dropped"),
    [
        ("dpo", PAIR, 1, 0, 0),
        ("dpo", {**PAIR, "rejected": LONG}, 1, 1, 0),
        ("orpo", {**PAIR, "chosen": LONG}, 1, 1, 0),
        ("dpo", {**PAIR, "prompt": LONG}, 0, 0, 1),
        ("dpo", {**PAIR, "chosen": LONG + "yes", "rejected": LONG + "no"}, 0, 0, 1),
        ("reward", {**PAIR, "rejected": LONG}, 0, 0, 1),
        ("kto", {**JUDGED, "completion": LONG}, 1, 1, 0),
        ("kto", {**JUDGED, "prompt": LONG}, 0, 0, 1),
        ("grpo", {"prompt": LONG}, 0, 0, 1),
    ],
)
def test_rows_over_the_length_are_counted(
    objective: str, row: Any, kept: int, truncated: int, dropped: int, tmp_path: Path
) -> None:
    fine = {"grpo": [{"prompt": "Why?"}], "kto": [JUDGED, {**JUDGED, "label": False}]}
    short = fine.get(objective, [PAIR])
    rows, report = prepared(tmp_path, [row, *short], objective, max_sequence_length=32)
    assert len(rows) == report.rows == kept + len(short)
    assert (report.truncated_rows, report.dropped_rows) == (truncated, dropped)


def test_the_tokens_of_both_answers_are_counted(tmp_path: Path) -> None:
    (row,), report = prepared(tmp_path, [PAIR], "dpo")
    tokenizer = small_tokenizer(CHATML)

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    answers = tokens(row["chosen"]) + tokens(row["rejected"])
    assert report.tokens == 2 * tokens(row["prompt"]) + answers
    assert report.trainable_tokens == answers


def test_pairs_can_be_held_back(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, CHATML)
    pairs = [{**PAIR, "prompt": f"Question {n}?"} for n in range(20)]
    train, validation, _ = prepared_rows(
        [dataset(tmp_path, "a.jsonl", pairs)], tmp_path, objective="dpo", validation_share=0.2
    )
    prompts = [row["prompt"] for row in train + validation]
    assert (len(train), len(validation), len(set(prompts))) == (16, 4, 20)


def test_columns_may_be_mapped(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, CHATML)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": "Why?", "good": "Because.", "bad": "No."}) + "\n")
    mapping = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    files = [(DatasetSpec(source="file:///data/a.jsonl", column_mapping=mapping), path)]
    prepared_rows(files, tmp_path, objective="orpo")
    assert load(tmp_path / "out")[0][0]["chosen"] == "Because.<|im_end|>"
