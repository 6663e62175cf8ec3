"""What Ray Serve's HTTP proxies do before they look at a request.

The proxies obey headers of visitors: one switches time-outs off, one makes work go on for visitors
who left. They tell everybody which applications run here. And they take in bodies as fast as these
come, of any size, whether the application takes them or not, and keep answers for visitors who do
not read them. They take the middleware of
:func:`middleware` from the environment variable ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``,
which ``nurie serve`` and the manifests set.
"""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nurie.config.serve import LimitsConfig
from nurie_serve.errors import Problem
from nurie_serve.gate import StripOverrides
from nurie_serve.limits import HeaderLimit, declared_length_problem, too_large
from nurie_serve.request_id import RequestId

HIDDEN_PATH = "/-/routes"
MAX_BODY_VARIABLE = "NURIE_MAX_BODY_BYTES"
"""Environment variable with the largest body, else the default of ``limits.max_body_bytes``."""
GRACE_S = 20.0
MIN_BYTES_PER_S = 4096
"""A body that comes slower than this, after the time of grace, is given up; so is an answer that is
read slower."""
LINGER_S = 2.0


class HideRoutes:
    """Answers the path under which a proxy lists its applications as if there were none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["path"].rstrip("/") == HIDDEN_PATH:
            problem = Problem(HTTPStatus.NOT_FOUND, "not_found", "Not Found")
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


class LimitBody:
    """Ends requests whose body is too large or comes too slowly, before it fills the memory.

    A proxy keeps what it has received until a replica takes it. The application's own limit counts
    there, in the replica: too late where the replica is busy or the proxy is faster.

    Args:
        app: The proxy.
        max_bytes: Largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(scope, receive, send, self.max_bytes)
        refusal = declared_length_problem(Headers(scope=scope), self.max_bytes)
        if refusal is not None:
            await refusal.response()(scope, body.receive, body.send)
            return
        await self.app(scope, body.receive, body.send)


class _Body:
    """One request's body on its way in.

    What is refused looks to the proxy like a visitor who left, so that it cancels the call. A
    visitor who is answered before all was sent gets a moment to stop, then the connection ends.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._received = 0
        self._due = asyncio.get_running_loop().time() + GRACE_S
        headers = Headers(scope=scope)
        self._complete = not ("content-length" in headers or "transfer-encoding" in headers)
        self._answered = self._early = self._refused = False

    async def receive(self) -> Message:
        if self._refused or self._early:
            return {"type": "http.disconnect"}
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._due):
                message = await self._receive()
        except TimeoutError:
            return await self._refuse(_too_slow())
        size = len(message.get("body", b""))
        self._received += size
        self._due += size / MIN_BYTES_PER_S
        if self._received > self._max_bytes:
            return await self._refuse(too_large(self._max_bytes))
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if not self._refused:
            await self._answer(message)

    async def _refuse(self, problem: Problem) -> Message:
        self._refused = True
        if not self._answered:
            await problem.response()(self._scope, self._receive, self._answer)
        return {"type": "http.disconnect"}

    async def _answer(self, message: Message) -> None:
        self._answered = True
        if message["type"] == "http.response.start" and not self._complete:
            self._early = True
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "headers": headers}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self._early and last:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Throw away what still comes: ending at once would take the answer from the visitor."""
        try:
            async with asyncio.timeout(LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass


class DropSlowReaders:
    """Ends connections whose visitors leave their answers lying.

    What a visitor does not read fills the memory of the proxy. An event stream without news has
    nothing that lies there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # ASGI does not show the connection; uvicorn's ``send`` is a method of what holds it.
        connection = getattr(getattr(send, "__self__", None), "transport", None)
        if scope["type"] == "http" and connection is not None:
            send = _Answer(connection, send).send
        await self.app(scope, receive, send)


class _Answer:
    """One answer on its way out.

    Args:
        connection: To the visitor.
        send: Of the server.
    """

    def __init__(self, connection: asyncio.WriteTransport, send: Send) -> None:
        self._connection = connection
        self._send = send
        self._written = 0
        self._complete = False
        self._watch: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._drop_if_slow())
        self._written += len(message.get("body", b""))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True
            if not self._connection.get_write_buffer_size():
                self._watch.cancel()

    async def _drop_if_slow(self) -> None:
        """Return when all is read or the connection has ended."""
        lying, slow = self._connection.get_write_buffer_size(), 0
        # A connection that is closing waits for its visitor, too.
        while lying or not (self._complete or self._connection.is_closing()):
            before, written = lying, self._written
            await asyncio.sleep(GRACE_S / 2)
            lying = self._connection.get_write_buffer_size()
            taken = self._written - written + before - lying
            slow = slow + 1 if before and lying and taken < MIN_BYTES_PER_S * GRACE_S / 2 else 0
            if slow == 2:
                self._connection.abort()


def _too_slow() -> Problem:
    return Problem(
        HTTPStatus.REQUEST_TIMEOUT,
        "body_too_slow",
        f"the request's body came slower than {MIN_BYTES_PER_S} bytes a second",
    )


def middleware() -> list[Middleware]:
    """Called by every proxy when it starts; a request meets the last one first."""
    most = int(os.environ.get(MAX_BODY_VARIABLE) or LimitsConfig().max_body_bytes)
    return [
        Middleware(HeaderLimit),
        Middleware(LimitBody, max_bytes=most),
        Middleware(HideRoutes),
        Middleware(StripOverrides),
        Middleware(RequestId),
        Middleware(DropSlowReaders),
    ]
