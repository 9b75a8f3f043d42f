"""The error tree: drawn as it is, survives pickling, codes tell classes apart."""

import pickle
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from configs import errors
from configs.errors import InternalError, RunError, TrainerError


def tree(cls: type[TrainerError]) -> Iterator[type[TrainerError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


CLASSES = list(tree(TrainerError))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_pickling(cls: type[TrainerError]) -> None:
    details = [{"param": "a.b", "message": "m", "hint": None}]
    error = pickle.loads(pickle.dumps(cls("message", "a.b", "hint", details)))
    assert type(error) is cls
    assert (error.message, error.param, error.hint, error.details) == (
        "message", "a.b", "hint", details
    )  # fmt: skip
    assert str(error) == "message"


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_alone_is_enough(cls: type[TrainerError]) -> None:
    error = cls("message")
    assert (error.param, error.hint, error.details) == (None, None, [])


def test_a_code_names_one_class() -> None:
    codes = Counter(cls.code for cls in CLASSES if cls not in (TrainerError, RunError))
    assert [code for code, count in codes.items() if count > 1] == []
    assert InternalError.code == RunError.code == "internal"


def test_the_drawing_shows_every_class_with_its_code() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+)(?: +([a-z_]+))?", errors.__doc__ or ""))
    assert set(drawn) == {cls.__name__ for cls in CLASSES} - {"TrainerError"}
    for cls in set(CLASSES) - {TrainerError, RunError}:
        assert drawn[cls.__name__] == cls.code


def test_the_drawing_marks_what_may_be_retried() -> None:
    marked = set(re.findall(r"[├└]── (\w+) +[a-z_]+ +yes", errors.__doc__ or ""))
    assert marked == {cls.__name__ for cls in CLASSES if cls.retryable}
