"""What the loss counts, under every kind of template: what the assistant says, and its end."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigInvalid, DatasetInvalid
from tests.train_loops.small_tokenizers import (
    BOS,
    CHATML,
    EOS,
    FORGETS_THOUGHTS,
    LENGTH_FIRST,
    LLAMA_2,
    LLAMA_3,
    MARKED,
    MARKED_WITHOUT_END,
    PLAIN,
    PROMPT_DIFFERS,
    small_tokenizer,
)
from train_loops.data.chats import Conversation
from train_loops.data.mask import IGNORED, Example, encode, render
from train_loops.data.template import DEFAULT_CHAT_TEMPLATE, chat_template

USER = {"role": "user", "content": "What is two and two?"}
ANSWER = {"role": "assistant", "content": "It is four, não é? 🦙"}
AGAIN = {"role": "user", "content": "And three?"}
SHORT = {"role": "assistant", "content": "Six."}
CHAT = [USER, ANSWER, AGAIN, SHORT]
SYSTEM = {"role": "system", "content": "Be brief."}


def learnt(example: Example, tokenizer: Any) -> list[str]:
    """The text of each run of tokens that the loss counts."""
    runs: list[list[int]] = [[]]
    for label in example.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def encoded(messages: list[dict[str, str]], template: str | None) -> list[str]:
    tokenizer = small_tokenizer(template)
    return learnt(encode(Conversation(messages), tokenizer, 4096), tokenizer)


@pytest.mark.parametrize(
    ("template", "first", "second"),
    [
        (LLAMA_3, "It is four, não é? 🦙<|eot|>", "Six.<|eot|>"),
        (CHATML, "It is four, não é? 🦙<|im_end|>", "Six.<|im_end|>"),
        (LLAMA_2, " It is four, não é? 🦙 <|eos|>", " Six. <|eos|>"),
        (PLAIN, " It is four, não é? 🦙\n\n", " Six.\n\n"),
        (MARKED, "It is four, não é? 🦙<|im_end|>", "Six.<|im_end|>"),
        (MARKED_WITHOUT_END, "It is four, não é? 🦙<|im_end|>", "Six.<|im_end|>"),
        (FORGETS_THOUGHTS, "It is four, não é? 🦙<|im_end|>", "<think></think>Six.<|im_end|>"),
        (None, " It is four, não é? 🦙<|eos|>", " Six.<|eos|>"),
    ],
    ids=["llama-3", "chatml", "llama-2", "plain", "marked", "marked-no-end", "thoughts", "none"],
)
def test_the_answers_and_their_end_are_learnt(template: str, first: str, second: str) -> None:
    assert encoded(CHAT, template) == [first, second]


@pytest.mark.parametrize("template", [LLAMA_3, CHATML, MARKED, None])
def test_a_system_message_is_not_learnt(template: str | None) -> None:
    assert encoded([SYSTEM, *CHAT], template) == encoded(CHAT, template)


@pytest.mark.parametrize("template", [LLAMA_3, CHATML, None])
def test_an_assistant_may_speak_first(template: str | None) -> None:
    assert len(encoded([SHORT, USER, ANSWER], template)) == 2


@pytest.mark.parametrize("template", [LLAMA_3, CHATML, LLAMA_2, MARKED])
def test_a_learnt_label_is_the_token_itself(template: str) -> None:
    example = encode(Conversation(CHAT), small_tokenizer(template), 4096)
    pairs = zip(example.input_ids, example.labels, strict=True)
    assert all(label in (IGNORED, token) for token, label in pairs)


def test_marks_and_prefixes_agree() -> None:
    unmarked = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    by_marks = encode(Conversation(CHAT), small_tokenizer(MARKED), 4096)
    by_prefixes = encode(Conversation(CHAT), small_tokenizer(unmarked), 4096)
    assert by_marks == by_prefixes


def test_marks_give_the_mask_that_transformers_gives() -> None:
    assert _mask(MARKED) == _mask_of_transformers(MARKED)


def test_marks_that_leave_the_end_out_get_one_token_more_for_each_turn() -> None:
    ours, theirs = _mask(MARKED_WITHOUT_END), _mask_of_transformers(MARKED_WITHOUT_END)
    assert [o - t for o, t in zip(ours, theirs, strict=True)].count(1) == 2
    assert all(o >= t for o, t in zip(ours, theirs, strict=True))


def _mask(template: str) -> list[int]:
    example = encode(Conversation([USER, SHORT, AGAIN, SHORT]), small_tokenizer(template), 4096)
    return [int(label != IGNORED) for label in example.labels]


def _mask_of_transformers(template: str) -> list[int]:
    encoding = small_tokenizer(template).apply_chat_template(
        [USER, SHORT, AGAIN, SHORT], return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoding["assistant_masks"])


@pytest.mark.parametrize("template", [LLAMA_3, None])
def test_bos_comes_once(template: str | None) -> None:
    tokenizer = small_tokenizer(template)
    ids = encode(Conversation(CHAT), tokenizer, 4096).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_bos_is_not_added_where_the_template_has_none() -> None:
    tokenizer = small_tokenizer(CHATML)
    assert tokenizer.bos_token_id not in encode(Conversation(CHAT), tokenizer, 4096).input_ids


def test_the_ids_are_those_of_apply_chat_template() -> None:
    tokenizer = small_tokenizer(LLAMA_3)
    expected = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert encode(Conversation(CHAT), tokenizer, 4096).input_ids == list(expected)


def test_the_first_token_of_a_row_is_never_counted() -> None:
    template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    assert encode(Conversation([SHORT]), small_tokenizer(template), 4096).labels[0] == IGNORED


def test_a_long_chat_is_cut_at_its_end_and_says_so() -> None:
    tokenizer = small_tokenizer(CHATML)
    whole, cut = (encode(Conversation(CHAT), tokenizer, longest) for longest in (4096, 20))
    assert (whole.truncated, cut.truncated) == (False, True)
    assert cut.input_ids == whole.input_ids[:20]
    assert cut.labels == whole.labels[:20]
    assert cut.full_tokens == len(whole.input_ids)


def test_a_tokenizer_without_template_gets_the_default() -> None:
    tokenizer = small_tokenizer(None)
    assert chat_template(tokenizer).source == "default"
    assert tokenizer.chat_template == DEFAULT_CHAT_TEMPLATE


def test_the_default_template_is_plain_text() -> None:
    text = chat_template(small_tokenizer(None)).render([SYSTEM, USER, SHORT])
    expected = f"{BOS}System: Be brief.\nUser: What is two and two?\nAssistant: Six.{EOS}\n"
    assert text == expected


def test_the_default_template_needs_an_end_token() -> None:
    with pytest.raises(ConfigInvalid, match="neither a chat template nor an end token"):
        encode(Conversation(CHAT), small_tokenizer(None, eos_token=None), 4096)


@pytest.mark.parametrize("template", [PROMPT_DIFFERS, LENGTH_FIRST])
def test_a_template_that_hides_the_answer_is_refused(template: str) -> None:
    with pytest.raises(ConfigInvalid, match="prompt of an answer differently") as caught:
        encode(Conversation(CHAT), small_tokenizer(template), 4096)
    assert "{% generation %}" in str(caught.value.hint)


def test_what_a_template_raises_is_told() -> None:
    with pytest.raises(DatasetInvalid, match="Only user and assistant roles are supported"):
        encode(Conversation([SYSTEM, *CHAT]), small_tokenizer(LLAMA_2), 4096)


def test_a_broken_template_is_told() -> None:
    with pytest.raises(ConfigInvalid, match="chat template cannot be used"):
        encode(Conversation(CHAT), small_tokenizer("{% for m in messages %}"), 4096)


def test_a_template_cannot_reach_python() -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DatasetInvalid, match="refuses"):
        encode(Conversation(CHAT), small_tokenizer(attack), 4096)


def test_a_template_that_passes_over_texts_is_refused() -> None:
    parts_only = CHATML.replace("m['content']", "(m['content'] | map(attribute='text') | join)")
    with pytest.raises(ConfigInvalid, match="leaves out contents that are texts"):
        chat_template(small_tokenizer(parts_only)).check_texts()


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1).filter(
    lambda text: text == text.strip() and "\ue000" not in text
)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), WORDS), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(turns=TURNS, template=st.sampled_from([CHATML, MARKED, MARKED_WITHOUT_END]))
def test_of_any_conversation_exactly_the_answers_are_learnt(
    turns: list[tuple[str, str]], template: str
) -> None:
    chat = Conversation([{"role": role, "content": content} for role, content in turns])
    text, spans = render(chat, chat_template(small_tokenizer(template)))
    answers = [f"{content}<|im_end|>" for role, content in turns if role == "assistant"]
    assert [text[start:end] for start, end in spans] == answers
