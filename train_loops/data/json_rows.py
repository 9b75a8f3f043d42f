"""Rows of JSON Lines and of one JSON array, with the standard parser: it raises on the input that
crashes faster ones. Called by `read.py`."""

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from train_loops.data.lines import lines, too_long
from train_loops.data.row import MAX_ROW_BYTES, Row, invalid, kind

T = TypeVar("T")
_CHUNK = 64 * 1024
_OBJECT = "an object such as {...}"
_SPACE = " \t\r\n"


def jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    """One object a line; blank lines are skipped."""
    for number, line in lines(path, name):
        if line.strip():
            place = f"{name}, line {number}"
            value = _parsed(_DECODER.decode, line, place)
            yield Row(number, _object(value, place), place)


def json_rows(path: Path, name: str) -> Iterator[Row]:
    """The objects of one array, read piece by piece; `line` is the object's number from 1."""
    with path.open("rb") as file:
        text = _Window(file, name)
        if not (first := text.peek()):
            return
        if first != "[":
            raise invalid(name, f"starts with {first!r}", "one array of objects: [{...}, ...]")
        text.skip()
        number = 0
        while text.peek() != "]":
            if number:
                text.expect(",", f"{name}, after row {number}")
            number += 1
            place = f"{name}, row {number}"
            yield Row(number, text.read_object(place), place)
        text.skip()
        if rest := text.peek():
            raise invalid(name, f"{rest!r} after the end of the array", "one array and no more")


class _Window:
    """The part of a JSON file that is being parsed: memory follows one row, not the file."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more(_CHUNK):
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Go past one character."""
        self._at += 1

    def expect(self, character: str, place: str) -> None:
        """Go past `character`, which must be next."""
        if (found := self.peek()) != character:
            raise invalid(place, f"found {found!r}" if found else "the file ends", "',' or ']'")
        self.skip()

    def read_object(self, place: str) -> dict[str, Any]:
        """The object that starts here."""
        if (first := self.peek()) != "{":
            raise invalid(place, f"starts with {first!r}" if first else "the file ends", _OBJECT)
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                # Either broken or cut by the window: only a larger window can tell.
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise too_long(place) from None
                if self._more(max(_CHUNK, len(self._text) - self._at)):
                    continue
                _parsed(_DECODER.raw_decode, self._text[self._at :], place)
            except (ValueError, RecursionError) as error:
                raise _defect(error, place) from None
            else:
                self._at = end
                return _object(value, place)

    def _more(self, size: int) -> bool:
        chunk = self._file.read(size)
        try:
            text = self._utf8.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = self._file.tell() - len(chunk) + error.start + 1
            found = f"byte 0x{error.object[error.start]:02x} near position {at} is not UTF-8"
            raise invalid(self._name, found, "text in UTF-8") from None
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(chunk)


def _parsed(parse: Callable[[str], T], text: str, place: str) -> T:
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise _defect(error, place) from None


def _defect(error: Exception, place: str) -> Exception:
    if isinstance(error, RecursionError):
        return invalid(place, "nested too deeply", "an object of ordinary depth")
    if isinstance(error, json.JSONDecodeError):
        return invalid(place, f"not JSON ({error.msg}, column {error.colno})", _OBJECT)
    return invalid(place, f"not JSON ({error})", _OBJECT)


def _object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(place, f"found {kind(value)}", _OBJECT)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
