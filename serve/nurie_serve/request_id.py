"""A name for every request: in its answer, in the document of a problem, in Ray Serve's log."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """Of the request that is answered now; None outside of one."""
    return _current.get()


class RequestId:
    """ASGI middleware that takes a request's own name if it is a plain short one, else makes one.

    The application and the proxy before it both have this; the proxy's name goes on. Ray Serve
    fails on names that are not ASCII, with a status of 500, and adds the header once more.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(HEADER)
        plain = len(given) == 1 and _PLAIN.fullmatch(given[0])
        request_id = given[0] if plain else str(uuid.uuid4())
        scope = {**scope, "headers": list(scope["headers"])}
        MutableHeaders(scope=scope)[HEADER] = request_id
        _current.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)
