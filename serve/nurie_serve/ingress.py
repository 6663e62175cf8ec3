"""The HTTP application and its deployment."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

import nurie
from nurie.config.serve import ServeConfig
from nurie_serve import errors
from nurie_serve.documents import ProblemDocument
from nurie_serve.gate import guard
from nurie_serve.keys import Keyring
from nurie_serve.routes import (
    batches,
    colorize,
    events,
    information,
    inspect,
    jobs,
    keys,
    kserve,
    openai,
    preprocess,
    uploads,
)
from nurie_serve.routes.answers import problems
from nurie_serve.service import Service


def create_api(config: ServeConfig, colorizer: DeploymentHandle) -> FastAPI:
    """Build the HTTP application.

    Args:
        config: The application's settings.
        colorizer: Handle of the colorizer deployment.

    Raises:
        StoreError: If the job store cannot be used.
        ConfigError: If the file of keys is missing or wrong.
    """
    service = Service(config, colorizer)
    app = FastAPI(
        title="nurie",
        version=nurie.__version__,
        summary="Colours a line sketch with the colours and style of a reference picture.",
        docs_url=None,  # FastAPI's page loads scripts from another origin; ours is in web/
        redoc_url=None,
        lifespan=service.running,
    )
    keyring = None if config.keys_file is None else Keyring(config.keys_file)
    guard(app, config, keyring)
    errors.install_handlers(app)
    routed = (colorize, jobs, events, batches, uploads, preprocess, information, openai, kserve)
    for module in routed:
        app.include_router(module.router(service))
    app.include_router(inspect.router())
    app.include_router(keys.router(service, keyring))
    information.add_page(app)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Describe a parameter that cannot be used as what it is here: a problem document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document["components"]["schemas"]
            schemas["Problem"] = ProblemDocument.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for methods in document["paths"].values():
                for operation in methods.values():
                    if "422" in operation["responses"]:
                        operation["responses"]["422"] = problems(422)[422]
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


@serve.ingress()
class Ingress:
    """The ingress deployment: holds the HTTP application, needs no model."""

    def __init__(self, config: ServeConfig, colorizer: DeploymentHandle) -> None:
        self._config = config
        self._colorizer = colorizer

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve when the replica starts."""
        return create_api(self._config, self._colorizer)
