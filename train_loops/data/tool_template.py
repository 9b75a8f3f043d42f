"""Whether a chat template writes the tools of a chat at all. Called by `mask.py`.

Many templates pass over what they do not know, and the model would learn answers out of nothing.
"""

from typing import Any

from configs.errors import ConfigInvalid, DatasetInvalid
from train_loops.data.chats import Conversation
from train_loops.data.messages import Message
from train_loops.data.template import ChatTemplate


def uses_tools(chat: Conversation) -> bool:
    """Whether there is a tool, a call or a tool's answer in the chat."""
    return bool(chat.tools) or any("tool_calls" in message for message in chat.messages)


def check_tools(chat: Conversation, template: ChatTemplate) -> None:
    """Compare the rendering with those of the same chat without its tools, calls and answers.

    Raises:
        ConfigInvalid: two of them are the same.
        DatasetInvalid: the template refuses the chat.
    """
    messages, tools = chat
    whole = _whole(chat, template)
    without = {
        "'tools'": (messages, None) if tools else None,
        "'tool_calls'": _replaced(chat, "assistant", {"tool_calls": None}),
        "turns of role 'tool'": _replaced(chat, "tool", {"content": ""}),
    }
    for part, chat_without in without.items():
        if chat_without is not None and whole == _attempt(template, *chat_without):
            raise ConfigInvalid(
                f"the model's chat template has no tools: it leaves {part} out",
                param="base_model.model_name",
                hint="Use a model that was trained to call tools, or leave such rows out.",
            )


def probed_call(message: Message, probe: str) -> Message:
    """The message with `probe` as the only argument of its last call."""
    last = message["tool_calls"][-1]
    function = {**last["function"], "arguments": {probe: probe}}
    return {**message, "tool_calls": [*message["tool_calls"][:-1], {**last, "function": function}]}


def _replaced(
    chat: Conversation, role: str, changes: dict[str, Any]
) -> tuple[list[Message], Any] | None:
    """The chat with `changes` in the turns of `role` that have these keys; None: it has no such."""

    def changed(message: Message) -> Message:
        kept = {key: value for key, value in message.items() if key not in changes}
        return kept | {key: value for key, value in changes.items() if value is not None}

    fitting = [m["role"] == role and changes.keys() <= m.keys() for m in chat.messages]
    if not any(fitting):
        return None
    pairs = zip(chat.messages, fitting, strict=True)
    return [changed(message) if fits else message for message, fits in pairs], chat.tools


def _whole(chat: Conversation, template: ChatTemplate) -> str:
    try:
        return template.render(chat.messages, chat.tools)
    except DatasetInvalid as error:
        hint = "The chat has tools: the model may not have been trained to call any, or not so."
        raise DatasetInvalid(error.message, error.param, hint) from error


def _attempt(template: ChatTemplate, messages: list[Message], tools: Any) -> str | None:
    """The rendering; None where the template refuses, which it does for what it knows of."""
    try:
        return template.render(messages, tools)
    except DatasetInvalid:
        return None
