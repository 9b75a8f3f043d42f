"""The rows of a job's dataset files as rendered chats, weights applied. Called by `prepare.py`.

Each file is read twice: first whole, to validate and count its rows, then to render them. So an
error in the last row costs seconds, and a weighted sample has its exact size.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from configs.dataset import DatasetSpec
from configs.errors import RunError
from train_loops.data.mask import Rendered, render
from train_loops.data.read import rows
from train_loops.data.report import SourceReport
from train_loops.data.shapes import Chat, chats
from train_loops.data.template import ChatTemplate
from train_loops.data.weight import copies


class Source(NamedTuple):
    """A file that was read once and found good."""

    spec: DatasetSpec
    path: Path
    report: SourceReport


def inspected(spec: DatasetSpec, path: Path) -> Source:
    """Read the whole file once: every row must convert, and all by the same shape."""
    count, shape = 0, ""
    for chat in _chats(spec, path):
        count, shape = count + 1, chat.shape
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    report = SourceReport(
        source=spec.source, sha256=sha256, shape=shape, rows=count, weight=spec.weight
    )
    return Source(spec, path, report)


def _chats(spec: DatasetSpec, path: Path) -> Iterator[Chat]:
    return chats(rows(path, spec.format, spec.source), spec.column_mapping)


def weighted(
    sources: Sequence[Source], template: ChatTemplate, seed: int
) -> Iterator[tuple[Rendered, int]]:
    """Each row that an epoch uses, as text, and how many times."""
    for index, source in enumerate(sources):
        times = copies(source.report.rows, source.spec.weight, f"{seed}/{index}")
        for chat, count in zip(_chats(source.spec, source.path), times, strict=True):
            if count:
                yield _rendered(chat, template), count


def _rendered(chat: Chat, template: ChatTemplate) -> Rendered:
    try:
        return render(chat.messages, template)
    except RunError as error:
        raise type(error)(f"{chat.place}: {error.message}", error.param, error.hint) from error
