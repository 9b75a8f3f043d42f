"""Chats to token ids and labels: the loss counts what the assistant says and what ends its turn.

A template may mark the assistant's part by `{% generation %}`. Most do not: there, the part begins
where the prompt for it ends and reaches to the end of its turn. Called by `prepare.py`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from configs.errors import ConfigInvalid
from train_loops.data.chats import Conversation
from train_loops.data.messages import Message
from train_loops.data.template import ChatTemplate, chat_template
from train_loops.data.tool_template import check_tools, probed_call, uses_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
Span = tuple[int, int]
_PROBE = "\ue000"


class Rendered(NamedTuple):
    """A chat as text, and the character spans that are learnt."""

    text: str
    spans: list[Span]


class Example(NamedTuple):
    """A chat as tokens, cut to the longest length allowed; `full_tokens` is its length before."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    full_tokens: int

    @property
    def trainable_tokens(self) -> int:
        """Tokens that the loss counts."""
        return len(self.labels) - self.labels.count(IGNORED)


def encode(
    chat: Conversation, tokenizer: "PreTrainedTokenizerBase", max_sequence_length: int
) -> Example:
    """One chat as tokens and labels."""
    rendered = render(chat, chat_template(tokenizer))
    return tokenize([rendered], tokenizer, max_sequence_length)[0]


def render(chat: Conversation, template: ChatTemplate) -> Rendered:
    """The chat as the model reads it, and which of its characters are learnt.

    Raises:
        DatasetInvalid: the template refuses the conversation.
        ConfigInvalid: the template hides where the assistant's part begins or ends, or has no
            place for the chat's tools.
    """
    if uses_tools(chat):
        check_tools(chat, template)
    if template.marked:
        text, marked = template.render_marked(chat.messages, chat.tools)
        return Rendered(text, [(start, _closed(text, end, template)) for start, end in marked])
    text = template.render(chat.messages, chat.tools)
    turns = [n for n, message in enumerate(chat.messages) if message["role"] == "assistant"]
    return Rendered(text, [_turn(chat, index, text, template) for index in turns])


def render_answer(
    prompt: Sequence[Message], answer: Message, template: ChatTemplate
) -> tuple[str, str]:
    """(prompt, answer) as text: the answer ends with the token that ends its turn.

    Raises:
        DatasetInvalid, ConfigInvalid: as `render`.
    """
    chat = Conversation([*prompt, answer])
    text = template.render(chat.messages)
    start, end = _turn(chat, len(prompt), text, template)
    return text[:start], text[start:end]


def tokenize(
    chats: Sequence[Rendered], tokenizer: "PreTrainedTokenizerBase", max_sequence_length: int
) -> list[Example]:
    """Tokens and labels of several chats at once, which is faster than one by one."""
    encoded = tokenizer(
        [chat.text for chat in chats],
        add_special_tokens=False,  # The template has written them: a second BOS would be one more.
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    columns = zip(chats, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [
        _example(ids, offsets, chat.spans, max_sequence_length) for chat, ids, offsets in columns
    ]


def _example(
    ids: list[int], offsets: list[Span], spans: Iterable[Span], max_sequence_length: int
) -> Example:
    labels = [IGNORED] * len(ids)
    first = 0
    for start, end in spans:
        while first < len(ids) and offsets[first][1] <= start:
            first += 1
        while first < len(ids) and offsets[first][0] < end:
            labels[first] = ids[first]
            first += 1
    # Nothing predicts the first token of a row, so it is none that the loss can count.
    labels[:1] = [IGNORED][: len(labels)]
    cut = max_sequence_length
    return Example(ids[:cut], labels[:cut], len(ids) > cut, len(ids))


def _turn(chat: Conversation, index: int, text: str, template: ChatTemplate) -> Span:
    """The characters of `text` that are the assistant's turn `index`, its end token included."""
    messages, tools = chat
    prompt = template.render(messages[:index], tools, add_generation_prompt=True)
    if not text.startswith(prompt):
        raise _unmaskable(
            "writes the prompt of an answer differently from the same turns in a whole conversation"
        )
    last = index + 1 == len(messages)
    so_far = text if last else template.render(messages[: index + 1], tools)
    if not text.startswith(so_far):
        return len(prompt), _end_by_probe(chat, index, text, so_far, template)
    # What follows the end token (a line feed, mostly) is the template's, not the model's.
    turn = so_far[len(prompt) :].rstrip()
    closed = turn.endswith(template.closers)
    return len(prompt), len(prompt) + len(turn) if closed else len(so_far)


def _end_by_probe(
    chat: Conversation, index: int, text: str, so_far: str, template: ChatTemplate
) -> int:
    """Where a turn ends in a template that writes the last turn unlike earlier ones (reasoning
    models drop old thoughts): another content in its place leaves the text after it as it is."""
    probed, turn = [*chat.messages], chat.messages[index]
    calls = "tool_calls" in turn
    probed[index] = probed_call(turn, _PROBE) if calls else {**turn, "content": _PROBE}
    _, found, rest = template.render(probed, chat.tools).rpartition(_PROBE)
    if calls:
        # The call's own closing stands between its arguments and the token that ends the turn.
        closer = _closer(so_far, template)
        rest = rest[rest.find(closer) :] if closer in rest else ""
        end = len(text) - len(rest) + len(closer)
    else:
        end = _closed(text, len(text) - len(rest), template)
    if not found or not rest or not text.endswith(rest) or end == len(text) - len(rest):
        raise _unmaskable("hides where an answer in the middle of a conversation ends")
    return end


def _closer(so_far: str, template: ChatTemplate) -> str:
    """The token that ends a turn, from a text that ends with one; a probe where there is none."""
    ending = [token for token in template.closers if so_far.rstrip().endswith(token)]
    return max(ending, key=len, default=_PROBE)


def _closed(text: str, end: int, template: ChatTemplate) -> int:
    """`end` moved over the end-of-turn token, where one follows and none came before."""
    if text[:end].rstrip().endswith(template.closers):
        return end
    start = len(text) - len(text[end:].lstrip())
    following = [token for token in template.closers if text.startswith(token, start)]
    return start + len(max(following, key=len)) if following else end


def _unmaskable(what: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"the model's chat template {what}, so the assistant's tokens cannot be told apart",
        param="base_model.model_name",
        hint="Use a model whose chat_template marks the assistant's part by {% generation %}, "
        "or add the marks to it.",
    )
