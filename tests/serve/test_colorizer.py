"""The replica without Ray Serve around it: warm-up, callers that leave, a stuck step, leases."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nurie.checkpoints.manifest import write_manifest
from nurie.config.serve import LimitsConfig, ServeConfig
from nurie.inference.pipeline import ColorizationPipeline
from nurie_serve import run
from nurie_serve.colorizer import Colorizer
from nurie_serve.jobs.files import PictureFiles
from nurie_serve.jobs.pixels import pack
from nurie_serve.jobs.store import JobStore, NewJob
from tests.serve.conftest import INFO, UNLUCKY, Painter, line_drawing
from tests.serve.waiting import eventually
from tests.tiny import tiny_components, tiny_model

PACKED = pack(line_drawing())


@pytest.fixture
def store(config: ServeConfig) -> Iterator[JobStore]:
    store = JobStore(config.jobs, 10)
    yield store
    store.close()


@pytest.fixture
def painter() -> Painter:
    return Painter()


@pytest.fixture
def colorizer(config: ServeConfig, painter: Painter) -> Colorizer:
    limits = LimitsConfig(deadline_s=20, step_timeout_s=10)
    config = config.model_copy(update={"limits": limits, "batch_wait_timeout_s": 0.3})
    return Colorizer(config, lambda _: (painter, INFO))


def submit(store: JobStore, seed: int, steps: int = 1, **others) -> str:
    pictures = [store.pictures.add("me", PACKED, (64, 64)).id for _ in range(2)]
    inputs = dict(zip(("sketch", "reference"), pictures, strict=True))
    params = {"seed": seed, "num_inference_steps": steps}
    return store.submit(NewJob("me", params, inputs, f"{steps}", "0", **others)).job.id


def status(store: JobStore, job_id: str) -> str:
    return store.get("me", job_id).job.status


def test_warms_up_before_it_serves(colorizer: Colorizer, painter: Painter) -> None:
    assert [call.seed for call in painter.calls] == [[0]]


def test_jobs_of_another_endpoint_are_left_to_it(colorizer: Colorizer, config: ServeConfig) -> None:
    same = config.model_copy(update={"model": "another"})
    run._check_jobs_are_its_own(same)
    other = config.model_copy(update={"port": 8001})
    with pytest.raises(ValueError, match=r"in use by the endpoint at http://127\.0\.0\.1:8000"):
        run._check_jobs_are_its_own(other)
    colorizer.close()
    run._check_jobs_are_its_own(other)


def test_nothing_to_do(colorizer: Colorizer) -> None:
    assert asyncio.run(colorizer.work("l")) == []


def test_waits_a_moment_for_company(
    colorizer: Colorizer, painter: Painter, store: JobStore
) -> None:
    async def work() -> list[str]:
        task = asyncio.create_task(colorizer.work("l"))
        await asyncio.sleep(0.1)
        submit(store, 2)
        return await task

    first = submit(store, 1)
    ended = asyncio.run(work())
    assert painter.jobs[0].seed == [1, 2]
    assert first in ended
    assert len(ended) == 2


def test_caller_that_leaves_does_not_take_the_job_along(
    colorizer: Colorizer, painter: Painter, store: JobStore
) -> None:
    job_id = submit(store, 1)

    async def work() -> None:
        painter.gate.clear()
        task = asyncio.create_task(colorizer.work("l"))
        await asyncio.to_thread(eventually, lambda: painter.jobs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        painter.gate.set()
        await asyncio.to_thread(eventually, lambda: status(store, job_id) == "succeeded")

    asyncio.run(work())


def test_late_job_ends_at_the_next_step(
    colorizer: Colorizer, painter: Painter, store: JobStore
) -> None:
    job_id = submit(store, 1, steps=50, deadline=time.time() + 0.7)
    painter.gate.clear()

    async def work() -> None:
        task = asyncio.create_task(colorizer.work("l"))
        await asyncio.to_thread(eventually, lambda: status(store, job_id) == "failed")
        painter.gate.set()
        await task

    asyncio.run(work())
    assert store.get("me", job_id).job.error["code"] == "deadline_exceeded"
    assert painter.steps < 50


def test_stuck_step_is_unhealthy_and_loses_the_lease(
    colorizer: Colorizer, painter: Painter, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(store, 1)

    async def work() -> None:
        painter.gate.clear()
        task = asyncio.create_task(colorizer.work("l"))
        await asyncio.to_thread(eventually, lambda: painter.jobs)
        colorizer.check_health()
        real = time.monotonic
        with monkeypatch.context() as patch:
            patch.setattr("nurie_serve.lease_keeper.time.monotonic", lambda: real() + 11)
            with pytest.raises(RuntimeError, match="no denoising step finished in 10 seconds"):
                colorizer.check_health()
            before = store.get("me", job_id).job.leased_until
            await asyncio.sleep(0.6)
            assert store.get("me", job_id).job.leased_until == before
        painter.gate.set()
        await task
        colorizer.check_health()

    asyncio.run(work())


def test_lease_is_kept_while_steps_are_made(
    colorizer: Colorizer, painter: Painter, store: JobStore
) -> None:
    colorizer._config = colorizer._config.model_copy(
        update={"jobs": colorizer._config.jobs.model_copy(update={"lease_s": 0.6})}
    )
    job_id = submit(store, 1)

    async def work() -> None:
        painter.gate.clear()
        task = asyncio.create_task(colorizer.work("l"))
        await asyncio.to_thread(eventually, lambda: painter.jobs)
        before = store.get("me", job_id).job.leased_until
        later = lambda: store.get("me", job_id).job.leased_until > before  # noqa: E731
        await asyncio.to_thread(eventually, later)
        painter.gate.set()
        await task

    asyncio.run(work())
    assert status(store, job_id) == "succeeded"


def test_store_in_trouble_gives_the_jobs_back(
    colorizer: Colorizer, painter: Painter, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(store, 1)

    def broken(*_: object) -> None:
        raise OSError("disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(colorizer.queue, "finish", broken)
        with pytest.raises(OSError, match="disk is gone"):
            asyncio.run(colorizer.work("l"))
    assert status(store, job_id) == "queued"
    asyncio.run(colorizer.work("l2"))
    assert status(store, job_id) == "succeeded"


def test_no_room_for_the_picture(
    colorizer: Colorizer, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(store, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PictureFiles, "write", full)
        asyncio.run(colorizer.work("l"))
    assert store.get("me", job_id).job.error["code"] == "storage_full"
    again = submit(store, 1)
    asyncio.run(colorizer.work("l2"))
    assert status(store, again) == "succeeded"


def test_failed_job_is_no_failed_replica(colorizer: Colorizer, store: JobStore) -> None:
    bad, good = submit(store, UNLUCKY), submit(store, 1)
    asyncio.run(colorizer.work("l"))
    assert (status(store, bad), status(store, good)) == ("failed", "succeeded")


def test_a_replica_encodes_a_reference_once(
    config: ServeConfig, store: JobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    components = tiny_components(tmp_path / "components")
    model = tiny_model(adapters=True).eval()
    ColorizationPipeline.from_model(model, components).save_pretrained(folder)
    write_manifest(folder)
    replica = Colorizer(config.model_copy(update={"model": str(folder)}))
    cache = replica._pipeline.reference_cache
    reference = store.pictures.add("me", PACKED, (64, 64)).id
    made = []
    for number in range(3):
        drawn = pack(line_drawing(64 + 32 * number, 64 + 32 * number))
        sketch = store.pictures.add("me", drawn, (64, 64)).id
        inputs = {"sketch": sketch, "reference": reference}
        params = {"seed": number, "num_inference_steps": 1, "height": 64, "width": 64}
        store.submit(NewJob("me", params, inputs, f"{number}", "0"))
        before = cache.misses
        assert len(asyncio.run(replica.work(f"lease-{number}"))) == 1
        made.append(cache.misses - before)
    replica.close()
    assert made == [3, 0, 0], "tokens, latents and features of the foreground"
