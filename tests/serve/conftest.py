"""An API over a real job store and a replica without Ray around it, and pictures to send."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from nurie.config.serve import JobsConfig, LimitsConfig, ServeConfig
from nurie.inference.controls import CONTROLS
from nurie.inference.layers import LayeredPicture
from nurie_serve.colorizer import Colorizer
from nurie_serve.decoding import DecoderPool
from nurie_serve.ingress import create_api
from nurie_serve.run import ENVIRONMENT
from nurie_serve.schema import ModelInfo

# Read by Ray when it starts, which the first test that needs it may do before the server.
os.environ.update(ENVIRONMENT)

INFO = ModelInfo("test-model", "ab" * 32, "cpu", "float32", ["unet"], {"guidance_scale": 1.3})
UNLUCKY = 13
KNOWN = {control.name for control in CONTROLS}


class Painter:
    """Has the pipeline's signature; paints each sketch in a colour made of its seed."""

    def __init__(self) -> None:
        self.calls: list[SimpleNamespace] = []
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0
        self.error: Exception = RuntimeError("unlucky: secret path")

    def __call__(
        self, sketch, reference, seed, num_inference_steps=1, callback_on_step_end=None, **others
    ):
        self.calls.append(
            SimpleNamespace(
                sketch=sketch,
                reference=reference,
                seed=seed,
                num_inference_steps=num_inference_steps,
                **others,
            )
        )
        if UNLUCKY in seed:
            raise self.error
        for step in range(num_inference_steps or 1):
            self.gate.wait(30)
            self.steps += 1
            if callback_on_step_end:
                callback_on_step_end(self, step, 0, {"predicted": sketch})
        images = [
            Image.new("RGB", picture.size, (number % 256, 0, 0))
            for picture, number in zip(sketch, seed, strict=True)
        ]
        layered = [
            LayeredPicture(image, picture.convert("L"), picture.convert("L"), 0.0)
            for image, picture in zip(images, sketch, strict=True)
        ]
        controls = {"num_inference_steps": num_inference_steps} | others
        controls = {name: v for name, v in controls.items() if name in KNOWN}
        return SimpleNamespace(images=images, seeds=seed, layered=layered, controls=controls)

    def preview(self, predicted: list[Image.Image], side: int) -> list[Image.Image]:
        return [image.convert("RGB").resize((32, 32)) for image in predicted]

    @property
    def jobs(self) -> list[SimpleNamespace]:
        """The calls after the warm-up."""
        return self.calls[1:]


class Response:
    """What a deployment handle returns: awaitable."""

    def __init__(self, outcome: Callable[[], Any]) -> None:
        self.outcome = outcome

    def __await__(self):
        return self._wait().__await__()

    async def _wait(self) -> Any:
        await asyncio.sleep(0)
        return await self.outcome()


class Handle:
    """Stands where the handle of the colorizer deployment stands: calls a replica directly."""

    def __init__(self, config: ServeConfig) -> None:
        self.painter = Painter()
        self.replica = Colorizer(config, lambda _: (self.painter, INFO))
        self.faults: list[Exception] = []
        self.leases: list[str] = []

    class _Method:
        def __init__(self, answer: Callable[..., Any]) -> None:
            self.remote = answer

    @property
    def jobs(self) -> list[SimpleNamespace]:
        return self.painter.jobs

    @property
    def work(self) -> _Method:
        return self._Method(lambda lease: Response(lambda: self._work(lease)))

    async def _work(self, lease: str) -> list[str]:
        self.leases.append(lease)
        if self.faults:
            # Dies with jobs in its hands.
            await asyncio.to_thread(self.replica.queue.take, lease, 4)
            raise self.faults.pop(0)
        return await self.replica.work(lease)


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
def config(tmp_path: Path) -> ServeConfig:
    return ServeConfig(
        limits=LimitsConfig(
            max_body_bytes=1_000_000, max_pixels=1_000_000, max_side=512, deadline_s=20.0
        ),
        jobs=JobsConfig(folder=str(tmp_path / "jobs")),
        batch_wait_timeout_s=0.0,
        max_queued_requests=8,
        allowed_hosts=("testserver", "127.0.0.1"),
    )


class SharedPool(DecoderPool):
    """Starting a child takes longer than most tests."""

    def close(self) -> None:
        """It goes on to the next test."""


@pytest.fixture(scope="session")
def decoders() -> Iterator[DecoderPool]:
    pool = SharedPool(1, 1_000_000)
    yield pool
    DecoderPool.close(pool)


@pytest.fixture(autouse=True)
def _one_pool_for_all(monkeypatch: pytest.MonkeyPatch, decoders: DecoderPool) -> None:
    monkeypatch.setattr("nurie_serve.service.DecoderPool", lambda *_: decoders)


@pytest.fixture
def handle(config: ServeConfig) -> Iterator[Handle]:
    handle = Handle(config)
    yield handle
    handle.replica.close()


@pytest.fixture
def client(config: ServeConfig, handle: Handle) -> Iterator[TestClient]:
    with TestClient(create_api(config, handle), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def files() -> dict[str, bytes]:
    return {"sketch": PNG, "reference": encode(Image.new("RGB", (48, 64), "orange"))}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; it ends with the module, because it blocks asyncio's loops."""
    from playwright.sync_api import sync_playwright

    from tests.serve.browser import ARGUMENTS, EXECUTABLE, NAMES

    if EXECUTABLE is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is on PATH")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=EXECUTABLE, args=ARGUMENTS)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An endpoint for the browser."""
    from tests.serve.browser import Studio

    studio = Studio(tmp_path_factory.mktemp("studio"))
    studio.start()
    yield studio
    studio.close()


@pytest.fixture
def page(browser: Any, studio: Any) -> Iterator[Any]:
    """The page, freshly opened by somebody who was never here."""
    from tests.serve.browser import visit

    with visit(browser, studio.address) as page:
        yield page
