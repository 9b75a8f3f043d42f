"""Rows of strangers' files: what is read, and what each defect says."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.dataset import DatasetFormat
from configs.errors import DatasetInvalid
from train_loops.data import json_rows, lines
from train_loops.data.read import rows

FORMATS: tuple[DatasetFormat, ...] = ("jsonl", "json", "csv", "parquet")


def read(
    folder: Path, content: bytes | str, format: DatasetFormat
) -> list[tuple[int, dict[str, Any]]]:
    path = folder / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.line, row.values) for row in rows(path, format, "chats")]


def defect(folder: Path, content: bytes | str, format: DatasetFormat = "jsonl") -> str:
    with pytest.raises(DatasetInvalid) as caught:
        read(folder, content, format)
    return caught.value.message


def test_jsonl_rows_have_their_line(tmp_path: Path) -> None:
    assert read(tmp_path, '{"a": 1}\n{"a": 2}', "jsonl") == [(1, {"a": 1}), (2, {"a": 2})]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    assert read(tmp_path, '\n{"a": 1}\r\n \n{"a": 2}\n\n', "jsonl") == [
        (2, {"a": 1}),
        (4, {"a": 2}),
    ]


@pytest.mark.parametrize(
    ("format", "text"), [("jsonl", '{"a": "b"}'), ("json", '[{"a": "b"}]'), ("csv", "a\nb\n")]
)
def test_a_byte_order_mark_is_tolerated(tmp_path: Path, format: Any, text: str) -> None:
    assert [values for _, values in read(tmp_path, "\ufeff" + text, format)] == [{"a": "b"}]


def test_text_may_hold_line_separators(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    row = json.dumps({"a": text}, ensure_ascii=False)
    assert read(tmp_path, row, "jsonl") == [(1, {"a": text})]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"a": 1', "not JSON"),
        ("[1, 2]", "found an array"),
        ('"text"', "found a string"),
        ("null", "found null"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
        ('{"a": ' + "[" * 20_000 + "]" * 20_000 + "}", "nested too deeply"),
        (b'{"a": "\xff"}', "byte 0xff at position 8 is not UTF-8"),
    ],
    ids=["cut", "array", "string", "null", "nan", "infinity", "huge-int", "deep", "latin-1"],
)
def test_a_bad_line_is_named_with_what_was_found_and_what_is_accepted(
    tmp_path: Path, line: bytes | str, found: str
) -> None:
    content = line if isinstance(line, bytes) else line.encode()
    message = defect(tmp_path, b'{"a": 1}\n' + content + b"\n")
    assert message.startswith("chats, line 2: ")
    assert found in message
    assert "accepted: " in message


def test_a_line_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 100)
    assert "line 2: longer than" in defect(tmp_path, '{"a": 1}\n{"a": "' + "b" * 200 + '"}\n')


@pytest.mark.parametrize("format", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_rows_says_so(tmp_path: Path, format: Any, content: str) -> None:
    assert defect(tmp_path, content, format) == "chats has no rows"


def test_a_json_array_numbers_its_rows(tmp_path: Path) -> None:
    assert read(tmp_path, '[{"a": 1},\n {"a": 2} ]\n', "json") == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_json_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 3)
    expected = [{"ä": "ö" * n, "b": [n, {"c": None}]} for n in range(20)]
    text = json.dumps(expected, ensure_ascii=False, indent=1)
    assert [values for _, values in read(tmp_path, text, "json")] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "chats: starts with '{'"),
        ('[{"a": 1}, 2]', "chats, row 2: starts with '2'"),
        ('[{"a": 1} {"a": 2}]', "chats, after row 1: found '{'"),
        ('[{"a": 1},]', "chats, row 2: starts with ']'"),
        ('[{"a": 1}', "chats, after row 1: the file ends"),
        ('[{"a": 1}, {"a": ', "chats, row 2: not JSON"),
        ('[{"a": 1}, {"a": NaN}]', "chats, row 2: not JSON (NaN is no JSON number)"),
        ('[{"a": 1}] x', "chats: 'x' after the end of the array"),
        ("[]", "chats has no rows"),
    ],
)
def test_a_bad_json_array_names_the_row(tmp_path: Path, text: str, message: str) -> None:
    assert defect(tmp_path, text, "json").startswith(message)


def test_a_json_row_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 16)
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 100)
    assert "row 1: longer than" in defect(tmp_path, '[{"a": "' + "b" * 5000 + '"}]', "json")


def test_csv_rows_have_the_line_that_they_start_on(tmp_path: Path) -> None:
    text = 'q,a\nwhat,"one\ntwo"\n\nwhy,"say ""yes"""\n'
    expected = [(2, {"q": "what", "a": "one\ntwo"}), (5, {"q": "why", "a": 'say "yes"'})]
    assert read(tmp_path, text, "csv") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,a\n1,2\n1\n", "chats, line 3: 1 fields; the header has 2 ('q', 'a')"),
        ("q,q\n1,2\n", "chats, line 1: the header has the columns 'q', 'q'"),
        ('q,a\n"1,2\n', "chats, line 2: not CSV"),
        ("q,a\n", "chats has no rows"),
    ],
)
def test_a_bad_csv_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    assert defect(tmp_path, text, "csv").startswith(message)


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    text = "word " * 100_000
    assert read(tmp_path, f"a\n{text}\n", "csv") == [(2, {"a": text})]


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    expected = [{"a": "b", "n": [1, 2]}, {"a": None, "n": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(expected), tmp_path / "file")
    found = [(row.line, row.values) for row in rows(tmp_path / "file", "parquet", "chats")]
    assert found == [(1, expected[0]), (2, expected[1])]


def test_a_parquet_file_that_is_none_says_so(tmp_path: Path) -> None:
    message = defect(tmp_path, b"PAR1 but not really PAR1", "parquet")
    assert message.startswith("chats, row 1: cannot be read")
    assert "accepted: a Parquet file" in message


@pytest.mark.parametrize("format", FORMATS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.one_of(st.binary(max_size=200), st.text('[]{}",:\n\\aé1 ', max_size=60)))
def test_any_bytes_give_rows_or_a_dataset_error(
    tmp_path: Path, format: DatasetFormat, content: bytes | str
) -> None:
    try:
        assert read(tmp_path, content, format)
    except DatasetInvalid as error:
        assert error.message.startswith("chats")
