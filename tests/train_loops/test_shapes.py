"""Which rows are accepted, what they become, and what is said about the others."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.adapter import Objective
from configs.dataset import DatasetField
from configs.errors import DatasetInvalid
from train_loops.data.chats import Conversation
from train_loops.data.row import Row
from train_loops.data.shapes import samples
from train_loops.data.texts import Text

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
EXCHANGE = [USER, ANSWER]
PROMPT = {"prompt": "Why?", "completion": "Because."}


def converted(
    *values: dict[str, Any], mapping: dict[str, str] | None = None, objective: Objective = "sft"
) -> list[Any]:
    """The chats of the rows, or, for another objective, what they become."""
    rows = [Row(line, row, f"f, line {line}") for line, row in enumerate(values, start=1)]
    found = [sample.content for sample in samples(rows, mapping or {}, objective)]
    return [content.messages if isinstance(content, Conversation) else content for content in found]


def refusal(
    *values: dict[str, Any], mapping: dict[str, str] | None = None, objective: Objective = "sft"
) -> DatasetInvalid:
    with pytest.raises(DatasetInvalid) as caught:
        converted(*values, mapping=mapping, objective=objective)
    return caught.value


@pytest.mark.parametrize(
    "row",
    [
        {"messages": EXCHANGE},
        PROMPT,
        {"instruction": "Why?", "output": "Because."},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"instruction": "Why?", "input": None, "output": "Because."},
        {
            "conversations": [
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Because."},
            ]
        },
    ],
)
def test_each_shape_becomes_the_same_chat(row: dict[str, Any]) -> None:
    assert converted(row) == [EXCHANGE]


def test_an_input_follows_its_instruction() -> None:
    row = {"instruction": "Translate.", "input": "gato", "output": "cat"}
    assert converted(row)[0][0]["content"] == "Translate.\n\ngato"


def test_a_sharegpt_system_turn_is_a_system_message() -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "gpt", "value": "Yes."}]
    assert converted({"conversations": turns})[0][0] == {"role": "system", "content": "Be brief."}


def test_further_columns_are_allowed() -> None:
    assert converted({**PROMPT, "id": 7, "score": None}) == [EXCHANGE]


def test_a_message_may_have_null_fields() -> None:
    message = {**ANSWER, "name": None, "tool_calls": None}
    assert converted({"messages": [USER, message]}) == [EXCHANGE]


def test_a_null_column_is_no_column() -> None:
    assert converted({**PROMPT, "messages": None}) == [EXCHANGE]


def test_a_mapping_renames_columns() -> None:
    mapping = {"prompt": "question", "completion": "answer"}
    assert converted({"question": "Why?", "answer": "Because."}, mapping=mapping) == [EXCHANGE]


def test_a_mapping_may_swap_columns() -> None:
    mapping = {"instruction": "input", "output": "output"}
    row = {"input": "Why?", "output": "Because.", "topic": "x"}
    assert converted(row, mapping=mapping) == [EXCHANGE]


def test_a_mapping_may_name_one_field_only() -> None:
    row = {"prompt": "Why?", "answer": "Because."}
    assert converted(row, mapping={"completion": "answer"}) == [EXCHANGE]


def test_a_mapping_settles_which_shape_is_meant() -> None:
    row = {**PROMPT, "messages": [USER, {**ANSWER, "content": "Other."}]}
    assert converted(row, mapping={"prompt": "prompt"}) == [EXCHANGE]


def test_a_mapped_column_that_a_row_lacks_is_named_with_the_columns_found() -> None:
    error = refusal(
        {"q": "Why?", "a": "Because."}, {"q": "Why?"}, mapping={"prompt": "q", "completion": "a"}
    )
    assert error.message.startswith("f, line 2: column_mapping takes 'completion' from column 'a'")
    assert error.message.endswith("columns found: 'q'")


def test_a_mapping_of_two_shapes_is_refused() -> None:
    error = refusal({"a": "x", "b": "y"}, mapping={"prompt": "a", "output": "b"})
    assert "names 'prompt', 'output', which are fields of different shapes" in error.message


def test_a_row_of_two_shapes_is_refused_and_asks() -> None:
    error = refusal({**PROMPT, "messages": EXCHANGE})
    assert "f, line 1 can be read as 'messages' and 'prompt + completion'" in error.message
    assert "column_mapping" in str(error.hint)


def test_a_later_row_of_two_shapes_is_refused() -> None:
    error = refusal(PROMPT, {**PROMPT, "instruction": "Why?", "output": "Because."})
    assert "f, line 2 can be read as" in error.message


def test_rows_of_different_shapes_are_refused_with_both_lines() -> None:
    error = refusal(PROMPT, PROMPT, {"messages": EXCHANGE})
    assert "f, line 3 has the shape 'messages'" in error.message
    assert "f, line 1 has 'prompt + completion'" in error.message


def test_a_row_of_no_shape_lists_its_columns_and_what_is_accepted() -> None:
    error = refusal({"question": "Why?", "answer": "Because."})
    assert "columns found: 'question', 'answer'" in error.message
    assert "'sft' accepts: messages (and tools); prompt + completion;" in error.message


def test_a_later_row_of_no_shape_is_compared_with_the_first() -> None:
    error = refusal(PROMPT, {"prompt": "Why?"})
    assert "f, line 2 has no accepted shape, while f, line 1 has 'prompt" in error.message


@pytest.mark.parametrize("mapping", [{}, {"text": "body"}])
def test_text_rows_belong_to_another_objective(mapping: dict[str, str]) -> None:
    error = refusal({"text": "Once", "body": "upon"}, mapping=mapping)
    assert "f, line 1 is a 'text' row; those belong to objective 'cpt'" in error.message


def test_text_beside_a_chat_shape_is_a_further_column() -> None:
    assert converted({**PROMPT, "text": "Why? Because."}) == [EXCHANGE]


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ("hello", "line 1: 'messages' is a string"),
        ([], "line 1: 'messages' is an empty array"),
        ([7], "messages[0]: found a number"),
        ([{"role": "user"}], "messages[0]: has 'role'"),
        ([{"role": "user", "content": "x", "weight": 0}], "has 'role', 'content', 'weight'"),
        ([{"from": "human", "value": "x"}], "belong in a column named 'conversations'"),
        ([USER, {"role": "tool", "content": "4"}], "a turn of the tool without a call before it"),
        ([USER, {**ANSWER, "tool_calls": [{}]}], "tool_calls[0]: found no function with a name"),
        ([USER, {**USER, "tool_calls": [{}]}], "messages[1]: has 'role', 'content', 'tool_calls'"),
        ([USER, {**ANSWER, "function_call": {}}], "write 'function_call' as 'tool_calls'"),
        ([USER, {"role": "developer", "content": "x"}], "messages[1]: the role is 'developer'"),
        ([USER, {"role": ["x"], "content": "x"}], "messages[1]: the role is"),
        ([USER, {**ANSWER, "content": ["x"]}], "messages[1]: found an array"),
        ([USER, {**ANSWER, "content": " \n"}], "messages[1]: the text is empty"),
        ([USER, {**ANSWER, "content": "\ud83d"}], "half of a surrogate pair at character 1"),
        ([USER], "line 1: no turn of the assistant"),
    ],
)
def test_messages_that_cannot_be_used_say_why(messages: Any, found: str) -> None:
    error = refusal({"messages": messages})
    assert found in error.message
    assert error.message.startswith("f, line 1")


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        ([{"from": "bot", "value": "x"}], "conversations[0]: 'from' is 'bot'"),
        ([{"from": ["gpt"], "value": "x"}], "conversations[0]: 'from' is"),
        ([{"from": "human", "value": "x"}], "no turn of the assistant"),
        (EXCHANGE, 'column_mapping {"messages": "conversations"}'),
    ],
)
def test_conversations_that_cannot_be_used_say_why(turns: Any, found: str) -> None:
    assert found in refusal({"conversations": turns}).message


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({**PROMPT, "completion": ""}, "'completion': the text is empty"),
        ({**PROMPT, "prompt": 7}, "'prompt': found a number"),
        ({**PROMPT, "prompt": [USER]}, "'prompt': found an array"),
        ({"instruction": "x", "input": 3, "output": "y"}, "'input': found a number"),
        ({"messages": EXCHANGE, "tools": [{"f": 1}]}, "tools[0]: found no function with a name"),
        ({"messages": EXCHANGE, "tools": "f(x)"}, "'tools': not JSON"),
    ],
)
def test_fields_that_cannot_be_used_say_why(row: dict[str, Any], found: str) -> None:
    assert found in refusal(row).message


def test_a_strangers_names_are_shortened() -> None:
    error = refusal({f"{number}{'x' * 1000}": 1 for number in range(1000)})
    assert len(error.message) < 2500


EACH: dict[str, dict[str, Any]] = {
    "sft": PROMPT,
    "cpt": {"text": "Once upon a time."},
    "dpo": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "kto": {**PROMPT, "label": True},
    "grpo": {"prompt": "Why?"},
}


@pytest.mark.parametrize("objective", EACH)
def test_each_objective_has_its_rows(objective: Any) -> None:
    assert len(converted(EACH[objective], objective=objective)) == 1


@pytest.mark.parametrize(
    ("objective", "row", "wanted"),
    [
        ("sft", "cpt", "'cpt'"),
        ("sft", "dpo", "'dpo' or 'orpo' or 'reward'"),
        ("sft", "grpo", "'grpo'"),
        ("cpt", "sft", "'sft'"),
        ("cpt", "kto", "'kto'"),
        ("dpo", "sft", "'sft'"),
        ("kto", "dpo", "'dpo' or 'orpo' or 'reward'"),
        ("grpo", "cpt", "'cpt'"),
    ],
)
def test_rows_of_another_objective_name_it(objective: Any, row: str, wanted: str) -> None:
    error = refusal(EACH[row], objective=objective)
    assert f"those belong to objective {wanted}." in error.message
    assert error.param == "customization.objective"


def test_a_later_row_of_another_objective_is_compared_with_the_first() -> None:
    error = refusal(EACH["cpt"], PROMPT, objective="cpt")
    assert "f, line 2 has no accepted shape, while f, line 1 has 'text'" in error.message


def test_a_field_of_another_objective_cannot_be_mapped() -> None:
    error = refusal({"a": "x"}, mapping={"chosen": "a"}, objective="cpt")
    assert "objective 'cpt' accepts: text" in error.message


def test_text_columns_may_be_mapped() -> None:
    assert converted({"body": "x"}, mapping={"text": "body"}, objective="cpt") == [Text("x")]


WORDS = st.sampled_from(["", " ", "user", "assistant", "gpt", "Why?", "\ud83d"])
PLAIN_VALUES = st.none() | st.booleans() | st.integers() | WORDS
TURNS = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "tool_calls"]),
    PLAIN_VALUES | st.lists(PLAIN_VALUES),
)
JSON_VALUES = PLAIN_VALUES | TURNS | st.lists(TURNS | PLAIN_VALUES, max_size=3)
FIELDS = get_args(DatasetField)


@given(
    row=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES),
    objective=st.sampled_from(get_args(Objective)),
)
def test_any_row_is_converted_or_a_dataset_error(row: dict[str, Any], objective: Any) -> None:
    try:
        assert converted(row, objective=objective)
    except DatasetInvalid as error:
        assert error.message.startswith("f, line 1")
