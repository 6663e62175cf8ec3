"""The ingress's way to the colorizer replicas: calls them to the jobs that wait."""

from __future__ import annotations

import asyncio
import time

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from sqlalchemy.exc import SQLAlchemyError

from nurie_serve import errors, logs
from nurie_serve.jobs.clean import clean
from nurie_serve.jobs.replicas import ReplicaBoard
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import QUEUED, RUNNING, new_id
from nurie_serve.jobs.work import WorkQueue
from nurie_serve.metrics import REPLICAS_LOST, show_load
from nurie_serve.schema import ModelInfo
from nurie_serve.watch import Watcher

logger = logs.logger

_REPLICA_LOST = (RayActorError, ReplicaUnavailableError)
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
        board: The replicas that live.
        scales_to_zero: No replica is no fault.
    """

    def __init__(
        self,
        colorizer: DeploymentHandle,
        store: JobStore,
        watcher: Watcher,
        board: ReplicaBoard,
        *,
        scales_to_zero: bool,
    ) -> None:
        self._colorizer = colorizer
        self._store = store
        self._queue = WorkQueue(store)
        self._watcher = watcher
        self._calls: set[asyncio.Task] = set()
        self._look_now = asyncio.Event()
        self._board = board
        self._scales_to_zero = scales_to_zero

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
                    await asyncio.to_thread(self._board.forget_old)
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
        """The model of the newest replica.

        Raises:
            Problem: 503 if no replica has ever started.
        """
        info = await asyncio.to_thread(self._board.newest)
        if info is None:
            raise errors.unavailable()
        return info

    async def models(self) -> list[ModelInfo]:
        """The models that answer: two during a rolling update, the last known one of none."""
        alive = await asyncio.to_thread(self._board.alive)
        different = {info.label: info for info in alive}
        return list(different.values()) or [await self.describe()]

    async def find_model(self, name: str) -> ModelInfo:
        """The model of this name.

        Raises:
            Problem: 404 if no replica has it.
        """
        models = await self.models()
        for info in models:
            if info.name == name:
                return info
        raise errors.not_found(f"model {name}; there is {models[0].name}")

    async def check_ready(self) -> None:
        """Return if a replica lives, or may be started when there is work.

        Raises:
            Problem: 503 if not.
        """
        if not await asyncio.to_thread(self._board.alive) and not self._scales_to_zero:
            raise errors.unavailable()
        await self.describe()

    async def _look(self) -> None:
        counts, age_s, stored = await asyncio.to_thread(self._store.measures)
        show_load(counts, age_s, len(await asyncio.to_thread(self._board.alive)), stored)
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
        except DeploymentUnavailableError:
            # No replica can be started; asking at once again would be asking without end.
            await asyncio.sleep(_LOOK_EVERY_S)
        except _REPLICA_LOST:
            REPLICAS_LOST.inc()
            lost = await asyncio.to_thread(self._queue.release, lease, counts=True)
            logger.warning("a replica died with %d jobs of lease %s", lost, lease)
            self._look_now.set()
        except Exception:
            # What happened is in the replica's log; its jobs go back when the lease ends.
            logger.exception("a replica failed with lease %s", lease)
        finally:
            self._watcher.look_now()
