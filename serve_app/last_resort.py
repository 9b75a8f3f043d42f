"""The outermost layer of an API: an exception that nobody foresaw becomes a log entry and a 500.

Starlette's own layer for this answers and then raises on, so that every server logs it once more
in its own way. This one logs it once: where, and the traceback; never the body or the headers of
the request, which hold secrets.
"""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.responses import internal_error

logger = logging.getLogger(__name__)


class LastResort:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            logger.exception("%s %r failed", scope["method"], scope["path"])
            if not started:
                await internal_error()(scope, receive, send)
