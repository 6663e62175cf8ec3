"""S1 to S8: visitors of every kind, against a model that takes no processor time."""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import numpy as np

from benchmarks.load.application import SLOW, SLOW_STEP_S
from benchmarks.load.crowd import Answer, Crowd, repeat
from benchmarks.load.figures import Figure, p99
from benchmarks.load.server import DEADLINE_S, PROXY, Server

CLIENTS = 8
FLOOD = 200
SLOW_CONNECTIONS = 200
SLOW_READERS, LARGE_MB = 20, 10
SLOW_LIMIT_S = 30.0
STREAMS, STREAMED_JOBS = 500, 50
STORM = 200
AFTERWARDS = 15
SOAK_S = 600.0
CUTS = 100
ENDLESS_MB = 300
MORE_DESCRIPTORS = 20
SETTLED_S = 6.0
"""Visitors themselves keep connections open for some seconds."""


async def steady(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S1: every client sends a job, follows it to its end, sends the next."""
    accepts: list[float] = []
    ends: list[str | None] = []

    async def one() -> None:
        answer = await crowd.ask(num_inference_steps=1)
        if answer.status == 202:
            accepts.append(answer.seconds)
            ends.append((await crowd.follow(answer.document["id"]))[0])

    before, began = crowd.statuses.copy(), time.monotonic()
    await repeat(one, CLIENTS, seconds)
    rate = len(ends) / (time.monotonic() - began)
    statuses = crowd.statuses - before
    wrong = sum(statuses.values()) - statuses[202] + sum(end != "done" for end in ends)
    note = f"{CLIENTS} clients for {seconds:g} s, a step of 10 ms"
    return [
        Figure("S1", "jobs made", rate, "jobs/s", at_least=20, note=note),
        Figure(
            "S1", "errors", wrong, "requests", at_most=0, note=f"{dict(statuses)} {Counter(ends)}"
        ),
        Figure("S1", "until accepted, p99", p99(accepts), "s", at_most=1),
    ]


async def flood(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S2: many clients that do not wait for anything."""
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await crowd.ask(num_inference_steps=20))

    before = server.memory_bytes()
    await repeat(one, FLOOD, seconds)
    grown = (server.memory_bytes() - before) / 1e6
    began = time.monotonic()
    await crowd.idle(180)
    refused = [answer for answer in answers if answer.status == 429]
    without = sum("retry-after" not in answer.headers for answer in refused)
    wrong = sum(answer.status not in (200, 202, 429) for answer in answers)
    note = f"{FLOOD} clients for {seconds:g} s; {len(refused)} of {len(answers)} refused"
    return [
        Figure("S2", "answers that are neither 202 nor 429", wrong, "requests", 0, 0, note),
        Figure("S2", "refused without Retry-After", without, "requests", at_most=0),
        Figure("S2", "refused", len(refused), "requests", at_least=1),
        Figure("S2", "memory of Ray Serve's processes, growth", grown, "MB", at_most=100),
        Figure("S2", "until the queue was empty again", time.monotonic() - began, "s"),
    ]


