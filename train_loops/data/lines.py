"""The lines of a text file, bounded and decoded. Called by the JSON Lines and CSV readers."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from train_loops.data.row import MAX_ROW_BYTES, invalid


def lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Each line with its number from 1, its end included; a byte order mark is left out.

    Raises:
        DatasetInvalid: a line is not UTF-8, or longer than 16 MiB.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            place = f"{name}, line {number}"
            if len(line) > MAX_ROW_BYTES:
                raise too_long(place)
            yield (
                number,
                decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, place),
            )


def decoded(text: bytes, place: str) -> str:
    """`text` as UTF-8, or an error that names the first byte that is not."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{text[error.start]:02x} at position {error.start + 1} is not UTF-8"
        raise invalid(place, byte, "text in UTF-8") from None


def too_long(place: str) -> Exception:
    """The error of a row over the limit."""
    limit = f"{MAX_ROW_BYTES // 2**20} MiB"
    return invalid(place, f"longer than {limit}", f"rows of at most {limit}")
