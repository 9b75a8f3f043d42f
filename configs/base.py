"""The base of every schema class here. Not for database rows or other services' protocols."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, strict schema object: an unknown field or a wrong type is an error, never dropped.

    Strict means that `"4"` is no integer and `true` is no number; the line under a field is its
    documentation, in Python and in the OpenAPI document alike.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # `model_name` is the users' word for the base model; pydantic would reserve `model_`.
        protected_namespaces=(),
    )
