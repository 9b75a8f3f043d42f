"""Which rows an epoch sees how often, and which are held back. Called by `sources.py`."""

import random
from collections.abc import Iterator

from configs.errors import DatasetInvalid


def copies(rows: int, weight: float, seed: str) -> Iterator[int]:
    """For each of `rows` rows of a file, how many times it is used (`DatasetSpec.weight`).

    The whole part of `weight` is for every row; the fraction is a seeded sample. At least one row
    of a file is used.
    """
    whole = int(weight)
    wanted = round((weight - whole) * rows)
    if whole == 0:
        wanted = max(wanted, 1)
    return (whole + chosen for chosen in _sample(rows, wanted, seed))


def held_back(rows: int, share: float, seed: str) -> Iterator[bool]:
    """For each of `rows` training rows, whether it is held back for validation.

    Raises:
        DatasetInvalid: there are too few rows to hold one back.
    """
    wanted = max(round(share * rows), 1) if share else 0
    if wanted and wanted >= rows:
        raise DatasetInvalid(
            f"validation_share is {share}, but there is only {rows} row to train on",
            param="tuning_parameters.validation_share",
            hint="Add rows, or leave validation_share out.",
        )
    return _sample(rows, wanted, seed)


def _sample(rows: int, wanted: int, seed: str) -> Iterator[bool]:
    """A sample without replacement, of exact size and in constant memory (Knuth, The Art of
    Computer Programming, volume 2, section 3.4.2, algorithm S)."""
    chance = random.Random(seed)
    for left in range(rows, 0, -1):
        chosen = chance.random() * left < wanted
        wanted -= chosen
        yield chosen
