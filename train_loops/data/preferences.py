"""Rows of the objectives that compare or judge answers: their shapes and canonical forms.

`dpo`, `orpo`, `reward` learn from pairs, `kto` from answers judged true or false, `grpo` from
prompts whose answers the model gives itself. A prompt may be a text (one turn of the user) or
messages. Called through `shapes.py`; `answers.py` renders them.
"""

from typing import Any, NamedTuple

from train_loops.data.messages import Message, messages
from train_loops.data.row import invalid, kind, names, text
from train_loops.data.shape import Shape, Values

_LABELS = {"true": True, "false": False}


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: list[Message]
    chosen: Message
    rejected: Message


class Judged(NamedTuple):
    """An answer, and whether it is wanted."""

    prompt: list[Message]
    completion: Message
    label: bool
    label_was_text: bool


class Question(NamedTuple):
    """A prompt, and what a reward may compare answers with ('' without)."""

    prompt: list[Message]
    reference: str


def _pair(values: Values, place: str) -> Pair:
    chosen = _answers(values, "chosen", place)
    rejected = _answers(values, "rejected", place)
    if chosen == rejected:
        accepted = "two different answers; leave such rows out"
        raise invalid(place, "'chosen' and 'rejected' are the same", accepted)
    if len(chosen) != len(rejected) or chosen[:-1] != rejected[:-1]:
        accepted = "the same turns in both, up to one last turn of the assistant"
        raise invalid(place, "'chosen' and 'rejected' differ before their last turn", accepted)
    prompt = _whole_prompt(values, chosen[:-1], place)
    return Pair(prompt, chosen[-1], rejected[-1])


def _judged(values: Values, place: str) -> Judged:
    completion = _answers(values, "completion", place)
    label = values["label"]
    value = _LABELS.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(value, bool):
        found = names([label]) if isinstance(label, str | int) else kind(label)
        raise invalid(f"{place}, 'label'", f"found {found}", "true or false")
    prompt = _whole_prompt(values, completion[:-1], place)
    return Judged(prompt, completion[-1], value, isinstance(label, str))


def _question(values: Values, place: str) -> Question:
    reference = values.get("reference")
    if reference not in (None, ""):
        text(reference, f"{place}, 'reference'")
    return Question(_prompt(values, place), reference or "")


def _answers(values: Values, column: str, place: str) -> list[Message]:
    """The turns of an answer column: an answer as text is one turn of the assistant."""
    if not isinstance(values[column], list):
        answer = text(values[column], f"{place}, {column!r}")
        return [{"role": "assistant", "content": answer}]
    said = messages(values, column, place)
    if said[-1]["role"] != "assistant":
        found = f"{column!r} ends with a turn of {said[-1]['role']!r}"
        raise invalid(place, found, "an answer: a last turn of the assistant")
    return said


def _whole_prompt(values: Values, before: list[Message], place: str) -> list[Message]:
    """The prompt, which may stand in its column, before the answers, or in both alike."""
    if values.get("prompt") is None:
        if not before:
            accepted = "a 'prompt', or answers as messages that begin with it"
            raise invalid(place, "found an answer without a prompt", accepted)
        return before
    prompt = _prompt(values, place)
    if before and before != prompt:
        accepted = "'prompt' to be what comes before the answer, or answers alone"
        raise invalid(place, "the turns before the answer are not those of 'prompt'", accepted)
    return prompt


def _prompt(values: Values, place: str) -> list[Message]:
    if not isinstance(values["prompt"], list):
        return [{"role": "user", "content": text(values["prompt"], f"{place}, 'prompt'")}]
    said = messages(values, "prompt", place)
    if said[-1]["role"] == "assistant":
        accepted = "a last turn of another, which the assistant answers"
        raise invalid(place, "'prompt' ends with a turn of the assistant", accepted)
    return said


def _form(*columns: str) -> Any:
    def form(values: Values) -> str:
        return " (messages)" if any(isinstance(values.get(c), list) for c in columns) else ""

    return form


SHAPES = (
    Shape(
        "preference", ("dpo", "orpo", "reward"), ("chosen", "rejected"), ("prompt",), _pair,
        _form("prompt", "chosen", "rejected"),
    ),
    Shape(
        "judged answer", ("kto",), ("prompt", "completion", "label"), (), _judged,
        _form("prompt", "completion"),
    ),
    Shape("prompt", ("grpo",), ("prompt",), ("reference",), _question, _form("prompt")),
)  # fmt: skip
