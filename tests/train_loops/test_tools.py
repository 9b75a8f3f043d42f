"""Chats in which the assistant calls tools: what is accepted, learnt, and refused."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigInvalid, DatasetInvalid
from tests.train_loops.prepared_rows import (
    dataset,
    learnt_texts,
    prepared_rows,
    saved_tokenizer,
)
from tests.train_loops.small_tokenizers import (
    CHATML,
    LLAMA_2,
    LLAMA_3,
    MARKED,
    WITH_TOOLS,
    WITH_TOOLS_FORGETS,
    small_tokenizer,
)
from train_loops.data.chats import Conversation
from train_loops.data.mask import render
from train_loops.data.row import Row
from train_loops.data.shapes import samples
from train_loops.data.template import chat_template

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "What is two and two?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4", "name": "add", "tool_call_id": "1"}
ANSWER = {"role": "assistant", "content": "It is four."}
CHAT = [USER, CALLS, RESULT, ANSWER]
WRITTEN = '<call>{"name": "add", "arguments": {"a": 2, "b": 2}}</call><|im_end|>'
NO_TOOLS = "the model's chat template has no tools"


def conversation(messages: Any = CHAT, **columns: Any) -> Conversation:
    row = Row(1, {"messages": messages, **columns}, "f, line 1")
    content = next(samples([row], {}, "sft")).content
    assert isinstance(content, Conversation)
    return content


def learnt(folder: Path, template: str | None, row: dict[str, Any]) -> str:
    saved_tokenizer(folder, template)
    rows, _, _ = prepared_rows([dataset(folder, "a.jsonl", [row])], folder)
    return learnt_texts(rows, folder)[0]


@pytest.mark.parametrize("template", [WITH_TOOLS, WITH_TOOLS_FORGETS])
def test_calls_are_learnt_and_results_are_not(template: str, tmp_path: Path) -> None:
    thought = "<think></think>" if template == WITH_TOOLS_FORGETS else ""
    text = learnt(tmp_path, template, {"messages": CHAT, "tools": [TOOL]})
    assert text == f"{WRITTEN}{thought}It is four.<|im_end|>"


def test_a_call_beside_words_is_learnt_with_them(tmp_path: Path) -> None:
    turn = {**CALLS, "content": "I add."}
    row = {"messages": [USER, turn, RESULT, ANSWER], "tools": [TOOL]}
    assert learnt(tmp_path, WITH_TOOLS, row).startswith(f"I add.{WRITTEN}")


def test_a_row_may_end_with_a_call(tmp_path: Path) -> None:
    assert learnt(tmp_path, WITH_TOOLS, {"messages": [USER, CALLS], "tools": [TOOL]}) == WRITTEN


def test_the_ids_are_those_of_apply_chat_template(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, WITH_TOOLS)
    row = {"messages": CHAT, "tools": [TOOL]}
    rows, _, _ = prepared_rows([dataset(tmp_path, "a.jsonl", [row])], tmp_path)
    expected = small_tokenizer(WITH_TOOLS).apply_chat_template(
        conversation().messages, tools=[TOOL], return_dict=True
    )
    assert rows[0]["input_ids"] == list(expected["input_ids"])


@pytest.mark.parametrize("template", [CHATML, LLAMA_3, MARKED, None])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER], "tools": [TOOL]},
        {"messages": CHAT},
        {"messages": CHAT, "tools": [TOOL]},
    ],
    ids=["tools", "calls", "both"],
)
def test_a_template_without_tools_is_refused(
    template: str | None, row: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigInvalid, match=r"a\.jsonl, line 1: " + NO_TOOLS):
        learnt(tmp_path, template, row)


def test_a_template_that_forgets_results_is_refused(tmp_path: Path) -> None:
    template = WITH_TOOLS.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}"
    )
    with pytest.raises(ConfigInvalid, match=NO_TOOLS):
        learnt(tmp_path, template, {"messages": CHAT, "tools": [TOOL]})


def test_what_a_template_raises_about_tools_is_told_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="refuses this conversation") as caught:
        learnt(tmp_path, LLAMA_2, {"messages": CHAT, "tools": [TOOL]})
    assert "may not have been trained to call" in str(caught.value.hint)


QWEN = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>'
SHIPPED = {
    "qwen2_5": QWEN,
    "qwen3": QWEN,
    "llama3_1": '{"name": "add", "parameters": {"a": 2, "b": 2}}<|eot_id|>',
    "gemma4": "<|tool_call>call:add{a:2,b:2}<tool_call|><|tool_response>",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_that_models_ship_write_calls_that_are_learnt(name: str) -> None:
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    template = (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    tokenizer = small_tokenizer(template)
    tokenizer.add_tokens(["<|eot_id|>", "<turn|>", "<|tool_response>"], special_tokens=True)
    chat = conversation([*CHAT, USER, ANSWER], tools=[TOOL])
    text, spans = render(chat, chat_template(tokenizer))
    first, *others = [text[start:end] for start, end in spans]
    assert first == SHIPPED[name]
    assert len(others) == 2 and all("It is four." in other for other in others)


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}},
        {"name": "add", "arguments": {"a": 2, "b": 2}},
    ],
    ids=["object", "json-text", "short"],
)
def test_each_form_of_a_call_becomes_the_same(call: Any) -> None:
    chat = conversation([USER, {**CALLS, "tool_calls": [call]}])
    assert chat.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_the_id_of_a_call_is_kept() -> None:
    chat = conversation([USER, {**CALLS, "tool_calls": [{**CALL, "id": "1"}]}, RESULT])
    assert chat.messages[1]["tool_calls"][0]["id"] == chat.messages[2]["tool_call_id"] == "1"


def test_tools_may_be_a_json_text() -> None:
    assert conversation(tools=json.dumps([TOOL])).tools == [TOOL]


def test_several_results_may_follow_one_turn_of_calls() -> None:
    turn = {**CALLS, "tool_calls": [CALL, CALL]}
    assert len(conversation([USER, turn, RESULT, RESULT, ANSWER]).messages) == 5


@pytest.mark.parametrize("tools", [None, [], ""])
def test_no_tools_are_none(tools: Any) -> None:
    assert conversation([USER, ANSWER], tools=tools).tools is None


@pytest.mark.parametrize(
    ("messages", "tools", "found"),
    [
        ([USER, RESULT, ANSWER], None, "messages[1]: a turn of the tool without a call before it"),
        ([USER, ANSWER, RESULT], None, "messages[2]: a turn of the tool without a call before it"),
        ([USER, {**CALLS, "tool_calls": 7}], None, "'tool_calls' is a number"),
        ([USER, {**CALLS, "tool_calls": "add("}], None, "'tool_calls': not JSON"),
        ([USER, {**CALLS, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}], None,
         "'arguments' is an array"),
        ([USER, {**CALLS, "tool_calls": [{"function": {"name": " "}}]}], None, "with a name"),
        ([USER, {**CALLS, "content": " "}], None, "messages[1]: the text is empty"),
        ([USER, CALLS, {**RESULT, "content": None}], None, "messages[2]: has 'role', 'name'"),
        (CHAT, {"name": "add"}, "'tools': found an object"),
        (CHAT, ["add"], "tools[0]: found no function with a name"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be_used_say_why(messages: Any, tools: Any, found: str) -> None:
    with pytest.raises(DatasetInvalid) as caught:
        conversation(messages, tools=tools)
    assert found in caught.value.message
