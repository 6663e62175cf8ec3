"""F1 to F12: processes killed, disks full, stores damaged, bad jobs and bad versions."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil

from benchmarks.load.application import DIES, HANGS_ONCE, SLOW, TAKES_ALL_MEMORY
from benchmarks.load.crowd import Crowd
from benchmarks.load.endpoint import Endpoint, digest_of, drawings
from benchmarks.load.faults import kill, kill_replica, outage_s, send_meanwhile
from benchmarks.load.figures import Figure
from benchmarks.load.server import (
    COLORIZER,
    CONTROLLER,
    LEASE_S,
    PROXY,
    STEP_TIMEOUT_S,
    Server,
    ServerFailed,
)
from benchmarks.load.waiting import eventually
from nurie.config.serve import JobsConfig
from nurie_serve.client import Client

FILES = drawings()
KILLS = 3
PINGS = 40


def killed_replica(server: Server, endpoint: Endpoint) -> list[Figure]:
    """F1: SIGKILL of the replica in mid-job, again and again."""
    found = [
        kill_replica(endpoint, FILES, lambda: server.processes(COLORIZER)) for _ in range(KILLS)
    ]
    failed = sum(each.queued["status"] != "succeeded" for each in found)
    other = sum(digest_of(each.queued) != digest_of(found[0].before) for each in found)
    wrong = sum(each.waiting.status_code not in (200, 503) for each in found)
    slowest = max(each.back_after_s for each in found)
    note = f"{KILLS} kills"
    return [
        Figure("F1", "jobs that did not succeed", failed, "jobs", at_most=0, note=note),
        Figure("F1", "pictures with another sha256", other, "pictures", at_most=0),
        Figure("F1", "waiting visitors answered with neither 200 nor 503", wrong, "requests", 0, 0),
        Figure("F1", "until the queue moved again, slowest", slowest, "s", at_most=10),
    ]


async def poison(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """F2: a job that kills every replica that tries it, among good ones."""
    bad = await crowd.ask(seed=DIES, num_inference_steps=2)
    good = [await crowd.ask(num_inference_steps=2) for _ in range(6)]
    ends = [await crowd.follow(answer.document["id"]) for answer in (bad, *good)]
    (kind, data, _), *others = ends
    code = (data.get("error") or {}).get("code")
    failed = sum(end[0] != "done" for end in others)
    return [
        Figure("F2", "tries of a job that kills its replica", data.get("attempts"), "tries", 3, 3),
        _yes("F2", "it failed with worker_lost", kind == "failed" and code == "worker_lost"),
        Figure("F2", "other jobs that did not succeed", failed, "jobs", at_most=0),
    ]


def killed_proxy(server: Server, endpoint: Endpoint) -> list[Figure]:
    """F3: SIGKILL of the HTTP proxy while a program uses the client library."""
    client = Client(endpoint.address)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.colorize, FILES["sketch"], FILES["reference"], seed=1)
        kill(server.processes(PROXY))
        away = outage_s(endpoint)
        done = waiting.result()
    endpoint.asked.append(done.id)
    endpoint.accepted.append(done.id)
    return [
        Figure("F3", "nobody answers for", away, "s", at_most=8),
        _yes("F3", "the client's picture came", done.status == "succeeded"),
    ]


def killed_controller(server: Server, endpoint: Endpoint) -> list[Figure]:
    """F4: SIGKILL of Serve's controller."""
    kill(server.processes(CONTROLLER))
    failed = 0
    for _ in range(PINGS):
        failed += endpoint.get("/v1/options").status_code != 200
        time.sleep(0.1)
    failed += endpoint.colorize(FILES, num_inference_steps=1).status_code != 200
    eventually(lambda: server.processes(CONTROLLER), 30)
    return [Figure("F4", "failed requests", failed, "requests", 0, 0, f"{PINGS} reads, 1 picture")]


def killed_driver(server: Server, endpoint: Endpoint) -> list[Figure]:
    """F5: the driver and its whole cluster die and are started again."""
    done = endpoint.ended(endpoint.submit(FILES, seed=3)["id"])
    open_jobs = [endpoint.submit(FILES, seed=3) for _ in range(4)]
    eventually(endpoint.running)
    server.kill()
    began = time.monotonic()
    server.start()
    back = time.monotonic() - began
    found = [endpoint.ended(job["id"]) for job in (done, *open_jobs)]
    missing = sum(job["status"] != "succeeded" for job in found)
    other = sum(digest_of(job) != digest_of(done) for job in found)
    gone = endpoint.get(f"/v1/jobs/{done['id']}/images/0").status_code != 200
    return [
        Figure("F5", "jobs that did not succeed", missing, "jobs", at_most=0, note="5 jobs"),
        Figure("F5", "pictures with another sha256", other, "pictures", at_most=0),
        Figure("F5", "finished pictures that are gone", float(gone), "pictures", at_most=0),
        Figure("F5", "until it answered again", back, "s"),
    ]


