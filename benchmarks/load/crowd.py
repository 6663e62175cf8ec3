"""Many visitors at once, in one event loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.load.endpoint import Files, drawings

_seeds = itertools.count(1)
ENDS = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Answer:
    """What came back.

    Args:
        status: HTTP status; 0 if the connection broke.
        headers: Of the answer, lower case.
        data: Its body.
        seconds: How long it took.
    """

    status: int
    headers: dict[str, str]
    data: bytes
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """The body as JSON."""
        return json.loads(self.data)


@dataclass
class Crowd:
    """Visitors of one endpoint.

    Attributes:
        accepted: Ids of the jobs that it has promised to make.
        asked: Jobs that it was asked for.
        statuses: Answers to requests for jobs, by status.

    Args:
        address: Of the endpoint.
        session: The connections.
    """

    address: str
    session: aiohttp.ClientSession
    accepted: list[str] = field(default_factory=list)
    asked: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    async def send(self, method: str, path: str, **others: Any) -> Answer:
        """One request, read to its end."""
        began = time.monotonic()
        try:
            async with self.session.request(method, self.address + path, **others) as found:
                data = await found.read()
                headers = {name.lower(): value for name, value in found.headers.items()}
                return Answer(found.status, headers, data, time.monotonic() - began)
        except (aiohttp.ClientError, TimeoutError):
            return Answer(0, {}, b"", time.monotonic() - began)

    async def ask(
        self,
        path: str = "/v1/jobs",
        files: Files | None = None,
        headers: dict[str, str] | None = None,
        **controls: Any,
    ) -> Answer:
        """Ask for a picture; every request has a seed of its own unless it says which."""
        form = aiohttp.FormData()
        for name, data in (files or SMALL).items():
            form.add_field(name, data, filename=f"{name}.png", content_type="image/png")
        for name, value in ({"seed": next(_seeds)} | controls).items():
            form.add_field(name, str(value))
        self.asked += 1
        answer = await self.send("POST", path, data=form, headers=headers)
        self.statuses[answer.status] += 1
        if answer.status == 202:
            self.accepted.append(answer.document["id"])
        elif answer.status == 200 and "x-job-id" in answer.headers:
            self.accepted.append(answer.headers["x-job-id"])
        return answer

    async def follow(self, job_id: str) -> tuple[str | None, dict[str, Any], float]:
        """Read a job's events to their end: the last one's name, its data, when it came."""
        kind: str | None = None
        address = f"{self.address}/v1/jobs/{job_id}/events"
        try:
            async with self.session.get(address) as found:
                async for raw in found.content:
                    line = raw.decode().rstrip("\n")
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    elif line.startswith("data: ") and kind in ENDS:
                        return kind, json.loads(line.removeprefix("data: ")), time.time()
        except (aiohttp.ClientError, TimeoutError):
            pass
        return None, {}, time.time()

    async def idle(self, seconds: float = 120.0) -> float:
        """Wait until no job waits or runs; return when that was."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = await self.send("GET", "/v1/queue")
            if answer.status == 200:
                queue = answer.document
                if queue["queued"] + queue["running"] == 0:
                    return time.monotonic()
            await asyncio.sleep(0.05)
        raise TimeoutError(f"jobs wait or run for {seconds:g} seconds already")


SMALL = drawings()


@asynccontextmanager
async def crowd(address: str, most: int = 2000) -> AsyncIterator[Crowd]:
    """Visitors with at most so many connections."""
    limit = aiohttp.TCPConnector(limit=most, keepalive_timeout=2)
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(connector=limit, timeout=timeout) as session:
        yield Crowd(address, session)


async def repeat(work: Callable[[], Awaitable[object]], visitors: int, seconds: float) -> None:
    """Have so many visitors do something again and again for so long."""
    end = time.monotonic() + seconds

    async def visitor() -> None:
        while time.monotonic() < end:
            await work()

    await asyncio.gather(*(visitor() for _ in range(visitors)))
