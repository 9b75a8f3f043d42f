"""Checks of tool definitions and tool calls. Called by `messages.py` and `chats.py`.

Both follow OpenAI's form, which chat templates expect: a definition is `{"type": "function",
"function": {"name", "description", "parameters"}}`, a call `{"type": "function", "id", "function":
{"name", "arguments"}}`. Where a file format has no free objects (CSV, Parquet), a JSON text does.
"""

import json
from typing import Any

from train_loops.data.row import invalid, kind

Tool = dict[str, Any]


def tool_definitions(value: object, place: str) -> list[Tool]:
    """The `tools` column: a JSON schema for each function that the model may call.

    Raises:
        DatasetInvalid: it is no array of objects with a name.
    """
    where = f"{place}, 'tools'"
    found = _json(value, where)
    if not isinstance(found, list) or not found:
        what = "an empty array" if found == [] else kind(found)
        raise invalid(where, f"found {what}", "an array of function definitions")
    for index, tool in enumerate(found):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            accepted = 'objects like {"type": "function", "function": {"name": …}}'
            raise invalid(f"{place}, tools[{index}]", "found no function with a name", accepted)
    return found


def tool_calls(value: object, place: str) -> list[dict[str, Any]]:
    """The `tool_calls` of one turn; arguments become an object, as templates write them.

    Raises:
        DatasetInvalid: a call has no name, or arguments that are no object.
    """
    calls = _json(value, f"{place}, 'tool_calls'")
    if not isinstance(calls, list) or not calls:
        raise invalid(place, f"'tool_calls' is {kind(calls)}", "an array of calls")
    return [_call(call, f"{place}, tool_calls[{index}]") for index, call in enumerate(calls)]


def _call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        accepted = 'objects like {"function": {"name": …, "arguments": {…}}}'
        raise invalid(where, "found no function with a name", accepted)
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else _json(arguments, f"{where}, 'arguments'")
    if not isinstance(arguments, dict):
        raise invalid(where, f"'arguments' is {kind(arguments)}", "an object, or one as JSON text")
    named = {"name": function["name"], "arguments": arguments}
    kept = {"id": call["id"]} if isinstance(call, dict) and call.get("id") is not None else {}
    return {"type": "function", **kept, "function": named}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _json(value: object, where: str) -> Any:
    """`value`, read if it is a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise invalid(where, f"not JSON ({str(error)[:100]})", "JSON") from None
