"""From what pydantic found to the errors that a client sees; never with a value in it.

A token may stand anywhere in a wrong request, so no input is repeated: only names of fields, and
messages that are known to hold no input. `parse_request` reads a posted body; the error handlers
use `refused` for query parameters and headers.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from configs.errors import RequestInvalid
from configs.names import Backend
from configs.nemo_names import speaks_nemo, translated
from configs.request import TrainRequest

_MOST_DETAILS = 20
_LONGEST_NAME = 128
# pydantic repeats the input in these messages.
_ECHOING = frozenset({"union_tag_invalid", "assertion_error"})

Item = Mapping[str, Any]


def parse_request(body: bytes, backend: Backend) -> TrainRequest:
    """The request in `body`; on the `nemo` API it may be in NVIDIA's words.

    pydantic's own JSON parser is faster than `json.loads` and a validation after it (33 against
    46 µs), and stops at 200 levels of nesting, where `json.loads` would overflow the stack.

    Raises:
        RequestInvalid: not JSON, not UTF-8, or not a request; it lists the first problems.
    """
    ours = _in_our_words(body) if backend == "nemo" else body
    try:
        request = TrainRequest.model_validate_json(ours)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # `from None`: the text of pydantic's error holds the input.
        raise refused(found) from None
    # A valid body can be read by `json`. Of two equal keys both parsers drop the first silently.
    json.loads(body, object_pairs_hook=_refuse_repeated)
    return request


def _in_our_words(body: bytes) -> bytes:
    """`body` with NVIDIA's names for fields replaced by ours; a broken one is left as it is, for
    the parser that says what is wrong with it."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(found, dict) or not speaks_nemo(found):
        return body
    return json.dumps(translated(found)).encode()


def refused(found: Sequence[Item]) -> RequestInvalid:
    """One error for all that pydantic found; the message is the first one's."""
    details = [_problem(item) for item in found[:_MOST_DETAILS]]
    first = details[0]
    where = f"{first['param']}: " if first["param"] else ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    message = f"{where}{first['message']}{more}"
    return RequestInvalid(message, first["param"], first["hint"], details)


def problem(param: str | None, message: str, hint: str | None = None) -> dict[str, Any]:
    """One entry of an error's `details`."""
    return {"param": param, "message": message, "hint": hint}


def _problem(item: Item) -> dict[str, Any]:
    kind, place = item["type"], item["loc"]
    if kind == "extra_forbidden":
        return problem(_dotted([*_fields(place[:-1]), place[-1]]), "unknown field", _known(place))
    if kind == "missing":
        return problem(_dotted(_fields(place)), "this field is required")
    if kind in _ECHOING:
        return problem(_dotted(_fields(place)), "the value is not accepted")
    return problem(_dotted(_fields(place)), str(item["msg"]).removeprefix("Value error, "))


def _fields(place: Iterable[str | int]) -> list[str | int]:
    """The place without pydantic's own marks, such as `list[str]` for a branch of a union."""
    return [part for part in place if isinstance(part, int) or "[" not in part]


def _dotted(place: Iterable[str | int]) -> str | None:
    """`datasets[0].source` for `("datasets", 0, "source")`; None for the whole request."""
    text = ""
    for part in place:
        # A name may be the user's own, of any length.
        text += f"[{part}]" if isinstance(part, int) else f".{part[:_LONGEST_NAME]}"
    return text.removeprefix(".") or None


def _known(place: Sequence[str | int]) -> str | None:
    """The names that are accepted where an unknown one was found in a `TrainRequest`."""
    schema: dict[str, Any] = _SCHEMA
    for part in _fields(place[:-1]):
        inner = schema.get("items", {}) if isinstance(part, int) else _property(schema, part)
        schema = _resolved(inner)
    names = schema.get("properties", {})
    return f"Accepted here: {', '.join(names)}." if names else None


def _property(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema.get("properties", {}).get(name, {})
    return found


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The object schema behind a reference, or behind `X | None`."""
    branches = [schema, *schema.get("anyOf", [])]
    reference = next((branch["$ref"] for branch in branches if "$ref" in branch), None)
    if reference is None:
        return schema
    found: dict[str, Any] = _SCHEMA["$defs"][reference.rsplit("/", 1)[-1]]
    return found


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)[:_LONGEST_NAME]
        raise RequestInvalid(
            f"the field {twice!r} is given twice in one object",
            hint="Leave one of them out: it is not clear which one is meant.",
        )
    return found


_SCHEMA = TrainRequest.model_json_schema()