async def slow_connections(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S3: visitors who send or read one byte a second."""

    async def healthy() -> float:
        return p99([(await crowd.send("GET", "/v1/options")).seconds for _ in range(100)])

    server.ask("echo")
    base = await healthy()
    async with _slow_sockets(server.config.port) as (writers, readers):
        began, closed_s = time.monotonic(), None
        await asyncio.sleep(2)  # two hundred visitors who come at once are S2
        beside = await healthy()
        while time.monotonic() - began < SLOW_LIMIT_S:
            for each in writers:
                _trickle(each)
            for each in readers:
                _sip(each)
            await asyncio.sleep(1)
            if closed_s is None and all(_closed(each) for each in writers):
                closed_s = time.monotonic() - began
        left = sum(not _closed(each) for each in writers)
        held = server.num_connections({each.getsockname()[1] for each in readers})
    note = f"{len(readers)} readers of {LARGE_MB} MB, which are more than the kernel takes over"
    return [
        Figure("S3", "p99 of others, to that without slow ones", beside / base, "x", at_most=2),
        Figure("S3", "slow writers not closed in 30 s", left, "connections", at_most=0),
        Figure("S3", "until the last writer was closed", closed_s, "s", at_most=SLOW_LIMIT_S),
        Figure("S3", "slow readers not closed in 30 s", held, "connections", at_most=0, note=note),
    ]


async def streams(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S4: readers of events that wait for the end."""
    before = server.num_descriptors()
    # The first holds the others up, so that the streams have nothing to tell for a while.
    answers = [await crowd.ask(seed=SLOW, num_inference_steps=16)]
    answers += [await crowd.ask(num_inference_steps=20) for _ in range(STREAMED_JOBS - 1)]
    jobs = [answer.document["id"] for answer in answers]
    readers = [crowd.follow(jobs[number % STREAMED_JOBS]) for number in range(STREAMS)]
    found = await asyncio.gather(*readers)
    delays = [
        at - datetime.fromisoformat(data["finished_at"]).timestamp()
        for kind, data, at in found
        if kind in ("done", "failed")
    ]
    await crowd.idle()
    note = f"{STREAMS} streams of {STREAMED_JOBS} jobs"
    missing = STREAMS - len(delays)
    await asyncio.sleep(SETTLED_S)
    grown = server.num_descriptors() - before
    return [
        Figure("S4", "streams without their last event", missing, "streams", at_most=0, note=note),
        Figure("S4", "from the end of a job to its reader, p99", p99(delays), "s", at_most=0.25),
        Figure("S4", "the same, median", statistics.median(delays), "s"),
        Figure(
            "S4", "descriptors afterwards, growth", grown, "descriptors", at_most=MORE_DESCRIPTORS
        ),
    ]


async def disconnects(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S5: visitors who leave in the middle."""
    rng = random.Random(0)

    async def leave() -> None:
        controls: dict[str, Any] = {"num_inference_steps": 18, "seed": SLOW}
        waiting = asyncio.create_task(crowd.ask("/v1/colorize", **controls))
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    for _ in range(CUTS // 10):
        await asyncio.gather(*(leave() for _ in range(10)))
    left_at = time.monotonic()
    free_s = await crowd.idle() - left_at
    return [
        Figure(
            "S5",
            "after the last visitor left, until nothing waits or runs",
            free_s,
            "s",
            at_most=SLOW_STEP_S + 0.5,
            note=f"{CUTS} requests cut, steps of {SLOW_STEP_S:g} s",
        )
    ]


async def cancel_storm(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S6: half of many jobs is cancelled."""
    sent = await asyncio.gather(*(crowd.ask(num_inference_steps=10) for _ in range(STORM)))
    jobs = [answer.document["id"] for answer in sent if answer.status == 202]
    doomed = random.Random(0).sample(jobs, len(jobs) // 2)
    answers = await asyncio.gather(
        *(crowd.send("POST", f"/v1/jobs/{job}/cancel") for job in doomed)
    )
    cancelled = [a.document["id"] for a in answers if a.document["status"] == "cancelled"]
    await crowd.idle()
    wrong = 0
    for job_id in cancelled:
        job = (await crowd.send("GET", f"/v1/jobs/{job_id}")).document
        wrong += job["status"] != "cancelled" or bool(job["images"])
    waited = [await _waited_s(crowd) for _ in range(AFTERWARDS)]
    note = f"{len(doomed)} of {len(jobs)} jobs cancelled, {len(cancelled)} before their end"
    return [
        Figure("S6", "cancelled jobs with a picture", wrong, "jobs", at_most=0, note=note),
        Figure("S6", "jobs accepted", len(jobs), "jobs", at_least=STORM),
        Figure("S6", "cancelled before their end", len(cancelled), "jobs", at_least=1),
        Figure("S6", "a job waits afterwards, median", statistics.median(waited), "s", None, 0.2),
    ]


async def _waited_s(crowd: Crowd) -> float:
    """How long a job of somebody who is alone waits for a replica."""
    answer = await crowd.ask("/v1/colorize", num_inference_steps=1)
    job = (await crowd.send("GET", f"/v1/jobs/{answer.headers['x-job-id']}")).document
    return job["timing"]["queue_s"]


async def soak(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S7: the same for long; is anything growing?"""
    samples: list[tuple[float, float, int]] = []
    made = 0

    async def one() -> None:
        nonlocal made
        answer = await crowd.ask("/v1/colorize", num_inference_steps=1)
        made += answer.status == 200

    async def watch() -> None:
        while True:
            memory = await asyncio.to_thread(server.memory_bytes)
            samples.append((time.monotonic() / 60, memory / 1e6, server.num_descriptors()))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await repeat(one, 4, seconds)
    watching.cancel()
    warm = np.array(samples[len(samples) // 3 :])
    slope = float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0])
    descriptors = float(np.median(warm[-5:, 2]) - np.median(warm[:5, 2]))
    note = f"{seconds:g} s, the first third not counted"
    bar = None if seconds < SOAK_S else 1.0
    if bar is None:
        note += f"; warm-up takes minutes, a bar of 1 MB/min holds from {SOAK_S:g} s on"
    return [
        Figure("S7", "memory, growth", slope, "MB/min", at_most=bar, note=note),
        Figure("S7", "descriptors, growth", descriptors, "descriptors", at_most=MORE_DESCRIPTORS),
        Figure("S7", "jobs made", made, "jobs", at_least=1),
    ]


async def override(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """S8: a visitor who would switch the time-out off."""
    headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
    controls: dict[str, Any] = {"seed": SLOW, "num_inference_steps": 100}
    answer = await crowd.ask("/v1/colorize", headers=headers, **controls)
    late = abs(answer.seconds - DEADLINE_S)
    return [
        Figure("S8", "deadline, distance from it", late, "s", at_most=1, note="503 expected"),
        Figure("S8", "status", answer.status, "", 503, 503),
    ]


async def endless_body(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """A body of 300 MB without a declared length: does the proxy keep it?"""
    (proxy,) = server.processes(PROXY)
    before = most = proxy.memory_info().rss
    sending = asyncio.create_task(asyncio.to_thread(_pour, server.config.port))
    while not sending.done():
        most = max(most, proxy.memory_info().rss)
        await asyncio.sleep(0.02)
    status = await sending
    alive = (await crowd.send("GET", "/healthz")).status
    note = f"{ENDLESS_MB} MB in chunks; a body may have {server.config.limits.max_body_bytes} bytes"
    return [
        Figure("body", "growth of the proxy", (most - before) / 1e6, "MB", None, 100, note),
        Figure("body", "answer", status, "status", 413, 413),
        Figure("body", "alive afterwards", alive, "status", 200, 200),
        Figure("body", "the same proxy", float(proxy.is_running()), "1 is yes", at_least=1),
    ]


_PART = b'--x\r\nContent-Disposition: form-data; name="sketch"; filename="a"\r\n\r\n'
"""Where the first picture of a form begins."""


def _pour(port: int) -> int:
    """Send until the other side has enough; return the status of its answer."""
    size = 2**16
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            b"%x\r\n%s\r\n" % (len(_PART), _PART)
        )
        with suppress(OSError):
            for _ in range(ENDLESS_MB * 10**6 // size):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
        with suppress(OSError):
            return int(connection.recv(12)[9:12] or 0)
    return 0


@asynccontextmanager
async def _slow_sockets(
    port: int,
) -> AsyncIterator[tuple[list[socket.socket], list[socket.socket]]]:
    host = b"Host: 127.0.0.1\r\n"
    kind = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
    kind += _PART
    send, read = b"POST /v1/jobs HTTP/1.1\r\n", b"GET /echo?answer=%d HTTP/1.1\r\n"
    read %= LARGE_MB * 10**6
    count = SLOW_CONNECTIONS - SLOW_READERS
    writers = [_connect(port, send + host + kind) for _ in range(count)]
    readers = [_connect(port, read + host + b"\r\n") for _ in range(SLOW_READERS)]
    try:
        yield writers, readers
    finally:
        for each in (*writers, *readers):
            each.close()


def _connect(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(data)
    connection.setblocking(False)
    return connection


def _trickle(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.send(b"x")


def _sip(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.recv(1)


def _closed(connection: socket.socket) -> bool:
    """Whether the other side has ended the connection."""
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