async def hang(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """F6: a step that does not end."""
    (old,) = server.processes(COLORIZER)
    began = time.monotonic()
    answer = await crowd.ask(seed=HANGS_ONCE, num_inference_steps=2)
    following = asyncio.create_task(crowd.follow(answer.document["id"]))
    again = float("inf")
    async with asyncio.timeout(90):
        while again == float("inf"):
            job = (await crowd.send("GET", f"/v1/jobs/{answer.document['id']}")).document
            if job["attempts"] > 1 or (job["status"] == "queued" and job["started_at"]):
                again = time.monotonic() - began
            await asyncio.sleep(0.1)
    kind, data, _ = await following
    most = 2 * STEP_TIMEOUT_S + LEASE_S
    note = f"a step may take {STEP_TIMEOUT_S:g} s, a silent replica has its jobs {LEASE_S:g} s more"
    replaced = await asyncio.to_thread(_ends, old)
    return [
        Figure("F6", "until the job was given to another", again, "s", at_most=most, note=note),
        Figure("F6", "tries until its picture", data.get("attempts"), "tries", 2, 2),
        _yes("F6", "the job succeeded", kind == "done"),
        _yes("F6", "the replica was replaced", replaced),
    ]


def _ends(process: psutil.Process) -> bool:
    """Whether a process ends within the time that Ray Serve gives a replica to finish."""
    try:
        process.wait(60)
    except psutil.TimeoutExpired:
        return False
    return True


def rolling_update(server: Server, endpoint: Endpoint) -> list[Figure]:
    """F7: a new version is rolled out under load."""

    def roll_out() -> None:
        server.ask("start", name="second")
        eventually(lambda: endpoint.models() == ["second"], 90, 0.1)

    answers = send_meanwhile(endpoint, FILES, roll_out)
    failed = sum(answer.status_code != 200 for answer in answers)
    models = {answer.headers.get("x-model", " ").split()[0] for answer in answers}
    note = f"{len(answers)} requests meanwhile"
    return [
        Figure("F7", "failed requests", failed, "requests", at_most=0, note=note),
        Figure("F7", "versions that answered", len(models), "versions", 2, 2),
    ]


def bad_version(server: Server, endpoint: Endpoint) -> list[Figure]:
    """F8: a new version whose weights are damaged."""
    broken = server.folder / "broken"
    shutil.copytree(server.config.model, broken)
    weights = max(broken.rglob("*.safetensors"), key=lambda file: file.stat().st_size)
    *good, last = weights.read_bytes()
    weights.write_bytes(bytes([*good, last ^ 1]))
    refusals: list[str] = []

    def roll_out() -> None:
        try:
            server.ask("start", model=str(broken))
        except ServerFailed as error:
            refusals.append(str(error))

    answers = send_meanwhile(endpoint, FILES, roll_out)
    failed = sum(answer.status_code != 200 for answer in answers)
    status = server.ask("status")
    said = f"{refusals} {status}"
    named = weights.name in said or "digest" in said or "MANIFEST" in said
    server.ask("start", model=server.config.model, name="third")
    eventually(lambda: endpoint.models() == ["third"], 60, 0.1)
    note = f"{len(answers)} requests meanwhile; status {status['status']}"
    return [
        Figure("F8", "failed requests", failed, "requests", at_most=0, note=note),
        _yes("F8", "the bad version was refused", bool(refusals)),
        _yes("F8", "the reason names what is damaged", named),
    ]


async def locked_store(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """F10: another program holds the store's lock for a while."""
    file = Path(server.config.jobs.folder) / "jobs.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        waiting = [asyncio.create_task(crowd.ask(num_inference_steps=1)) for _ in range(4)]
        await asyncio.sleep(13)
        live = (await crowd.send("GET", "/healthz")).status
        connection.execute("ROLLBACK")
    answers = await asyncio.gather(*waiting)
    after = await crowd.ask("/v1/colorize", num_inference_steps=1)
    wrong = sum(answer.status not in (202, 503) for answer in answers)
    return [
        Figure("F10", "answers that are neither 202 nor 503", wrong, "requests", 0, 0, "13 s"),
        Figure("F10", "alive while locked", live, "status", 200, 200),
        Figure("F10", "a picture afterwards", after.status, "status", 200, 200),
    ]


def damaged_store(server: Server, endpoint: Endpoint) -> list[Figure]:
    """F10: a start with a store that is cut off; the server's own is not touched."""
    folder = server.folder / "damaged"
    folder.mkdir()
    whole = (Path(server.config.jobs.folder) / "jobs.db").read_bytes()
    (folder / "jobs.db").write_bytes(whole[:50_000])
    other = Server(folder=folder, jobs=JobsConfig(folder=str(folder)))
    try:
        other.start()
        said = ""
    except ServerFailed as error:
        said = str(error)
    finally:
        other.kill()
    return [
        _yes("F10", "a damaged store is refused by name", "jobs.db" in said),
    ]


async def out_of_memory(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """F11: memory does not suffice for one job."""
    answers = [
        await crowd.ask("/v1/colorize", seed=seed, num_inference_steps=2)
        for seed in (TAKES_ALL_MEMORY, SLOW)
    ]
    code = answers[0].document.get("code")
    return [
        _yes("F11", "it failed with out_of_memory", code == "out_of_memory"),
        Figure("F11", "the next job", answers[1].status, "status", 200, 200),
    ]


async def equal_keys(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """F12: fifty requests with one idempotency key at once."""
    headers = {"Idempotency-Key": f"fifty-{time.time()}"}
    answers = await asyncio.gather(*(crowd.ask(headers=headers, seed=7) for _ in range(50)))
    jobs = {answer.document["id"] for answer in answers if answer.status == 202}
    wrong = sum(answer.status != 202 for answer in answers)
    crowd.asked -= 49
    note = "a clock that jumps cannot be set here; tests/serve/test_store.py has a false one"
    return [
        Figure("F12", "jobs of 50 requests with one key", len(jobs), "jobs", 1, 1),
        Figure("F12", "answers that are not 202", wrong, "requests", at_most=0),
        Figure("F12", "a clock that jumps", None, "", note=note),
    ]


def _yes(row: str, name: str, held: bool) -> Figure:
    """Something that holds or does not."""
    return Figure(row, name, float(held), "1 is yes", at_least=1)
