"""One accepted row shape each: the columns that make it, and its conversion into chat messages.

A new shape is one more entry of `SHAPES`. Which shape a file has is decided in `shapes.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from train_loops.data.row import invalid, kind, names

Message = dict[str, str]
_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


class Shape(NamedTuple):
    """What a row looks like; `convert` takes the row's values and its place in the file."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[dict[str, Any], str], list[Message]]

    @property
    def fields(self) -> frozenset[str]:
        """All fields that the shape reads."""
        return frozenset(self.required + self.optional)


def _from_messages(values: dict[str, Any], place: str) -> list[Message]:
    if values.get("tools"):
        raise invalid(place, "has 'tools'", "chats without tools; no engine trains on them yet")
    turns = _turns(values, "messages", ("role", "content"), place)
    return _checked([(where, {"role": t["role"], "content": t["content"]}) for where, t in turns])


def _from_sharegpt(values: dict[str, Any], place: str) -> list[Message]:
    messages = []
    for where, turn in _turns(values, "conversations", ("from", "value"), place):
        if (author := str(turn["from"])) not in _SHAREGPT_ROLES:
            accepted = "'from' of " + ", ".join(_SHAREGPT_ROLES)
            raise invalid(where, f"'from' is {names([author])}", accepted)
        messages.append((where, {"role": _SHAREGPT_ROLES[author], "content": turn["value"]}))
    return _checked(messages)


def _from_prompt(values: dict[str, Any], place: str) -> list[Message]:
    return _exchange(
        _text(values["prompt"], f"{place}, 'prompt'"),
        _text(values["completion"], f"{place}, 'completion'"),
    )


def _from_instruction(values: dict[str, Any], place: str) -> list[Message]:
    question = _text(values["instruction"], f"{place}, 'instruction'")
    if values.get("input") not in (None, ""):
        question += "\n\n" + _text(values["input"], f"{place}, 'input'")
    return _exchange(question, _text(values["output"], f"{place}, 'output'"))


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _turns(
    values: dict[str, Any], column: str, keys: tuple[str, str], place: str
) -> list[tuple[str, dict[str, Any]]]:
    """The turns of a chat column, each with its place; nothing but `keys` may have a value."""
    turns, wanted = values[column], f"objects with {keys[0]!r} and {keys[1]!r}"
    if not isinstance(turns, list) or not turns:
        found = "an empty array" if turns == [] else kind(turns)
        raise invalid(place, f"{column!r} is {found}", f"an array of {wanted}")
    placed = [(f"{place}, {column}[{index}]", turn) for index, turn in enumerate(turns)]
    for where, turn in placed:
        if not isinstance(turn, dict):
            raise invalid(where, f"found {kind(turn)}", wanted)
        given = [key for key, value in turn.items() if value is not None]
        if set(given) != set(keys):
            raise invalid(where, f"has {names(given)}", f"{wanted} only{_advice(column, given)}")
    return placed


def _advice(column: str, given: list[str]) -> str:
    """What to do about turns that follow the other convention."""
    if column == "messages" and set(given) == {"from", "value"}:
        return "; turns with 'from' and 'value' belong in a column named 'conversations'"
    if column == "conversations" and set(given) == {"role", "content"}:
        return '; for turns with \'role\', set column_mapping {"messages": "conversations"}'
    if "tool_calls" in given or "function_call" in given:
        return "; no engine trains on tool calls yet"
    return ""


def _checked(messages: list[tuple[str, Message]]) -> list[Message]:
    for where, message in messages:
        if message["role"] not in _ROLES:
            reason = "; no engine trains on tool turns yet" if message["role"] == "tool" else ""
            accepted = f"{', '.join(_ROLES)}{reason}"
            raise invalid(where, f"the role is {names([message['role']])}", accepted)
        _text(message["content"], where)
    if not any(message["role"] == "assistant" for _, message in messages):
        place = messages[0][0].rpartition(", ")[0]
        raise invalid(place, "no turn of the assistant", "chats with at least one: it is learnt")
    return [message for _, message in messages]


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise invalid(where, f"found {kind(value)}", "a text that is not empty")
    if not value.strip():
        raise invalid(where, "the text is empty", "a text that is not empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = f"half of a surrogate pair at character {error.start + 1}"
            raise invalid(where, found, "text that is valid Unicode") from None
    return value


SHAPES = (
    Shape("messages", ("messages",), (), _from_messages),
    Shape("prompt + completion", ("prompt", "completion"), (), _from_prompt),
    Shape("instruction + output", ("instruction", "output"), ("input",), _from_instruction),
    Shape("conversations", ("conversations",), (), _from_sharegpt),
)
