"""The ingress's way to a colorizer replica: back-pressure, a dead replica, the deadline."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from nurie_serve import errors
from nurie_serve.schema import ColorizeJob, ColorizeResult, ModelInfo

_REPLICA_LOST = (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError)
_READY_FOR_S = 10.0
_READY_TIMEOUT_S = 2.0


class Dispatcher:
    """Sends jobs to the colorizer deployment.

    Args:
        colorizer: Handle of the colorizer deployment.
        deadline_s: Longest time that a job may take.
    """

    def __init__(self, colorizer: DeploymentHandle, deadline_s: float) -> None:
        self._colorizer = colorizer
        self._deadline_s = deadline_s
        self._answered_at = 0.0

    async def colorize(self, job: ColorizeJob) -> ColorizeResult:
        """Run a job; a job whose replica died is sent once more, with the same seed.

        Raises:
            Problem: 429 if the queue is full, 503 if no replica answers or time is up.
        """
        try:
            return await self._call("colorize", job)
        except _REPLICA_LOST:
            pass
        try:
            return await self._call("colorize", job)
        except _REPLICA_LOST:
            raise errors.unavailable() from None

    async def describe(self) -> ModelInfo:
        """Ask a replica which model it holds.

        Raises:
            Problem: As for :meth:`colorize`.
        """
        try:
            return await self._call("describe")
        except _REPLICA_LOST:
            raise errors.unavailable() from None

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

    async def _call(self, method: str, *args: Any) -> Any:
        response = getattr(self._colorizer, method).remote(*args)
        try:
            result = await response
        except asyncio.CancelledError:
            # The visitor left or time is up: the replica stops at its next step.
            response.cancel()
            raise
        except BackPressureError:
            raise errors.busy() from None
        except TimeoutError:
            raise errors.deadline_exceeded(self._deadline_s) from None
        self._answered_at = time.monotonic()
        return result
