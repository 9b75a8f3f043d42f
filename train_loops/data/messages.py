"""Checks of the turns of a chat, as strangers wrote them. Called by `chats.py` and
`preferences.py`; tool calls are checked in `tools.py`."""

from typing import Any

from train_loops.data.row import invalid, kind, names, text
from train_loops.data.tools import tool_calls

Message = dict[str, Any]
Placed = list[tuple[str, dict[str, Any]]]
_KEYS: dict[str, tuple[str, ...]] = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", "tool_calls"),
    "tool": ("role", "content", "tool_call_id", "name"),
}


def turns(values: dict[str, Any], column: str, keys: tuple[str, str], place: str) -> Placed:
    """The turns of a chat column, each with its place and without its nulls.

    Raises:
        DatasetInvalid: it is no array of objects, or one of them lacks both `keys`.
    """
    found, wanted = values[column], f"objects with {keys[0]!r} and {keys[1]!r}"
    if not isinstance(found, list) or not found:
        what = "an empty array" if found == [] else kind(found)
        raise invalid(place, f"{column!r} is {what}", f"an array of {wanted}")
    placed = []
    for index, turn in enumerate(found):
        where = f"{place}, {column}[{index}]"
        if not isinstance(turn, dict):
            raise invalid(where, f"found {kind(turn)}", wanted)
        given = {key: value for key, value in turn.items() if value not in (None, [])}
        if keys[0] not in given:
            raise invalid(where, f"has {names(given)}", wanted + advice(column, given))
        placed.append((where, given))
    return placed


def advice(column: str, given: dict[str, Any]) -> str:
    """What to do about turns that follow another convention."""
    if column != "conversations" and set(given) == {"from", "value"}:
        return "; turns with 'from' and 'value' belong in a column named 'conversations'"
    if column == "conversations" and {"role", "content"} <= set(given):
        return '; for turns with \'role\', set column_mapping {"messages": "conversations"}'
    if "function_call" in given:
        return "; write 'function_call' as 'tool_calls'"
    return ""


def messages(
    values: dict[str, Any], column: str, place: str, *, with_tools: bool = False
) -> list[Message]:
    """The messages of `column`: roles, contents and, where allowed, tool calls are in order.

    Raises:
        DatasetInvalid: a turn cannot be used; it names the turn.
    """
    checked: list[Message] = []
    for where, turn in turns(values, column, ("role", "content"), place):
        message = _message(turn, where, column)
        if not with_tools and (message["role"] == "tool" or "tool_calls" in message):
            raise invalid(where, "has a tool call", "turns without; objective 'sft' learns them")
        if message["role"] == "tool" and not _after_call(checked):
            found = "a turn of the tool without a call before it"
            raise invalid(where, found, "tool turns after an assistant's turn with 'tool_calls'")
        checked.append(message)
    return checked


def _message(turn: dict[str, Any], where: str, column: str) -> Message:
    role = turn["role"]
    if not isinstance(role, str) or role not in _KEYS:
        raise invalid(where, f"the role is {names([role])}", ", ".join(_KEYS))
    if not set(turn) <= set(_KEYS[role]) or not {"content", "tool_calls"} & set(turn):
        wanted = f"{names(_KEYS[role])} only for role {role!r}"
        raise invalid(where, f"has {names(turn)}", wanted + advice(column, turn))
    if "tool_calls" not in turn:
        return {**turn, "content": text(turn["content"], where)}
    # Templates write a missing content in different ways ("None" too); an empty text is safe.
    content = turn.get("content", "")
    if content != "":
        text(content, where)
    calls = tool_calls(turn["tool_calls"], where)
    return {"role": role, "content": content, "tool_calls": calls}


def _after_call(before: list[Message]) -> bool:
    """Whether a tool's answer may follow: the last turn that is none has called."""
    for message in reversed(before):
        if message["role"] != "tool":
            return "tool_calls" in message
    return False
