"""The routes of durable jobs, over a real store and a replica without Ray around it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy.exc import OperationalError

from nurie.config.serve import ServeConfig
from nurie_serve import caller as caller_module
from nurie_serve.asked import Asked
from nurie_serve.caller import Caller
from nurie_serve.ingress import create_api
from nurie_serve.jobs.files import PictureFiles
from nurie_serve.jobs.store import JobStore, NewJob, Snapshot
from nurie_serve.service import Service
from tests.serve.conftest import PNG, UNLUCKY, Handle
from tests.serve.waiting import eventually


def submit(client: TestClient, files: dict, key: str | None = None, **data) -> dict:
    headers = {"Idempotency-Key": key} if key else {}
    response = client.post("/v1/jobs", files=files, data=data, headers=headers)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    return response.json()


def ended(client: TestClient, job: dict) -> dict:
    def look() -> dict | None:
        found = client.get(f"/v1/jobs/{job['id']}").json()
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    return eventually(look)


def check(response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_job_runs_and_its_picture_can_be_fetched(client: TestClient, files: dict) -> None:
    accepted = submit(client, files, seed="5", num_inference_steps="2")
    assert accepted["params"]["seed"] == 5
    assert accepted["params"]["line_overlay"] == 1.0, "defaults are filled in"
    job = ended(client, accepted)
    assert job["status"] == "succeeded"
    assert job["model"].startswith("test-model sha256:")
    assert {"queue_s", "decode_s", "denoise_s", "encode_s"} == set(job["timing"])
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]
    (image,) = job["images"]
    response = client.get(image["url"])
    plain = client.get(f"{image['url']}?metadata=0").content
    assert hashlib.sha256(plain).hexdigest() == image["sha256"]
    assert Image.open(io.BytesIO(response.content)).size == (image["width"], image["height"])
    assert response.headers["content-disposition"].startswith("attachment;")
    headers = {"If-None-Match": response.headers["etag"]}
    assert client.get(image["url"], headers=headers).status_code == 304


def test_same_seed_same_picture(client: TestClient, files: dict) -> None:
    jobs = [ended(client, submit(client, files, seed=seed)) for seed in ("5", "5", "6")]
    first, again, other = (job["images"][0]["sha256"] for job in jobs)
    assert first == again != other


def test_picture_that_is_not_there(client: TestClient, files: dict) -> None:
    job = ended(client, submit(client, files))
    check(client.get(f"/v1/jobs/{job['id']}/images/1"), 404, "not_found")
    check(client.get(f"/v1/jobs/{job['id']}/images/0?format=bmp"), 422, "out_of_range")
    for job_id in ("1", "..%2f", "x" * 5000):
        check(client.get(f"/v1/jobs/{job_id}"), 404, "not_found")


def test_idempotency_key(client: TestClient, handle, files: dict) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: submit(client, files, key="k"), range(8)))
    assert len({job["id"] for job in jobs}) == 1
    assert ended(client, jobs[0])["status"] == "succeeded"
    assert submit(client, files, key="k")["status"] == "succeeded"
    other = client.post(
        "/v1/jobs", files=files, data={"seed": "3"}, headers={"Idempotency-Key": "k"}
    )
    check(other, 409, "idempotency_conflict")
    assert len(handle.jobs) == 1


def test_list_and_pages(client: TestClient, files: dict) -> None:
    ids = [submit(client, files)["id"] for _ in range(3)][::-1]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    second = client.get("/v1/jobs", params={"limit": 2, "cursor": first["cursor"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids
    assert second["cursor"] is None
    check(client.get("/v1/jobs", params={"status": "unknown"}), 422, "out_of_range")
    check(client.get("/v1/jobs", params={"limit": 0}), 422, "out_of_range")


def test_priority(config: ServeConfig, handle, files: dict) -> None:
    limits = config.limits.model_copy(update={"max_priority": 2})
    config = config.model_copy(update={"limits": limits})
    with TestClient(create_api(config, handle)) as client:
        handle.painter.gate.clear()
        submit(client, files, seed="1")
        eventually(lambda: handle.jobs)
        wanted = {2: -1, 3: 0, 4: 2, 5: 2, 6: 1}
        jobs = {
            seed: submit(client, files, seed=seed, priority=value, num_inference_steps=seed)
            for seed, value in wanted.items()
        }
        # Equal to the last one in all but its priority, so it goes along.
        submit(client, files, seed="7", priority="-10", num_inference_steps="6")
        found = [client.get(f"/v1/jobs/{job['id']}").json() for job in jobs.values()]
        assert [job["queue"]["position"] for job in found] == [5, 4, 1, 2, 3]
        assert [job["priority"] for job in found] == list(wanted.values())
        handle.painter.gate.set()
        eventually(lambda: len(handle.jobs) == 6)
        assert [job.seed for job in handle.jobs] == [[1], [4], [5], [6, 7], [3], [2]]
        response = client.post("/v1/jobs", files=files, data={"priority": "3"})
        check(response, 422, "out_of_range")
        assert "a whole number from -10 to 2" in response.json()["detail"]


def test_priority_counts_for_idempotency(client: TestClient, files: dict) -> None:
    first = submit(client, files, key="k")
    assert submit(client, files, key="k", priority="0")["id"] == first["id"]
    headers = {"Idempotency-Key": "k"}
    other = client.post("/v1/jobs", files=files, data={"priority": "-1"}, headers=headers)
    check(other, 409, "idempotency_conflict")
    check(client.post("/v1/jobs", files=files, data={"priority": "1"}), 422, "out_of_range")
    two = [("priority", (None, "0"))] * 2 + list(files.items())
    check(client.post("/v1/jobs", files=two), 422, "duplicate_field")


def test_cancel_stops_at_the_next_step(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    running = submit(client, files, num_inference_steps="50")
    eventually(lambda: handle.jobs)
    queued = submit(client, files)
    assert (queued["status"], queued["queue"]["position"]) == ("queued", 1)
    for job in (running, running, queued):
        answer = client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    eventually(lambda: not handle.replica._pulse.keeper.wanted(running["id"]))
    handle.painter.gate.set()
    assert ended(client, submit(client, files))["status"] == "succeeded"
    assert handle.painter.steps == 3, "the warm-up's, one of the cancelled job, one of the last"
    assert ended(client, running)["images"] == []


def test_cancel_all(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    jobs = [submit(client, files, num_inference_steps="9")]
    eventually(lambda: handle.jobs)
    jobs += [submit(client, files) for _ in range(3)]
    assert client.post("/v1/jobs/cancel", params={"status": "queued"}).json() == {"count": 3}
    assert client.post("/v1/jobs/cancel").json() == {"count": 1}
    assert {ended(client, job)["status"] for job in jobs} == {"cancelled"}
    handle.painter.gate.set()


def test_delete(client: TestClient, config: ServeConfig, files: dict) -> None:
    job = ended(client, submit(client, files))
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    check(client.delete(f"/v1/jobs/{job['id']}"), 404, "not_found")
    check(client.get(job["images"][0]["url"]), 404, "not_found")


def test_one_bad_job_of_a_batch_fails_alone(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    submit(client, files, num_inference_steps="2")
    eventually(lambda: handle.jobs)
    jobs = [submit(client, files, seed=seed) for seed in ("1", str(UNLUCKY), "2")]
    handle.painter.gate.set()
    first, bad, last = (ended(client, job) for job in jobs)
    assert handle.jobs[1].seed == [1, UNLUCKY, 2]
    assert (first["status"], last["status"]) == ("succeeded", "succeeded")
    assert (bad["status"], bad["error"]["code"]) == ("failed", "internal_error")
    assert "secret" not in str(bad)


def test_wait_that_is_over_leaves_the_job(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    headers = {"Prefer": "wait=0"}
    response = client.post("/v1/colorize", files=files, headers=headers)
    assert response.status_code == 202
    assert response.headers["location"].endswith(response.json()["id"])
    handle.painter.gate.set()
    assert ended(client, response.json())["status"] == "succeeded"


def test_colorize_as_json(client: TestClient, files: dict) -> None:
    headers = {"Accept": "application/json"}
    job = client.post("/v1/colorize", files=files, headers=headers).json()
    assert job["status"] == "succeeded"
    assert client.get(job["images"][0]["url"]).status_code == 200


def test_jobs_of_an_earlier_life_are_done(config: ServeConfig, files: dict) -> None:
    jobs_config = config.jobs.model_copy(update={"lease_s": 0.5})
    config = config.model_copy(update={"jobs": jobs_config})
    dead, alive = Handle(config), Handle(config)
    dead.painter.gate.clear()
    with TestClient(create_api(config, dead)) as client:
        jobs = [submit(client, files, seed=str(seed)) for seed in range(3)]
        eventually(lambda: dead.jobs)
    dead.painter.gate.set()
    with TestClient(create_api(config, alive)) as client:
        done = [ended(client, job) for job in jobs]
    assert {job["status"] for job in done} == {"succeeded"}
    assert sorted(seed for job in alive.jobs for seed in job.seed) == [0, 1, 2]


def test_callers_are_strangers(config: ServeConfig, handle, files: dict) -> None:
    app = create_api(config, handle)

    async def identify(request: Request) -> caller_module.Caller:
        return caller_module.Caller(request.headers["x-name"])

    app.dependency_overrides[caller_module.identify] = identify
    with TestClient(app, headers={"x-name": "ann"}) as client:
        job = ended(client, submit(client, files))
        stranger = {"x-name": "bob"}
        paths = [f"/v1/jobs/{job['id']}", job["images"][0]["url"]]
        for path in paths:
            check(client.get(path, headers=stranger), 404, "not_found")
        check(client.delete(paths[0], headers=stranger), 404, "not_found")
        check(client.post(f"{paths[0]}/cancel", headers=stranger), 404, "not_found")
        assert client.get("/v1/jobs", headers=stranger).json()["jobs"] == []
        assert client.get(paths[1]).status_code == 200


def test_full_disk(client: TestClient, files: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PictureFiles, "write", full)
        check(client.post("/v1/jobs", files=files), 507, "storage_full")
        assert client.get("/healthz").status_code == 200
    assert ended(client, submit(client, files))["status"] == "succeeded"


def test_disk_with_little_room(
    client: TestClient, config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ("/readyz", "/v2/health/ready")
    least = config.jobs.min_free_bytes
    for free in (least - 1, OSError(5, "Input/output error")):
        with monkeypatch.context() as patch:

            def look(*_: object, found: int | OSError = free) -> SimpleNamespace:
                if isinstance(found, OSError):
                    raise found
                return SimpleNamespace(free=found)

            patch.setattr("nurie_serve.jobs.files.shutil.disk_usage", look)
            for path in paths:
                check(client.get(path), 503, "storage_full")
            assert client.get("/healthz").status_code == 200
    assert [client.get(path).status_code for path in paths] == [200, 200]


def test_other_file_systems_tell_no_free_space() -> None:
    assert PictureFiles("memory://jobs").free_bytes() is None


def test_store_that_does_not_answer(
    client: TestClient, files: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise OperationalError("BEGIN", None, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "num_queued", locked)
        response = client.post("/v1/jobs", files=files)
    check(response, 503, "store_unavailable")
    assert "retry-after" in response.headers


def test_visitor_who_leaves_while_accepted_leaves_no_job(
    config: ServeConfig, handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(config, handle)
    values = dict.fromkeys(("seed", "width", "height"))
    asked = Asked(values, {"sketch": PNG, "reference": PNG}, {})
    writing, left = threading.Event(), threading.Event()
    submit_now = service.store.submit

    def submit_slowly(new: NewJob) -> Snapshot:
        writing.set()
        left.wait(20)
        return submit_now(new)

    async def leave() -> None:
        caller = Caller("me", config.limits)
        accepting = asyncio.create_task(service.submit(caller, asked, deadline=time.time() + 60))
        await asyncio.to_thread(writing.wait, 20)
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting
        left.set()
        await asyncio.to_thread(eventually, lambda: service.store.load()[0] == {"cancelled": 1})

    monkeypatch.setattr(service.store, "submit", submit_slowly)
    asyncio.run(leave())
    service.store.close()
