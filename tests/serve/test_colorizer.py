"""The replica without Ray Serve around it: batches, deadlines, heartbeat, one bad job alone."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from nurie.config.serve import LimitsConfig, ServeConfig
from nurie_serve.colorizer import Colorizer
from nurie_serve.schema import ColorizeJob, ModelInfo


class Painter:
    """Has the pipeline's signature; paints each sketch in a colour made of its seed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0

    def __call__(
        self, sketch, reference, seed, num_inference_steps=1, callback_on_step_end=None, **others
    ):
        self.batches.append(seed)
        if 13 in seed:
            raise RuntimeError("unlucky")
        for step in range(num_inference_steps):
            self.gate.wait(30)
            self.steps += 1
            if callback_on_step_end:
                callback_on_step_end(self, step, 0, {})
        images = [
            Image.new("RGB", picture.size, (number % 256, 0, 0))
            for picture, number in zip(sketch, seed, strict=True)
        ]
        return SimpleNamespace(images=images, seeds=seed)


@pytest.fixture
def painter() -> Painter:
    return Painter()


@pytest.fixture
def colorizer(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> Colorizer:
    # The only part of @serve.batch that asks for a replica around it.
    warning = "ray.serve.batching._BatchQueue._warn_if_max_batch_size_exceeds_max_ongoing_requests"
    monkeypatch.setattr(warning, lambda self: None)
    config = ServeConfig(
        max_batch_size=4, batch_wait_timeout_s=0.5, limits=LimitsConfig(deadline_s=20)
    )
    return Colorizer(config, lambda _: (painter, ModelInfo("m", "0" * 64, "cpu", "float32")))


def job(seed: int, size: int = 64, steps: int = 1, deadline: float = 60.0) -> ColorizeJob:
    picture = Image.new("RGB", (size, size), "white")
    controls = {"num_inference_steps": steps}
    return ColorizeJob(picture, picture, seed, controls, time.time() + deadline)


def colours(results: list) -> list[int]:
    return [Image.open(io.BytesIO(result.png)).getpixel((0, 0))[0] for result in results]


async def begun(painter: Painter) -> None:
    """Wait until a job has reached the pipeline."""
    async with asyncio.timeout(10):
        while len(painter.batches) < 2:
            await asyncio.sleep(0.01)


def test_warms_up_before_it_serves(colorizer: Colorizer, painter: Painter) -> None:
    assert painter.batches == [[0]]


def test_batches_equal_jobs_and_gives_each_its_own(colorizer: Colorizer, painter: Painter) -> None:
    async def run() -> list:
        return await asyncio.gather(*(colorizer.colorize(job(seed)) for seed in (1, 2, 3, 4)))

    results = asyncio.run(run())
    assert painter.batches[1:] == [[1, 2, 3, 4]]
    assert [result.seed for result in results] == [1, 2, 3, 4]
    assert colours(results) == [1, 2, 3, 4]


def test_other_sizes_and_steps_run_apart(colorizer: Colorizer, painter: Painter) -> None:
    async def run() -> list:
        jobs = [job(1), job(2, size=96), job(3), job(4, steps=2)]
        return await asyncio.gather(*map(colorizer.colorize, jobs))

    assert colours(asyncio.run(run())) == [1, 2, 3, 4]
    assert painter.batches[1:] == [[1, 3], [2], [4]]


def test_one_bad_job_fails_alone(colorizer: Colorizer) -> None:
    async def run() -> list:
        jobs = [job(1), job(13), job(2)]
        return await asyncio.gather(*map(colorizer.colorize, jobs), return_exceptions=True)

    first, bad, second = asyncio.run(run())
    assert colours([first, second]) == [1, 2]
    assert isinstance(bad, RuntimeError)


def test_late_job_is_not_run(colorizer: Colorizer, painter: Painter) -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(colorizer.colorize(job(1, deadline=-1)))
    assert painter.batches[1:] == []


def test_cancelled_job_stops_at_the_next_step(colorizer: Colorizer, painter: Painter) -> None:
    async def run() -> None:
        before = painter.steps
        painter.gate.clear()
        task = asyncio.create_task(colorizer.colorize(job(1, steps=50)))
        await begun(painter)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        painter.gate.set()
        after = await colorizer.colorize(job(2))
        assert colours([after]) == [2]
        assert painter.steps - before == 2, "one step of the cancelled job, one of the next"

    asyncio.run(run())


def test_health_check_notices_a_stuck_step(
    colorizer: Colorizer, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        painter.gate.clear()
        task = asyncio.create_task(colorizer.colorize(job(1)))
        await begun(painter)
        colorizer.check_health()
        now = time.monotonic()
        with monkeypatch.context() as patch:
            patch.setattr("nurie_serve.colorizer.time.monotonic", lambda: now + 21)
            with pytest.raises(RuntimeError, match="no denoising step finished in 20 seconds"):
                colorizer.check_health()
        painter.gate.set()
        await task
        colorizer.check_health()

    asyncio.run(run())
