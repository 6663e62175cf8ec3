"""Health and metadata in the form of KServe's Open Inference Protocol, version 2."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

import nurie
from nurie_serve.routes.answers import problems
from nurie_serve.service import Service


def router(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter(prefix="/v2", tags=["health"])

    async def model(name: str) -> dict[str, Any]:
        info = await service.dispatcher.find_model(name)
        return {"name": info.name, "versions": [info.digest], "platform": "nurie"}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """The HTTP process is alive."""
        return {"live": True}

    @routes.get("/health/ready", responses=problems(503))
    async def ready() -> dict[str, bool]:
        """A replica answers, and the disk has room."""
        await service.check_ready()
        return {"ready": True}

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Name and version of the server; pictures are made at /v1/colorize."""
        return {"name": "nurie", "version": nurie.__version__, "extensions": []}

    @routes.get("/models/{name:path}/ready", responses=problems(404, 503))
    async def model_ready(name: str) -> dict[str, Any]:
        """A replica answers with this model."""
        return {"name": (await model(name))["name"], "ready": True}

    @routes.get("/models/{name:path}", responses=problems(404, 503))
    async def model_metadata(name: str) -> dict[str, Any]:
        """The model and its digest."""
        return {**await model(name), "inputs": [], "outputs": []}

    return routes
