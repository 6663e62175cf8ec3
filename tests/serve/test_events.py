"""The event stream of a job: order, replay, places in the queue, previews, its end."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from nurie_serve.documents import JobDocument
from nurie_serve.jobs.store import JobStore
from nurie_serve.routes.events import Stream
from nurie_serve.watch import Watcher
from tests.serve.conftest import UNLUCKY
from tests.serve.test_colorizer import submit as submit_to_store
from tests.serve.test_jobs import ended, submit
from tests.serve.waiting import eventually


def parse(text: str) -> list[tuple[str, dict, int | None]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in fields:
            number = int(fields["id"]) if "id" in fields else None
            found.append((fields["event"], json.loads(fields["data"]), number))
    return found


def events(client: TestClient, job: dict, last: str | None = None) -> list:
    headers = {"Last-Event-ID": last} if last is not None else {}
    response = client.get(f"/v1/jobs/{job['id']}/events", headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse(response.text)


@pytest.fixture
def quick_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nurie_serve.colorizer.PROGRESS_EVERY_S", 0.0)


def test_story_of_a_job(client: TestClient, handle, files: dict, quick_progress: None) -> None:
    ended(client, submit(client, files))  # so that there is an estimate
    handle.painter.gate.clear()
    job = submit(client, files, num_inference_steps="4", preview_every="2")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(events, client, job)
        eventually(lambda: len(handle.jobs) == 2)
        handle.painter.gate.set()
        story = reading.result(20)
    kinds = [kind for kind, _, _ in story]
    assert kinds[0] == "queued"
    assert kinds[1:4] in (["started", "progress", "progress"], ["queued", "started", "progress"])
    assert kinds[-1] == "done"
    numbers = [number for _, _, number in story if number is not None]
    assert numbers == sorted(set(numbers))
    first = next(data for kind, data, _ in story if kind == "progress")
    assert (first["step"], first["steps"]) == (1, 4)
    assert first["eta_s"] >= 0
    assert story[0][1]["position"] == 1
    assert story[0][1]["eta_s"] is not None
    assert story[-1][1]["images"][0]["url"].endswith("/images/0")
    replayed = events(client, job)
    assert [kind for kind, _, _ in replayed] == ["queued", "started", *["progress"] * 3, "done"]


def test_previews_are_small_pictures(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    job = submit(client, files, num_inference_steps="9", preview_every="1")
    eventually(lambda: handle.jobs)
    store = handle.replica.queue._store
    handle.painter.preview = lambda *_: handle.painter.gate.clear() or [Image.new("RGB", (32, 32))]
    handle.painter.gate.set()
    kinds = lambda: [event.kind for event in store.events(job["id"], 0)]  # noqa: E731
    eventually(lambda: "preview" in kinds())
    assert kinds().count("preview") == 1, "only the newest is kept"
    preview = next(event for event in store.events(job["id"], 0) if event.kind == "preview")
    kind, data = preview.data["image"].split(",", 1)
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    client.post(f"/v1/jobs/{job['id']}/cancel")
    handle.painter.gate.set()
    assert events(client, job)[-1][0] == "cancelled"
    assert "preview" not in kinds(), "nobody needs it any more"


@pytest.mark.parametrize("value", ["101", "-1", "x"])
def test_preview_every_is_checked(client: TestClient, files: dict, value: str) -> None:
    response = client.post("/v1/jobs", files=files, data={"preview_every": value})
    assert (response.status_code, response.json()["field"]) == (422, "preview_every")


def test_replay_begins_after_the_last_event(client: TestClient, files: dict) -> None:
    job = submit(client, files)
    full = events(client, job)
    numbered = [event for event in full if event[2] is not None]
    assert events(client, job, str(numbered[0][2])) == numbered[1:]
    for strange in ("999", "x", "-1", ""):
        assert events(client, job, strange) == numbered, "the whole story"
    assert events(client, job, str(numbered[-1][2])) == [], "there is nothing more to tell"


def test_places_in_the_queue_move(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    jobs = [submit(client, files, num_inference_steps=str(n)) for n in (1, 2, 3)]
    eventually(lambda: handle.jobs)
    assert client.get(f"/v1/jobs/{jobs[2]['id']}").json()["queue"]["position"] == 2
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(events, client, jobs[2])
        client.post(f"/v1/jobs/{jobs[1]['id']}/cancel")
        eventually(lambda: client.get(f"/v1/jobs/{jobs[2]['id']}").json()["queue"])
        time.sleep(1.6)
        handle.painter.gate.set()
        story = reading.result(20)
    places = [(data["position"], number) for kind, data, number in story if kind == "queued"]
    assert places[0][1] is not None
    assert (1, None) in places, "the new place, which is not replayed"


def test_failure_tells_why(client: TestClient, files: dict) -> None:
    kind, data, _ = events(client, submit(client, files, seed=str(UNLUCKY)))[-1]
    assert (kind, data["error"]["code"]) == ("failed", "internal_error")


def reading_alone(handle) -> SimpleNamespace:
    """What a stream needs of the service."""
    store: JobStore = handle.replica.queue._store

    return SimpleNamespace(
        watcher=Watcher(store),
        store=store,
        document=lambda _: JobDocument.model_construct(finished_at=None),
    )


def test_deleted_job_ends_the_stream(handle) -> None:
    service = reading_alone(handle)
    job_id = submit_to_store(service.store, 1)

    async def read() -> list[str]:
        watching = asyncio.create_task(service.watcher.run())
        lines = []
        async for line in Stream(service, "me", job_id, 0).lines():
            lines.append(line)
            service.store.delete("me", job_id)
        watching.cancel()
        return lines

    assert "event: queued" in asyncio.run(read())[0]


def test_an_end_just_after_the_events_were_read_is_told(handle) -> None:
    service = reading_alone(handle)
    store: JobStore = handle.replica.queue._store
    job_id = submit_to_store(store, 1)
    newest = store.events(job_id, 0)[-1].number

    def read_then_end(job_id: str, after: int) -> list:
        found = store.events(job_id, after)
        if not found:
            store.cancel("me", job_id)
        return found

    service.store = SimpleNamespace(events=read_then_end, get=store.get)
    service.document = lambda snapshot: JobDocument.model_construct(
        finished_at=snapshot.job.finished_at and datetime.fromtimestamp(snapshot.job.finished_at)
    )

    async def read() -> list[str]:
        return [line async for line in Stream(service, "me", job_id, newest).lines()]

    assert [kind for kind, _, _ in parse("".join(asyncio.run(read())))] == ["cancelled"]


def test_readers_of_one_moment_share_a_read(handle) -> None:
    store: JobStore = handle.replica.queue._store
    watcher = Watcher(store)
    job_id = submit_to_store(store, 1)
    began, go_on = [], threading.Event()

    def read(after: int) -> int:
        began.append(after)
        assert go_on.wait(10)
        return len(began)

    async def ask() -> list[int]:
        watching = asyncio.create_task(watcher.run())
        with watcher.listen(job_id) as changed:
            await changed.wait()
            same = [asyncio.create_task(watcher.read(job_id, read, 0)) for _ in range(3)]
            other = asyncio.create_task(watcher.read(job_id, read, 1))
            changed.clear()
            store.cancel("me", job_id)
            await changed.wait()
            newer = asyncio.create_task(watcher.read(job_id, read, 0))
            await asyncio.sleep(0)
            go_on.set()
            found = await asyncio.gather(*same, other, newer)
        watching.cancel()
        return found

    asyncio.run(ask())
    assert sorted(began) == [0, 0, 1], "three share one; who asks after a change reads anew"


def test_silent_stream_is_kept_open(handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nurie_serve.routes.events._PING_EVERY_S", 0.05)
    service = reading_alone(handle)
    job_id = submit_to_store(service.store, 1)
    handle.replica.queue.take("l", 1)

    async def read() -> list[str]:
        stream = Stream(service, "me", job_id, 0).lines()
        return [await anext(stream) for _ in range(4)]

    assert asyncio.run(read())[2:] == [": still here\n\n"] * 2
