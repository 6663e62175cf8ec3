"""The ingress's way to the colorizer replicas: calls them to the jobs that wait."""

from __future__ import annotations

import asyncio
import logging
import time

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from sqlalchemy.exc import SQLAlchemyError

from nurie_serve import errors
from nurie_serve.jobs.clean import clean
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import QUEUED, RUNNING, new_id
from nurie_serve.jobs.work import WorkQueue
from nurie_serve.schema import ModelInfo
from nurie_serve.watch import Watcher

logger = logging.getLogger(__name__)

_REPLICA_LOST = (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError)
_READY_FOR_S = 10.0
_READY_TIMEOUT_S = 2.0
_LOOK_EVERY_S = 1.0
_CLEAN_EVERY_S = 60.0


class Dispatcher:
    """Calls a replica for every job that waits.

    A call carries no job: the replica leases the next batch from the store. So a call that is lost
    loses nothing, and Ray Serve sees in its calls how much there is to do, which it scales by.

    Args:
        colorizer: Handle of the colorizer deployment.
        store: The job store.
        watcher: Is told when jobs have ended.
    """

    def __init__(self, colorizer: DeploymentHandle, store: JobStore, watcher: Watcher) -> None:
        self._colorizer = colorizer
        self._store = store
        self._queue = WorkQueue(store)
        self._watcher = watcher
        self._calls: set[asyncio.Task] = set()
        self._look_now = asyncio.Event()
        self._answered_at = self._described_at = float("-inf")
        self._info: ModelInfo | None = None

    def call(self) -> None:
        """Call a replica: one more job waits."""
        task = asyncio.create_task(self._call_replica())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def run(self) -> None:
        """For ever: give lost jobs to other replicas, delete what is too old."""
        cleaned_at = float("-inf")
        while True:
            try:
                await self._look()
                if time.monotonic() - cleaned_at > _CLEAN_EVERY_S:
                    await asyncio.to_thread(clean, self._store)
                    cleaned_at = time.monotonic()
            except (SQLAlchemyError, OSError):
                logger.exception("the job store does not answer")
            self._look_now.clear()
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._look_now.wait()
            except TimeoutError:
                pass

    async def describe(self) -> ModelInfo:
        """The model of a replica, as it was a moment ago.

        Raises:
            Problem: 503 if no replica answers.
        """
        if self._info is not None and time.monotonic() - self._described_at < _READY_FOR_S:
            return self._info
        try:
            info = self._info = await self._colorizer.describe.remote()
        except BackPressureError:
            raise errors.busy() from None
        except _REPLICA_LOST:
            raise errors.unavailable() from None
        self._answered_at = self._described_at = time.monotonic()
        return info

    async def check_ready(self) -> None:
        """Return if a replica has just answered, or answers now.

        Raises:
            Problem: 503 if none does.
        """
        if time.monotonic() - self._answered_at < _READY_FOR_S:
            return
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self.describe()
        except TimeoutError:
            raise errors.unavailable() from None

    async def _look(self) -> None:
        counts = await asyncio.to_thread(self._store.counts)
        open_jobs = counts.get(QUEUED, 0) + counts.get(RUNNING, 0)
        if open_jobs:
            await asyncio.to_thread(self._queue.release_silent)
        # Jobs of an earlier life of this process, or whose replica died.
        for _ in range(open_jobs - len(self._calls)):
            self.call()

    async def _call_replica(self) -> None:
        lease = new_id("lease")
        try:
            await self._colorizer.work.remote(lease)
            self._answered_at = time.monotonic()
        except _REPLICA_LOST:
            lost = await asyncio.to_thread(self._queue.release, lease, counts=True)
            logger.warning("a replica died with %d jobs of lease %s", lost, lease)
            self._look_now.set()
        except Exception:
            # What happened is in the replica's log; its jobs go back when the lease ends.
            logger.exception("a replica failed with lease %s", lease)
        finally:
            self._watcher.look_now()
