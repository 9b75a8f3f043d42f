"""Rows of objective `cpt` (continued pre-training): running text, all of it learnt.

Called through `shapes.py`; `encoders.py` makes token rows of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from train_loops.data.row import text
from train_loops.data.shape import Shape


class Text(NamedTuple):
    """One document."""

    text: str


def _from_text(values: dict[str, Any], place: str) -> Text:
    return Text(text(values["text"], f"{place}, 'text'"))


def blocks(ids: Sequence[int], longest: int) -> list[Sequence[int]]:
    """`ids` in pieces of at most `longest` tokens, each beginning with the last token before it.

    A piece's first token has nothing that predicts it. By the overlap of one, every token of the
    text but the very first is learnt, and once only.
    """
    stride = longest - 1
    return [ids[start : start + longest] for start in range(0, max(len(ids) - 1, 1), stride)]


SHAPES = (Shape("text", ("cpt",), ("text",), (), _from_text),)
