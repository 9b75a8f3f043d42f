"""What the routes stand on: the service's parts, the token, the body, and where to run store calls.

Not for what a route does. FastAPI resolves these for the routers in `routes/`.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ParamSpec, TypeVar

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection

from configs.errors import BodyTooLarge, RequestInvalid, Unauthorized
from configs.names import Backend
from configs.settings import Settings
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore

TOKEN_HEADER = "X-TRAINER-TOKEN"
MAX_BODY_BYTES = 1024 * 1024

_JSON = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """One API's parts."""

    backend: Backend
    settings: Settings
    store: JobStore
    box: SecretBox
    nudge: Callable[[], None]
    """Tells the tracker that there is something to do; returns at once."""

    @cached_property
    def token_digest(self) -> bytes | None:
        """SHA-256 of the token that every client must send; None (also for "") when none is."""
        token = self.settings.api_token
        plain = token.get_secret_value() if token else ""
        return hashlib.sha256(plain.encode()).digest() if plain else None

    async def read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a read of one row.

        On SQLite at once: it takes less time (about 0.1 ms, and no writer makes it wait under WAL)
        than the way to a thread and back. PostgreSQL answers over a network, so it gets a thread.
        """
        if self._local_reads:
            return call(*args, **kwargs)
        return await run_in_threadpool(call, *args, **kwargs)

    @cached_property
    def _local_reads(self) -> bool:
        return self.settings.store_url.startswith("sqlite")


def get_service(connection: HTTPConnection) -> Service:
    """The parts that `create_app` was given."""
    service: Service = connection.app.state.service
    return service


async def _service(request: Request) -> Service:
    # async: FastAPI would send a plain function to a thread.
    return get_service(request)


OpenService = Annotated[Service, Depends(_service)]
"""The service for anybody: health routes only."""


class TokenRequired(APIKeyHeader):
    """The service, for requests with the operator's token only; `/docs` shows it as a scheme.

    One dependency for both: a route cannot get at the service and forget the token, and each
    dependency costs FastAPI some 20 µs.
    """

    def __init__(self) -> None:
        super().__init__(
            name=TOKEN_HEADER, scheme_name="token", description="TRAINER_API_TOKEN, when it is set"
        )

    async def __call__(self, request: HTTPConnection) -> Service:  # type: ignore[override]
        service = get_service(request)
        if service.token_digest is None:
            return service
        # Digests of bytes: a header may hold any byte, and text that is not ASCII cannot be
        # compared in constant time. Starlette decodes headers as Latin-1, which loses nothing.
        given = request.headers.get(TOKEN_HEADER, "").encode("latin-1")
        if not hmac.compare_digest(hashlib.sha256(given).digest(), service.token_digest):
            raise Unauthorized(
                f"the header {TOKEN_HEADER} is missing or wrong",
                hint=f"Send {TOKEN_HEADER} with the value of the service's TRAINER_API_TOKEN.",
            )
        return service


AuthorizedService = Annotated[Service, Depends(TokenRequired())]


def refuse_large(request: Request) -> None:
    """Refuse a body that says itself that it is too long, before a byte of it is read."""
    length = request.headers.get("content-length", "")
    # Longer numbers are refused unread: `int` refuses to read thousands of digits.
    if length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY_BYTES):
        raise _too_large()


async def read_json(request: Request) -> bytes:
    """The body of a JSON request, not parsed.

    The routes read bodies themselves, since FastAPI would read them before it asks for the token.
    A content type is asked for because browsers send one without it, or with `text/plain`, to any
    address from any page; `application/json` they send only where they are allowed to.

    Raises:
        HTTPException: 415, the content type is not JSON.
        BodyTooLarge: over 1 MiB; no more than that was read.
        RequestInvalid: the client went away in the middle.
    """
    if not _JSON.fullmatch(request.headers.get("content-type", "")):
        raise HTTPException(415, "the body must be JSON, with the header 'Content-Type: "
                                 "application/json'")  # fmt: skip
    refuse_large(request)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise _too_large()
    except ClientDisconnect:
        raise RequestInvalid("the connection ended before the body did") from None
    return bytes(body)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is over the limit of {MAX_BODY_BYTES} bytes",
        hint="Refer to data by datasets[].source; a request carries none.",
    )
