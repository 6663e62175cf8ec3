"""The HTTP API and the page: a FastAPI application over a handle of the colorizer."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from ray import serve
from ray.serve.handle import DeploymentHandle

import nurie
from nurie.config.serve import ServeConfig
from nurie_serve import errors, examples
from nurie_serve.dispatch import Dispatcher
from nurie_serve.form import build_job, read_controls, read_form, read_images
from nurie_serve.limits import BodyLimit, SecurityHeaders
from nurie_serve.schema import ColorizeResult, colorize_request_schema, limited_controls, options

WEB = Path(__file__).parent / "web"
DECODING_AT_ONCE = 4
_PROBLEM = {"content": {errors.MEDIA_TYPE: {}}}
_COLORIZE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "description": "the picture; X-Seed holds its seed, X-Model the model that made it",
        "headers": {
            "X-Seed": {"schema": {"type": "integer"}},
            "X-Model": {"schema": {"type": "string"}},
        },
    },
    400: {**_PROBLEM, "description": "the body is missing or broken"},
    413: {**_PROBLEM, "description": "the body or a picture is too large"},
    415: {**_PROBLEM, "description": "not a multipart form, or not a PNG, JPEG or WebP picture"},
    422: {**_PROBLEM, "description": "a field is missing, unknown, damaged or out of range"},
    429: {**_PROBLEM, "description": "the queue is full; see Retry-After"},
    503: {**_PROBLEM, "description": "no replica answered in time; see Retry-After"},
}


def create_api(config: ServeConfig, colorizer: DeploymentHandle) -> FastAPI:
    """Build the HTTP application.

    Args:
        config: The application's settings.
        colorizer: Handle of the colorizer deployment.
    """
    app = FastAPI(
        title="nurie",
        version=nurie.__version__,
        summary="Colours a line sketch with the colours and style of a reference picture.",
        docs_url=None,  # FastAPI's page loads scripts from another origin; ours is in web/
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=config.limits.max_body_bytes)
    app.add_middleware(SecurityHeaders)
    errors.install_handlers(app)
    dispatcher = Dispatcher(colorizer, config.limits.deadline_s)
    _add_colorize(app, config, dispatcher)
    _add_information(app, config, dispatcher)
    _add_health(app, dispatcher)
    _add_page(app)
    return app


def _add_colorize(app: FastAPI, config: ServeConfig, dispatcher: Dispatcher) -> None:
    limits, controls = config.limits, limited_controls(config.limits)
    decoding = asyncio.Semaphore(DECODING_AT_ONCE)

    async def answer(request: Request) -> ColorizeResult:
        form = await read_form(request)
        try:
            values = read_controls(form, controls)
            files = await read_images(form)
        finally:
            await form.close()
        async with decoding:
            job = await asyncio.to_thread(build_job, files, values, limits)
        return await dispatcher.colorize(job)

    @app.post(
        "/v1/colorize",
        response_class=Response,
        responses=_COLORIZE_RESPONSES,
        openapi_extra={"requestBody": colorize_request_schema(controls)},
    )
    async def colorize(request: Request) -> Response:
        """Colour one sketch and return the picture."""
        try:
            # Ray Serve's own time-out can be switched off by a client's header; this one cannot.
            async with asyncio.timeout(limits.deadline_s):
                result = await answer(request)
        except TimeoutError:
            raise errors.deadline_exceeded(limits.deadline_s) from None
        headers = {"X-Seed": str(result.seed), "X-Model": result.model, "Cache-Control": "no-store"}
        return Response(result.png, media_type="image/png", headers=headers)


def _add_information(app: FastAPI, config: ServeConfig, dispatcher: Dispatcher) -> None:
    controls = limited_controls(config.limits)

    @app.get("/v1/options")
    async def get_options() -> dict[str, Any]:
        """Every picture, control and limit of /v1/colorize."""
        return options(controls, config.limits, (await dispatcher.describe()).defaults)

    @app.get("/v1/models")
    async def get_models() -> dict[str, Any]:
        """The model that answers."""
        return {"models": [asdict(await dispatcher.describe())]}

    @app.get("/v1/examples")
    def get_examples() -> dict[str, Any]:
        """Pairs of pictures to try the page with."""
        return {"examples": examples.listing()}

    @app.get("/v1/examples/{name}/{picture}", response_class=Response)
    def get_example(name: str, picture: str) -> Response:
        """One picture of an example."""
        return Response(examples.find(name, picture), media_type="image/png")


def _add_health(app: FastAPI, dispatcher: Dispatcher) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The HTTP process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {**_PROBLEM, "description": "no replica answers"}})
    async def readyz() -> JSONResponse:
        """A replica has loaded its model, made a warm-up picture, and answers."""
        await dispatcher.check_ready()
        return JSONResponse({"status": "ready"})


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(WEB / "docs.html")

    app.mount("/web", StaticFiles(directory=WEB))


@serve.ingress()
class Ingress:
    """The ingress deployment: holds the HTTP application, needs no model."""

    def __init__(self, config: ServeConfig, colorizer: DeploymentHandle) -> None:
        self._config = config
        self._colorizer = colorizer

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve when the replica starts."""
        return create_api(self._config, self._colorizer)
