"""What goes on beside the denoising of a batch: the lease stays alive, lost jobs are noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from nurie.config.serve import LimitsConfig
from nurie_serve.errors import deadline_exceeded
from nurie_serve.jobs.work import Work, WorkQueue
from nurie_serve.logs import logger

LOOK_EVERY_S = 0.25


class LeaseKeeper:
    """Keeps the lease of a batch while steps are made; a context manager.

    A step that does not end stops the keeping, so that the jobs go to another replica.

    Args:
        queue: The store.
        lease: Name of the lease.
        batch: Its jobs.
        lease_s: How long a lease lasts.
        limits: How long a job and a step may take.
    """

    def __init__(
        self,
        queue: WorkQueue,
        lease: str,
        batch: Sequence[Work],
        lease_s: float,
        limits: LimitsConfig,
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._limits = limits
        self._extend_every_s = lease_s / 3
        end = time.time() + limits.deadline_s
        self._deadlines = {work.job_id: min(end, work.deadline or end) for work in batch}
        self._held = set(self._deadlines)
        self._beat = self._extended = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def beat(self) -> None:
        """Say that a step has ended."""
        self._beat = time.monotonic()

    @property
    def stuck(self) -> bool:
        """True if the current step takes longer than any may."""
        return time.monotonic() - self._beat > self._limits.step_timeout_s

    def wanted(self, job_id: str) -> bool:
        """False once a job was cancelled, is too late or has gone to another replica."""
        return job_id in self._held

    def _keep(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_S):
            try:
                self._look()
            except SQLAlchemyError:
                # The store may be back before the lease ends.
                logger.exception("lease %s: the job store does not answer", self._lease)

    def _look(self) -> None:
        now = time.time()
        for job_id, deadline in self._deadlines.items():
            if now > deadline and job_id in self._held:
                self._queue.fail(self._lease, job_id, deadline_exceeded().document())
        self._held = self._queue.held(self._lease)
        if not self.stuck and time.monotonic() - self._extended > self._extend_every_s:
            self._queue.extend(self._lease)
            self._extended = time.monotonic()
