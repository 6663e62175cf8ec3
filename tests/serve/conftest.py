"""An API whose colorizer is a small object of this file, and pictures to send."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from nurie.config.serve import LimitsConfig, ServeConfig
from nurie_serve.ingress import create_api
from nurie_serve.run import ENVIRONMENT
from nurie_serve.schema import ColorizeJob, ColorizeResult, ModelInfo

# Read by Ray when it starts, which the first test that needs it may do before the server.
os.environ.update(ENVIRONMENT)

INFO = ModelInfo("test-model", "ab" * 32, "cpu", "float32", ["unet"], {"guidance_scale": 1.3})


class Response:
    """What a deployment handle returns: awaitable, can be cancelled."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.cancelled = False

    def __await__(self):
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if callable(self.outcome):
            await asyncio.sleep(0)
            return await self.outcome()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Stands where the handle of the colorizer deployment stands; paints one flat colour."""

    def __init__(self) -> None:
        self.jobs: list[ColorizeJob] = []
        self.outcomes: list[Any] = []
        self.responses: list[Response] = []
        self.info: Any = INFO

    class _Method:
        def __init__(self, answer: Callable[..., Any]) -> None:
            self.remote = answer

    @property
    def colorize(self) -> _Method:
        return self._Method(self._colorize)

    @property
    def describe(self) -> _Method:
        return self._Method(lambda: Response(self.info))

    def _colorize(self, job: ColorizeJob) -> Response:
        self.jobs.append(job)
        outcome = (
            self.outcomes.pop(0) if self.outcomes else ColorizeResult(PNG, job.seed, INFO.label)
        )
        self.responses.append(Response(outcome))
        return self.responses[-1]


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def line_drawing(width: int = 64, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).ellipse((8, 8, width - 8, height - 8), outline="black", width=2)
    return image


PNG = encode(line_drawing())


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
def config() -> ServeConfig:
    return ServeConfig(
        limits=LimitsConfig(
            max_body_bytes=1_000_000, max_pixels=1_000_000, max_side=512, deadline_s=5.0
        )
    )


@pytest.fixture
def client(config: ServeConfig, handle: Handle) -> Iterator[TestClient]:
    with TestClient(create_api(config, handle), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def files() -> dict[str, bytes]:
    return {"sketch": PNG, "reference": encode(Image.new("RGB", (48, 64), "orange"))}
