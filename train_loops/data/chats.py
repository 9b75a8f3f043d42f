"""Rows of objective `sft`: their shapes, and what all of them become, a conversation.

Called through `shapes.py`. Not for templates or tokens (`template.py`, `mask.py`).
"""

from typing import Any, NamedTuple

from train_loops.data.messages import Message, advice, messages, turns
from train_loops.data.row import invalid, names, text
from train_loops.data.shape import Shape
from train_loops.data.tools import Tool, tool_definitions

_SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


class Conversation(NamedTuple):
    """A chat, and the tools that the assistant may call in it."""

    messages: list[Message]
    tools: list[Tool] | None = None


def _from_messages(values: dict[str, Any], place: str) -> Conversation:
    tools = tool_definitions(values["tools"], place) if values.get("tools") else None
    return Conversation(
        _answered(messages(values, "messages", place, with_tools=True), place), tools
    )


def _from_sharegpt(values: dict[str, Any], place: str) -> Conversation:
    said = []
    for where, turn in turns(values, "conversations", ("from", "value"), place):
        if set(turn) != {"from", "value"}:
            wanted = "objects with 'from' and 'value' only" + advice("conversations", turn)
            raise invalid(where, f"has {names(turn)}", wanted)
        if (author := str(turn["from"])) not in _SHAREGPT_ROLES:
            accepted = "'from' of " + ", ".join(_SHAREGPT_ROLES)
            raise invalid(where, f"'from' is {names([author])}", accepted)
        said.append({"role": _SHAREGPT_ROLES[author], "content": text(turn["value"], where)})
    return Conversation(_answered(said, place))


def _from_prompt(values: dict[str, Any], place: str) -> Conversation:
    return exchange(
        text(values["prompt"], f"{place}, 'prompt'"),
        text(values["completion"], f"{place}, 'completion'"),
    )


def _from_instruction(values: dict[str, Any], place: str) -> Conversation:
    question = text(values["instruction"], f"{place}, 'instruction'")
    if values.get("input") not in (None, ""):
        question += "\n\n" + text(values["input"], f"{place}, 'input'")
    return exchange(question, text(values["output"], f"{place}, 'output'"))


def exchange(question: str, answer: str) -> Conversation:
    """One question of the user and its answer."""
    user, assistant = {"role": "user"}, {"role": "assistant"}
    return Conversation([{**user, "content": question}, {**assistant, "content": answer}])


def _answered(said: list[Message], place: str) -> list[Message]:
    if not any(message["role"] == "assistant" for message in said):
        raise invalid(place, "no turn of the assistant", "chats with at least one: it is learnt")
    return said


SHAPES = (
    Shape("messages", ("sft",), ("messages",), ("tools",), _from_messages),
    Shape("prompt + completion", ("sft",), ("prompt", "completion"), (), _from_prompt),
    Shape(
        "instruction + output", ("sft",), ("instruction", "output"), ("input",), _from_instruction
    ),
    Shape("conversations", ("sft",), ("conversations",), (), _from_sharegpt),
)
