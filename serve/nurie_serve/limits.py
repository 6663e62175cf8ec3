"""Limits around the application: size of a body, headers that protect the page's visitors."""

from __future__ import annotations

from http import HTTPStatus
from itertools import chain

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nurie_serve.caller import SCOPE_KEY
from nurie_serve.errors import Problem

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """ASGI middleware that adds the security headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


MAX_HEADER_BYTES = 2**15
"""Of all names and values of a request's header; the HTTP server itself has no limit."""


class HeaderLimit:
    """ASGI middleware that refuses requests whose headers are too long to be any good."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if sum(map(len, chain(*scope.get("headers", ())))) > MAX_HEADER_BYTES:
            problem = Problem(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                f"the request's headers have more than {MAX_HEADER_BYTES} bytes",
            )
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


class BodyLimit:
    """ASGI middleware that stops reading a body at the limit.

    The declared length is refused at once; a body without one (chunked) is counted while it
    arrives, because Ray Serve itself has no limit. A caller's own limit counts.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        caller = scope.get(SCOPE_KEY)
        most = self.max_bytes if caller is None else caller.limits.max_body_bytes
        refusal = declared_length_problem(Headers(scope=scope), most)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large(most)
            return message

        await self.app(scope, counted_receive, send)


def declared_length_problem(headers: Headers, max_bytes: int) -> Problem | None:
    """What is wrong with the length that a request declares, if anything is."""
    lengths = set(headers.getlist("content-length"))
    if len(lengths) > 1 or any(not (n.isascii() and n.isdigit()) for n in lengths):
        return Problem(
            HTTPStatus.BAD_REQUEST, "bad_content_length", "Content-Length is not one number"
        )
    # A number of more digits than any limit has would be slow to read.
    if any(len(length) > 19 or int(length) > max_bytes for length in lengths):
        return too_large(max_bytes)
    return None


def too_large(max_bytes: int) -> Problem:
    """A body has more bytes than it may."""
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the request is larger than {max_bytes} bytes",
    )
