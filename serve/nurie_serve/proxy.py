"""What Ray Serve's HTTP proxies do before they look at a request.

The proxies obey headers of visitors: one switches time-outs off, one makes work go on for visitors
who left. And they tell everybody which applications run here. They take the middleware of
:func:`middleware` from the environment variable ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``,
which ``nurie serve`` and the manifests set.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from nurie_serve.errors import Problem
from nurie_serve.gate import StripOverrides

HIDDEN_PATH = "/-/routes"


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


def middleware() -> list[Middleware]:
    """Called by every proxy when it starts."""
    return [Middleware(HideRoutes), Middleware(StripOverrides)]
