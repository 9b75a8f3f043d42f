"""Rows of a CSV file with a header line, every value a string. Called by `read.py`."""

import csv
from collections.abc import Iterator
from pathlib import Path

from train_loops.data.lines import lines
from train_loops.data.row import MAX_ROW_BYTES, Row, invalid, names


def csv_rows(path: Path, name: str) -> Iterator[Row]:
    """A row per record, numbered by the line that it starts on; blank lines are skipped."""
    # The module's own limit, 128 KiB, is less than a long conversation. It is set per process.
    csv.field_size_limit(MAX_ROW_BYTES)
    header: list[str] = []
    for number, record in _records(path, name):
        place = f"{name}, line {number}"
        if not header:
            header = _checked_header(record, place)
        elif len(record) != len(header):
            found = f"{len(record)} fields; the header has {len(header)} ({names(header)})"
            raise invalid(place, found, "as many fields as the header, separated by commas")
        else:
            yield Row(number, dict(zip(header, record, strict=True)), place)


def _records(path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line for _, line in lines(path, name)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = f"not CSV ({error})"
            raise invalid(f"{name}, line {number}", found, "RFC 4180, with commas") from None
        if record:
            yield number, record


def _checked_header(header: list[str], place: str) -> list[str]:
    if len(set(header)) != len(header) or not all(column.strip() for column in header):
        found = f"the header has the columns {names(header)}"
        raise invalid(place, found, "column names that are neither empty nor repeated")
    return header
