"""How often an epoch sees each row of a file (`DatasetSpec.weight`). Called by `prepare.py`."""

import random
from collections.abc import Iterator


def copies(rows: int, weight: float, seed: str) -> Iterator[int]:
    """For each of `rows` rows, how many times it is used.

    The whole part of `weight` is for every row; the fraction is a seeded sample without
    replacement, of exact size and in constant memory (Knuth's algorithm S). At least one row of a
    file is used.
    """
    whole = int(weight)
    wanted = round((weight - whole) * rows)
    if whole == 0:
        wanted = max(wanted, 1)
    chance = random.Random(seed)
    for left in range(rows, 0, -1):
        chosen = chance.random() * left < wanted
        wanted -= chosen
        yield whole + chosen
