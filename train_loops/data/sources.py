"""The rows of a job's dataset files in canonical form, drawn for training or validation.

Each file is read twice: first whole, to validate and count its rows, then to render them. So an
error in the last row costs seconds, and a weighted sample has its exact size. Called by
`prepare.py`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from configs.adapter import Objective
from configs.dataset import DatasetSpec, Split
from configs.errors import DatasetInvalid
from train_loops.data.preferences import Judged
from train_loops.data.read import rows
from train_loops.data.report import SourceReport
from train_loops.data.shapes import Sample, samples
from train_loops.data.weight import copies, held_back

TEXT_LABELS = "labels were texts, read as true or false"


class Source(NamedTuple):
    """A file that was read once and found good."""

    spec: DatasetSpec
    path: Path
    report: SourceReport
    labels: frozenset[bool]
    """The labels that occur in it, for `kto`."""


class Draw(NamedTuple):
    """A row, how many times it is used, and what for."""

    sample: Sample
    times: int
    split: Split


def inspected(files: Sequence[tuple[DatasetSpec, Path]], objective: Objective) -> list[Source]:
    """Read all files once: every row must convert, and all of a file by the same shape.

    Raises:
        DatasetInvalid: a row cannot be used, or all labels of the training rows are the same.
    """
    sources = [_inspected(spec, path, objective) for spec, path in files]
    if objective == "kto":
        _check_labels(sources)
    return sources


def _inspected(spec: DatasetSpec, path: Path, objective: Objective) -> Source:
    count, shape, labels, notes = 0, "", set(), set()
    for sample in _samples(spec, path, objective):
        count, shape = count + 1, sample.shape
        if isinstance(sample.content, Judged):
            labels.add(sample.content.label)
            notes |= {TEXT_LABELS} if sample.content.label_was_text else set()
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    report = SourceReport(
        source=spec.source,
        split=spec.split,
        sha256=sha256,
        shape=shape,
        rows=count,
        weight=spec.weight,
        notes=sorted(notes),
    )
    return Source(spec, path, report, frozenset(labels))


def _check_labels(sources: Sequence[Source]) -> None:
    training = [source for source in sources if source.spec.split == "train"]
    labels = frozenset[bool]().union(*(source.labels for source in training))
    if len(labels) == 1:
        found = str(next(iter(labels))).lower()
        names = ", ".join(source.spec.source for source in training)
        raise DatasetInvalid(
            f"{names}: every 'label' is {found}; objective 'kto' compares wanted answers with "
            "unwanted ones",
            param="datasets",
            hint="Add rows of the other label, or use objective 'sft' for wanted answers only.",
        )


def _samples(spec: DatasetSpec, path: Path, objective: Objective) -> Iterator[Sample]:
    return samples(rows(path, spec.format, spec.source), spec.column_mapping, objective)


def drawn(
    sources: Sequence[Source], objective: Objective, validation_share: float, seed: int
) -> Iterator[Draw]:
    """Each row that the run uses, in the order of the files.

    Rows are held back before weights apply, so that no copy of a validation row is trained on.

    Raises:
        DatasetInvalid: there are too few rows to hold one back.
    """
    training = sum(source.report.rows for source in sources if source.spec.split == "train")
    hold = held_back(training, validation_share, f"{seed}/validation")
    for index, source in enumerate(sources):
        loop = _samples(source.spec, source.path, objective)
        if source.spec.split == "validation":
            yield from (Draw(sample, 1, "validation") for sample in loop)
            continue
        held = bytes(next(hold) for _ in range(source.report.rows))
        kept = held.count(0)
        times = copies(kept, source.spec.weight, f"{seed}/{index}")
        for sample, is_held in zip(loop, held, strict=True):
            if is_held:
                yield Draw(sample, 1, "validation")
            elif count := next(times):
                yield Draw(sample, count, "train")
