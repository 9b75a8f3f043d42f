"""A JSON schema in words, for the tables of `docs/API_SPEC.md`. Only `openapi_docs.py` calls it."""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "minItems": "at least {}", "maxItems": "at most {}", "maxProperties": "at most {}",
    "minLength": "length ≥ {}", "maxLength": "length ≤ {}", "pattern": "matches `{}`",
}  # fmt: skip
_FORMATS = {"uri": "URL", "date-time": "time (ISO 8601, UTC)", "password": "secret string"}


def type_of(field: Schema, schemas: dict[str, Schema]) -> str:
    """The type with its bounds; an object of its own as a link to its table."""
    if "anyOf" in field:
        branches = [branch for branch in field["anyOf"] if branch.get("type") != "null"]
        return " or ".join(type_of(branch, schemas) for branch in branches)
    if "$ref" in field:
        name = _name(field["$ref"])
        is_object = "properties" in schemas[name]
        return f"[{name}](#{name.lower()})" if is_object else type_of(schemas[name], schemas)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    return ", ".join([_kind(field, schemas), *_bounds(field)])


def default_of(field: Schema) -> str:
    """The default, for a field that is not required."""
    match field.get("default"):
        case None:
            return "none"
        case {} if any(references(field)):
            return "its defaults"
        case "" | [] | {}:
            return "empty"
        case bool() as value:
            return f"`{str(value).lower()}`"
        case value:
            return f"`{value}`"


def references(field: Any) -> Iterator[str]:
    """The names of the schemas that `field` refers to."""
    if isinstance(field, dict):
        if "$ref" in field:
            yield _name(field["$ref"])
        for part in field.values():
            yield from references(part)
    elif isinstance(field, list):
        for part in field:
            yield from references(part)


def one_line(text: str | None) -> str:
    """`text` as a cell of a Markdown table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _kind(field: Schema, schemas: dict[str, Schema]) -> str:
    kind: str = field.get("type", "any")
    if kind == "array":
        return f"list of ({type_of(field['items'], schemas)})"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        keys = {"type": "string"} | field.get("propertyNames", {})
        values = field["additionalProperties"]
        return f"object from ({type_of(keys, schemas)}) to ({type_of(values, schemas)})"
    return _FORMATS.get(field.get("format", ""), kind)


def _bounds(field: Schema) -> list[str]:
    return [one_line(text.format(field[name])) for name, text in _BOUNDS.items() if name in field]


def _name(reference: str) -> str:
    return reference.rsplit("/", 1)[-1]
