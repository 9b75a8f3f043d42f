"""What an answer earns under objective `grpo`: our own reward functions and the operator's.

A reward function takes the prompts, the answers and the references of a batch (equally long lists
of strings; a reference is "" where the data has none) and returns one float for each answer. The
operator adds some by `TRAINER_REWARD_FUNCTIONS`; code never comes with a request.
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from configs.errors import ConfigInvalid
from configs.settings import Settings

Reward = Callable[[list[str], list[str], list[str]], list[float]]

SHORT_ANSWER_CHARACTERS = 200


def exact_reference(
    _prompts: list[str], completions: list[str], references: list[str]
) -> list[float]:
    """1 for an answer that is the reference but for case and white space, else 0."""
    pairs = zip(completions, references, strict=True)
    return [float(_plain(answer) == _plain(reference)) for answer, reference in pairs]


def contains_reference(
    _prompts: list[str], completions: list[str], references: list[str]
) -> list[float]:
    """1 for an answer with the reference in it, but for case and white space, else 0. No reference
    earns nothing."""
    pairs = zip(completions, references, strict=True)
    return [
        float(bool(_plain(reference)) and _plain(reference) in _plain(answer))
        for answer, reference in pairs
    ]


def last_number(_prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """1 where the last number of the answer is the last of the reference (as in GSM8K), else 0."""
    pairs = zip(completions, references, strict=True)
    return [
        float((found := _last_number(answer)) is not None and found == _last_number(reference))
        for answer, reference in pairs
    ]


def short_answer(
    _prompts: list[str], completions: list[str], _references: list[str]
) -> list[float]:
    """1 for an empty answer, falling to 0 at 200 characters: beside others, against rambling."""
    return [max(0.0, 1 - len(answer) / SHORT_ANSWER_CHARACTERS) for answer in completions]


BUILT_IN: dict[str, Reward] = {
    function.__name__: function
    for function in (exact_reference, contains_reference, last_number, short_answer)
}


def known(settings: Settings) -> frozenset[str]:
    """Names that a request may use."""
    return frozenset(BUILT_IN) | frozenset(settings.reward_functions)


def find(names: Sequence[str], settings: Settings) -> list[Reward]:
    """The reward functions of these names; the operator's come before our own.

    Raises:
        ConfigInvalid: there is no such name, or the operator's function cannot be imported.
    """
    return [_find(name, settings) for name in names]


def _find(name: str, settings: Settings) -> Reward:
    if (place := settings.reward_functions.get(name)) is not None:
        return _imported(name, place)
    if name in BUILT_IN:
        return BUILT_IN[name]
    raise ConfigInvalid(
        f"there is no reward function {name!r}; known: {', '.join(sorted(known(settings)))}",
        param="customization.grpo.reward_functions",
        hint="The operator installs further ones by TRAINER_REWARD_FUNCTIONS.",
    )


def _imported(name: str, place: str) -> Reward:
    module, _, attribute = place.partition(":")
    try:
        function: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigInvalid(
            f"reward function {name!r} is not importable from {place!r}: {error}",
            param="customization.grpo.reward_functions",
            hint="TRAINER_REWARD_FUNCTIONS maps a name to 'package.module:function'.",
        ) from error
    return function  # type: ignore[no-any-return]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _last_number(text: str) -> float | None:
    found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(found[-1]) if found else None
