"""The one error body of every route, and the handlers that write it.

Not for deciding what is an error: the domain raises (`configs/errors.py`), FastAPI and Starlette
raise, and this file alone knows their HTTP status. `create_app` installs it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from configs.base import Spec
from configs.errors import (
    BodyTooLarge,
    JobConflict,
    JobNotFound,
    JobStateConflict,
    QueueFull,
    RequestInvalid,
    TrainerError,
    Unauthorized,
    Unschedulable,
    Unsupported,
)
from serve_app.validation import problem, refused

RETRY_AFTER_S = 10


class ErrorDetail(Spec):
    """One problem of the request."""

    param: str | None
    """Dotted path of the field, such as `datasets[0].source`; null when it is no single field."""
    message: str
    """What is wrong with it."""
    hint: str | None
    """What to do about it."""


class ErrorInfo(Spec):
    """What went wrong."""

    type: str
    """Family: `invalid_request_error`, `authentication_error`, `not_found_error`,
    `conflict_error`, `rate_limit_error`, `internal_error`."""
    code: str
    """The exact kind. Stable; a program should look at this one."""
    message: str
    """One sentence for a person."""
    param: str | None
    """The field at fault, if it is one."""
    details: list[ErrorDetail]
    """Every problem found, the first one first."""


class ErrorBody(Spec):
    """The body of every answer that is an error."""

    error: ErrorInfo
    """The error."""


class Kind(NamedTuple):
    """How one class of errors looks over HTTP."""

    status: int
    family: str
    headers: Mapping[str, str] | None = None


KINDS: dict[type[TrainerError], Kind] = {
    RequestInvalid: Kind(422, "invalid_request_error"),
    Unsupported: Kind(422, "invalid_request_error"),
    Unschedulable: Kind(422, "invalid_request_error"),
    BodyTooLarge: Kind(413, "invalid_request_error"),
    Unauthorized: Kind(401, "authentication_error", {"WWW-Authenticate": "APIKey"}),
    JobNotFound: Kind(404, "not_found_error"),
    JobConflict: Kind(409, "conflict_error"),
    JobStateConflict: Kind(409, "conflict_error"),
    QueueFull: Kind(429, "rate_limit_error", {"Retry-After": str(RETRY_AFTER_S)}),
}
INTERNAL = Kind(500, "internal_error")

# What Starlette and the routes raise as `HTTPException`: code, family, message (None: its own).
_HTTP_ERRORS: dict[int, tuple[str, str, str | None]] = {
    404: ("not_found", "not_found_error", "there is no such path; /docs lists those there are"),
    405: ("method_not_allowed", "invalid_request_error", "this path has no such method"),
    415: ("unsupported_media_type", "invalid_request_error", None),
}
_OTHER_HTTP_ERROR = ("bad_request", "invalid_request_error", None)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with an `ErrorBody`."""
    app.add_exception_handler(TrainerError, _on_trainer_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(HTTPException, _on_http_error)


def error_response(
    status: int,
    family: str,
    code: str,
    message: str,
    *,
    param: str | None = None,
    details: list[dict[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer with an `ErrorBody`."""
    found = [ErrorDetail(**detail) for detail in details or [problem(param, message)]]
    info = ErrorInfo(type=family, code=code, message=message, param=param, details=found)
    body = ErrorBody(error=info).model_dump_json()
    return Response(body, status, headers, media_type="application/json")


def internal_error() -> Response:
    """The answer to a defect of ours. It says nothing about it; the log does."""
    return error_response(
        *INTERNAL[:2], "internal", "the service failed to answer; its log says why"
    )


async def _on_trainer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TrainerError)
    kind = next((KINDS[cls] for cls in type(error).__mro__ if cls in KINDS), None)
    if kind is None:
        # No error of a request: let the last resort log it.
        raise error
    return error_response(
        kind.status,
        kind.family,
        error.code,
        error.message,
        param=error.param,
        details=error.details or [problem(error.param, error.message, error.hint)],
        headers=kind.headers,
    )


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The first part of a place says `query`, `path` or `header`; the name alone is clear enough.
    found = [item | {"loc": tuple(item["loc"])[1:]} for item in error.errors()]
    return await _on_trainer_error(request, refused(found))


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, family, message = _HTTP_ERRORS.get(error.status_code, _OTHER_HTTP_ERROR)
    return error_response(
        error.status_code, family, code, message or str(error.detail), headers=error.headers
    )
