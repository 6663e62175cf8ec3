"""What the server can do and whether it can do it now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from nurie.inference.formats import FORMATS
from nurie_serve import examples
from nurie_serve.caller import WhoAsks
from nurie_serve.jobs.tables import QUEUED, RUNNING
from nurie_serve.routes.answers import PICTURE, problems
from nurie_serve.schema import options
from nurie_serve.service import Service

WEB = Path(__file__).parents[1] / "web"


def router(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter(tags=["information"])
    _add_information(routes, service)
    _add_health(routes, service)
    return routes


def add_page(app: FastAPI) -> None:
    """The page and its files."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(WEB / "docs.html")

    app.mount("/web", StaticFiles(directory=WEB))


def _add_information(routes: APIRouter, service: Service) -> None:
    @routes.get("/v1/options", responses=problems(503))
    async def get_options(caller: WhoAsks) -> dict[str, Any]:
        """Every picture, control and limit of /v1/colorize, as the caller may use them."""
        defaults = (await service.dispatcher.describe()).defaults
        return options(caller.controls, caller.limits, defaults, FORMATS)

    @routes.get("/v1/models", responses=problems(503))
    async def get_models() -> dict[str, Any]:
        """The models that answer: one, or two during a rolling update."""
        return {"models": [asdict(info) for info in await service.dispatcher.models()]}

    @routes.get("/v1/models/{name:path}", responses=problems(404, 503))
    async def get_model(name: str) -> dict[str, Any]:
        """One model."""
        return asdict(await service.dispatcher.find_model(name))

    @routes.get("/v1/queue")
    async def get_queue() -> dict[str, Any]:
        """How much is waiting: jobs of all callers, and the seconds that a recent one ran."""
        counts, pace = await asyncio.to_thread(service.store.load)
        waiting, running = (counts.get(status, 0) for status in (QUEUED, RUNNING))
        most = service.config.max_queued_requests
        estimate = pace.until(waiting + 1)
        return {"queued": waiting, "running": running, "max_queued": most, "eta_s": estimate}

    @routes.get("/v1/examples")
    def get_examples() -> dict[str, Any]:
        """Pairs of pictures to try the page with."""
        return {"examples": examples.listing()}

    @routes.get(
        "/v1/examples/{name}/{picture}",
        response_class=Response,
        responses={200: {**PICTURE, "description": "the picture"}, **problems(404)},
    )
    def get_example(name: str, picture: str) -> Response:
        """One picture of an example."""
        return Response(examples.find(name, picture), media_type="image/png")


def _add_health(routes: APIRouter, service: Service) -> None:
    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The HTTP process is alive."""
        return {"status": "alive"}

    @routes.get("/readyz", responses=problems(503))
    async def readyz() -> dict[str, str]:
        """A replica has loaded its model, made a warm-up picture, and lives; the disk has room."""
        await service.check_ready()
        return {"status": "ready"}
