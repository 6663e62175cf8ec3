"""Who comes in: addresses, other sites' pages, API keys, headers that would override limits.

ASGI middleware around the whole application, so that no route can be forgotten.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nurie.config import keys
from nurie.config.keys import ApiKey
from nurie.config.serve import LimitsConfig, ServeConfig
from nurie_serve.caller import ANYBODY, SCOPE_KEY, Caller
from nurie_serve.errors import Problem
from nurie_serve.keys import Keyring, limits_of
from nurie_serve.limits import BodyLimit, HeaderLimit, SecurityHeaders
from nurie_serve.request_id import RequestId
from nurie_serve.tracing import trace_of

READING = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/favicon.ico", "/healthz", "/readyz")
OPEN_FOLDERS = ("/web/", "/health/", "/v2/health/")
ADMIN_FOLDERS = ("/v1/keys",)
KEY_PARAMETERS = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token"})
OVERRIDES = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
    }
)
"""Headers that tell Ray Serve how to treat a request; that is not for visitors to say."""
MAX_WRONG_KEYS = 20
WRONG_KEYS_PERIOD_S = 60.0
_MAX_ADDRESSES = 10_000


def guard(app: FastAPI, config: ServeConfig, keyring: Keyring | None) -> None:
    """Put everything of this module around an application, and the limits of bodies."""
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, max_bytes=config.limits.max_body_bytes)
    app.add_middleware(Authentication, keyring=keyring, limits=config.limits)
    app.add_middleware(OwnSite, hosts=config.hosts)
    app.add_middleware(StripOverrides)
    app.add_middleware(HeaderLimit)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestId)


class StripOverrides:
    """Removes the headers by which a visitor could switch off Ray Serve's limits."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if "headers" in scope:
            # Ray Serve takes a dash and an underscore for the same.
            kept = [
                (name, value)
                for name, value in scope["headers"]
                if name.lower().replace(b"_", b"-") not in OVERRIDES
            ]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)


class OwnSite:
    """Refuses what the page of another site sends, and addresses that cannot be this server's.

    Without keys this is what keeps web pages that a person visits away from the endpoint on their
    own machine: a page cannot forge ``Host``, ``Origin`` and ``Sec-Fetch-Site``.

    Args:
        app: The application.
        hosts: Names that requests may use for this server; empty allows all.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is not None:
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            # Some databases have no such character.
            return Problem(HTTPStatus.NOT_FOUND, "not_found", "no name here has a NUL character")
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and _name_of(f"//{host}") not in self.hosts:
            return Problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                "wrong_host",
                "this server does not answer under this name; allowed_hosts of its configuration "
                "lists those it does",
            )
        if scope["method"] not in READING and _from_another_site(headers):
            return Problem(
                HTTPStatus.FORBIDDEN, "cross_origin", "pages of other sites may not send this"
            )
        return None


class Authentication:
    """Lets requests with a key in that has the scope they need.

    Args:
        app: The application.
        keyring: The keys; None lets everybody do everything but administration.
        limits: The server's own.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring | None, limits: LimitsConfig) -> None:
        self.app = app
        self.keyring = keyring
        self.limits = limits
        self.attempts = WrongKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            key = self._key(scope)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        traceparent = trace_of(Headers(scope=scope))
        caller = Caller(ANYBODY, self.limits, traceparent=traceparent)
        if key is not None:
            limits = limits_of(key, self.limits)
            caller = Caller(key.name, limits, key.limits.max_active, traceparent)
        await self.app({**scope, SCOPE_KEY: caller}, receive, send)

    def _key(self, scope: Scope) -> ApiKey | None:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name.lower() in KEY_PARAMETERS for name, _ in query):
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                "key_in_address",
                "addresses end up in logs: send the key as `Authorization: Bearer KEY`, and "
                "replace this one",
            )
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        wanted = _scope_for(scope["method"], path)
        if self.keyring is None:
            if wanted == "admin":
                raise Problem(
                    HTTPStatus.FORBIDDEN, "no_keys", "this server has no keys; see nurie keys add"
                )
            return None
        if wanted is None:
            return None
        key = self._recognise(self.keyring, Headers(scope=scope), scope.get("client"))
        if not key.allows(wanted):
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "scope_missing",
                f"this needs a key of scope {wanted}; yours has {key.scope}",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope" scope="{wanted}"'},
            )
        return key

    def _recognise(
        self, keyring: Keyring, headers: Headers, client: Sequence[object] | None
    ) -> ApiKey:
        kind, _, text = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not text.strip():
            raise _refused("key_missing", "send a key as `Authorization: Bearer KEY`")
        key = keyring.find(text.strip())
        if key is None:
            if self.attempts.too_many(str(client[0]) if client else ""):
                raise Problem(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "too_many_wrong_keys",
                    "too many wrong keys from this address",
                    headers={"Retry-After": f"{WRONG_KEYS_PERIOD_S:.0f}"},
                )
            raise _refused("key_wrong", "there is no such key", error="invalid_token")
        if key.expired(datetime.now(UTC)):
            raise _refused("key_expired", "this key has ended", error="invalid_token")
        return key


class _Attempts(NamedTuple):
    since: float
    number: int


class WrongKeys:
    """Counts wrong keys by address. A right key always comes in, so nobody is locked out."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, _Attempts] = OrderedDict()

    def too_many(self, address: str) -> bool:
        """Count one more; True past the most that are answered with 401."""
        now = time.monotonic()
        known = self._by_address.pop(address, _Attempts(now, 0))
        if now - known.since > WRONG_KEYS_PERIOD_S:
            known = _Attempts(now, 0)
        self._by_address[address] = _Attempts(known.since, known.number + 1)
        if len(self._by_address) > _MAX_ADDRESSES:
            self._by_address.popitem(last=False)
        return known.number >= MAX_WRONG_KEYS


def _scope_for(method: str, path: str) -> keys.Scope | None:
    """The scope that a request needs; None needs no key."""
    if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
        return None
    if path.startswith(ADMIN_FOLDERS):
        return "admin"
    return "read" if method in READING else "colorize"


def _from_another_site(headers: Headers) -> bool:
    """Whether a page of another site sent this; programs send neither header."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "cross-site"
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


def _name_of(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _refused(code: str, detail: str, error: str | None = None) -> Problem:
    challenge = 'Bearer realm="nurie"' + (f', error="{error}"' if error else "")
    return Problem(HTTPStatus.UNAUTHORIZED, code, detail, headers={"WWW-Authenticate": challenge})
