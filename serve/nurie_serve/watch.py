"""Noticing that a job has changed, whichever process changed it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from nurie_serve.jobs.store import JobStore
from nurie_serve.logs import logger

LOOK_EVERY_S = 0.05
PLACES_EVERY_S = 0.5
_Found = TypeVar("_Found")


class Watcher:
    """Looks at all watched jobs with one query, as long as somebody watches.

    Args:
        store: The job store.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._versions: dict[str, int] = {}
        self._wanted = asyncio.Event()
        self._look_now = asyncio.Event()
        self._places: dict[str, tuple[int, float | None]] = {}
        self._placed_at = float("-inf")
        self._placing = asyncio.Lock()
        self._reads: dict[Any, asyncio.Task[Any]] = {}

    async def read(self, job_id: str, read: Callable[..., _Found], *arguments: str | int) -> _Found:
        """Read something of a job in a thread; who asks the same meanwhile shares the answer.

        A read that began before a change was noticed is not shared with those who ask after it.
        """
        key = (self._versions.get(job_id), read, arguments)
        task = self._reads.get(key)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(read, *arguments))
            self._reads[key] = task
            task.add_done_callback(lambda _: self._reads.pop(key))
        return await asyncio.shield(task)

    async def place(self, job_id: str) -> tuple[int, float | None] | None:
        """Place in the queue and estimated seconds, as of a moment ago; None once it has left."""
        async with self._placing:
            if time.monotonic() - self._placed_at > PLACES_EVERY_S:
                self._places = await asyncio.to_thread(self._store.places)
                self._placed_at = time.monotonic()
        return self._places.get(job_id)

    @contextmanager
    def listen(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job has changed or is gone."""
        changed = asyncio.Event()
        self._listeners.setdefault(job_id, set()).add(changed)
        self._wanted.set()
        try:
            yield changed
        finally:
            self._listeners[job_id].discard(changed)
            if not self._listeners[job_id]:
                del self._listeners[job_id]
                self._versions.pop(job_id, None)

    def look_now(self) -> None:
        """Look at once: something has probably changed."""
        self._look_now.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            if not self._listeners:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                await self._look()
            except SQLAlchemyError:
                logger.exception("the job store does not answer")
            self._look_now.clear()
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._look_now.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        watched = list(self._listeners)
        versions = await asyncio.to_thread(self._store.versions, watched)
        for job_id in watched:
            version = versions.get(job_id, -1)
            if self._versions.get(job_id) == version:
                continue
            if job_id in self._listeners:
                self._versions[job_id] = version
            for changed in self._listeners.get(job_id, ()):
                changed.set()
