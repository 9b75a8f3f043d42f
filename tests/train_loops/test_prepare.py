"""From dataset files to token rows: what is written, counted, weighted and refused."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.dataset import DatasetSpec
from configs.errors import ConfigInvalid, DatasetInvalid, ModelAccess
from tests.train_loops.prepared_rows import (
    dataset,
    exchanges,
    learnt_texts,
    prepared_rows,
    saved_tokenizer,
)
from tests.train_loops.small_tokenizers import CHATML, LENGTH_FIRST, LLAMA_2
from train_loops.data.mask import IGNORED
from train_loops.data.prepare import inspect, load, prepare
from train_loops.data.report import counts
from train_loops.data.template import load_tokenizer
from train_loops.data.weight import copies

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared_data = pytest.mark.skipif(
    not (SHARED_DATA / "gsm8k_test.jsonl").exists(),
    reason=f"public data sets are not at {SHARED_DATA}",
)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    return saved_tokenizer(tmp_path, CHATML)


def prepared(
    files: list[tuple[DatasetSpec, Path]], folder: Path, max_sequence_length: int = 512, **how: Any
) -> tuple[list[str], Any]:
    """The learnt text of each row, and the report."""
    how["max_sequence_length"] = max_sequence_length
    rows, _, report = prepared_rows(files, folder, **how)
    return learnt_texts(rows, folder), report


def test_every_row_is_written_in_order(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts, report = prepared([dataset(tmp_path, "a.jsonl", exchanges(600))], tmp_path)
    assert texts == [f"Answer {n}.<|im_end|>" for n in range(600)]
    assert report.rows == 600


def test_rows_have_ids_and_labels_of_the_same_length(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    prepared([dataset(tmp_path, "a.jsonl", exchanges(3))], tmp_path)
    rows, _ = load(tmp_path / "out")
    assert rows.column_names == ["input_ids", "labels"]
    assert all(len(row["input_ids"]) == len(row["labels"]) for row in rows)


def test_the_report_counts_tokens(tmp_path: Path, tokenizer_folder: Path) -> None:
    prepared([dataset(tmp_path, "a.jsonl", exchanges(3))], tmp_path)
    rows, report = load(tmp_path / "out")
    assert report.tokens == sum(len(row["input_ids"]) for row in rows)
    assert report.trainable_tokens == sum(
        label != IGNORED for row in rows for label in row["labels"]
    )
    assert report.longest_row_tokens == max(len(row["input_ids"]) for row in rows)


def test_the_report_names_each_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = [
        dataset(tmp_path, "a.jsonl", exchanges(3)),
        dataset(tmp_path, "b.jsonl", [{"messages": [{"role": "assistant", "content": "Hi."}]}]),
    ]
    first, second = prepared(files, tmp_path)[1].sources
    assert (first.source, first.rows, first.shape) == (
        "file:///data/a.jsonl",
        3,
        "prompt + completion",
    )
    assert (second.rows, second.shape) == (1, "messages")
    assert len(first.sha256) == 64


@pytest.mark.parametrize(("template", "source"), [(CHATML, "model"), (None, "default")])
def test_the_report_says_which_template_was_used(
    tmp_path: Path, template: str | None, source: str
) -> None:
    saved_tokenizer(tmp_path, template)
    report = prepared([dataset(tmp_path, "a.jsonl", exchanges(1))], tmp_path)[1]
    assert report.chat_template == source


def test_a_tokenizer_saved_with_the_default_template_still_says_default(tmp_path: Path) -> None:
    load_tokenizer(saved_tokenizer(tmp_path, None)).save_pretrained(tmp_path / "tokenizer")
    report = prepared([dataset(tmp_path, "a.jsonl", exchanges(1))], tmp_path)[1]
    assert report.chat_template == "default"


def test_weight_two_gives_each_row_twice(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts, report = prepared([dataset(tmp_path, "a.jsonl", exchanges(3), weight=2.0)], tmp_path)
    assert sorted(texts) == sorted([f"Answer {n}.<|im_end|>" for n in range(3)] * 2)
    assert report.rows == 6


def test_weight_one_half_gives_half_of_the_rows(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts, _ = prepared([dataset(tmp_path, "a.jsonl", exchanges(40), weight=0.5)], tmp_path)
    assert len(texts) == len(set(texts)) == 20


def test_a_weighted_sample_follows_the_seed() -> None:
    assert list(copies(99, 1.5, "1")) == list(copies(99, 1.5, "1"))
    assert list(copies(99, 1.5, "1")) != list(copies(99, 1.5, "2"))


@pytest.mark.parametrize(
    ("rows", "weight", "total"), [(10, 1.0, 10), (10, 2.3, 23), (1, 0.01, 1), (1000, 0.25, 250)]
)
def test_a_weighted_sample_has_its_exact_size(rows: int, weight: float, total: int) -> None:
    assert sum(copies(rows, weight, "seed")) == total


def test_files_can_be_inspected_without_a_tokenizer(tmp_path: Path) -> None:
    good = dataset(tmp_path, "a.jsonl", exchanges(3))
    bad = dataset(tmp_path, "b.jsonl", [{"question": "Why?"}], split="validation")
    assert [report.rows for report in inspect([good])] == [3]
    with pytest.raises(DatasetInvalid, match=r"b\.jsonl, line 1 has no accepted shape"):
        inspect([good, bad])


def test_long_rows_are_cut_and_counted(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [*exchanges(2), *exchanges(1, answer="long " * 100)]
    _, report = prepared([dataset(tmp_path, "a.jsonl", rows)], tmp_path, max_sequence_length=64)
    assert (report.rows, report.truncated_rows, report.dropped_rows) == (3, 1, 0)
    assert report.longest_row_tokens > 64
    assert max(len(row["input_ids"]) for row in load(tmp_path / "out")[0]) == 64


def test_rows_whose_answer_is_cut_off_are_dropped_and_counted(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    rows = [*exchanges(2), {"prompt": "long " * 100, "completion": "Answer."}]
    files = [dataset(tmp_path, "a.jsonl", rows, weight=2.0)]
    _, report = prepared(files, tmp_path, max_sequence_length=64)
    assert (report.rows, report.truncated_rows, report.dropped_rows) == (4, 0, 2)


def test_nothing_to_train_on_says_what_to_do(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"prompt": "long " * 100, "completion": "Answer."}]
    with pytest.raises(DatasetInvalid, match="none of the 1 rows has anything to learn") as caught:
        prepared([dataset(tmp_path, "a.jsonl", rows)], tmp_path, max_sequence_length=64)
    assert "Raise max_sequence_length" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_rows_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(DatasetInvalid, match=r"file:///data/a\.jsonl has no rows"):
        prepared([dataset(tmp_path, "a.jsonl", [])], tmp_path)


def test_a_bad_last_row_leaves_nothing_behind(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = [dataset(tmp_path, "a.jsonl", [*exchanges(300), {"prompt": "no answer"}])]
    with pytest.raises(DatasetInvalid, match=r"file:///data/a\.jsonl, line 301 has no accepted"):
        prepared(files, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tokenizer"]


def test_what_the_template_refuses_names_the_row(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, LLAMA_2)
    system = {"role": "system", "content": "Be brief."}
    rows = [{"messages": [system, {"role": "assistant", "content": "Yes."}]}]
    with pytest.raises(DatasetInvalid, match="line 1: the model's chat template refuses"):
        prepared([dataset(tmp_path, "a.jsonl", rows)], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tokenizer"]


def test_a_template_that_cannot_be_masked_is_refused(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, LENGTH_FIRST)
    with pytest.raises(ConfigInvalid, match="the model's chat template"):
        prepared([dataset(tmp_path, "a.jsonl", exchanges(1))], tmp_path)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ModelAccess, match="tokenizer cannot be read"):
        prepared([dataset(tmp_path, "a.jsonl", exchanges(1))], tmp_path)


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
def test_whole_answers_are_not_packed(
    objective: Any, tmp_path: Path, tokenizer_folder: Path
) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be packed"):
        prepared([], tmp_path, objective=objective, packing=True)


def test_the_counts_of_a_job_are_those_of_the_report(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    files = [dataset(tmp_path, "a.jsonl", exchanges(8))]
    report = prepared(files, tmp_path, packing=True, validation_share=0.25)[1]
    shown = counts(report).model_dump()
    assert shown == {name: getattr(report, name) for name in shown}
    assert (shown["rows"], shown["validation_rows"]) == (6, 2)


def test_a_finished_folder_is_reused(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = [dataset(tmp_path, "a.jsonl", exchanges(3))]
    first = prepared(files, tmp_path)[1]
    files[0][1].unlink()
    assert prepared(files, tmp_path)[1] == first


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = [dataset(tmp_path, "a.jsonl", exchanges(50), weight=1.5)]
    written = []
    for name in ("one", "two"):
        prepare(files, tokenizer_folder, max_sequence_length=64, seed=3, folder=tmp_path / name)
        written.append((tmp_path / name / "tokens.arrow").read_bytes())
    assert written[0] == written[1]


def test_importing_it_brings_in_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'tokenizers'}"
    code = f"import sys, train_loops.data.prepare; sys.exit(bool({heavy} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_report_survives_pickling(tmp_path: Path, tokenizer_folder: Path) -> None:
    report = prepared([dataset(tmp_path, "a.jsonl", exchanges(1))], tmp_path)[1]
    assert pickle.loads(pickle.dumps(report)) == report


@needs_shared_data
def test_gsm8k_is_read_by_column_mapping(tmp_path: Path, tokenizer_folder: Path) -> None:
    spec = DatasetSpec(
        source="file:///data/gsm8k_test.jsonl",
        column_mapping={"prompt": "question", "completion": "answer"},
    )
    path = SHARED_DATA / "gsm8k_test.jsonl"
    texts, report = prepared([(spec, path)], tmp_path, max_sequence_length=4096)
    answers = [json.loads(line)["answer"] for line in path.read_text("utf-8").splitlines()]
    assert texts == [f"{answer}<|im_end|>" for answer in answers]
    assert (report.rows, report.truncated_rows, report.dropped_rows) == (1319, 0, 0)


@needs_shared_data
def test_public_chats_are_read_as_messages(tmp_path: Path, tokenizer_folder: Path) -> None:
    spec = DatasetSpec(source="file:///data/conversations.messages.jsonl")
    path = SHARED_DATA / "conversations.messages.jsonl"
    texts, report = prepared([(spec, path)], tmp_path, max_sequence_length=4096)
    assert report.rows == 128
    for text, line in zip(texts, path.read_text("utf-8").splitlines(), strict=True):
        said = [m["content"] for m in json.loads(line)["messages"] if m["role"] == "assistant"]
        assert text == "".join(f"{content}<|im_end|>" for content in said)
