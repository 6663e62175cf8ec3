"""Which jobs still have to be told to whom.

What is due lies in the job's row. Whoever takes it moves the time on before sending, so that a
process that is killed meanwhile loses nothing: another sends it again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import select

from nurie.config.serve import WebhooksConfig
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import Job

BACK_OFF = 6
"""Each pause is so many times as long as the one before."""
_CLAIM_S = 10.0


@dataclass(frozen=True)
class Delivery:
    """One message to send.

    Args:
        job_id: About which job.
        owner: Whose job.
        url: Where to.
        attempt: From 1.
    """

    job_id: str
    owner: str
    url: str
    attempt: int


class DeliveryQueue:
    """Messages that are due.

    Args:
        store: The job store.
        config: How often and how long to try.
    """

    def __init__(self, store: JobStore, config: WebhooksConfig) -> None:
        self._store = store
        self._config = config

    def take(self, limit: int) -> list[Delivery]:
        """Take messages that are due; each is due again if nobody settles it."""
        due = select(Job).where(Job.webhook_due <= time.time()).order_by(Job.webhook_due)
        with self._store.reading.begin() as session:
            if session.scalar(due.limit(1)) is None:
                return []
        with self._store.writing.begin() as session:
            jobs = session.scalars(due.limit(limit).with_for_update(skip_locked=True)).all()
            taken = []
            for job in jobs:
                if job.webhook is None or job.webhook_tries >= self._config.max_tries:
                    job.webhook_due = None
                    continue
                job.webhook_tries += 1
                job.webhook_due = time.time() + 2 * self._config.timeout_s + _CLAIM_S
                taken.append(Delivery(job.id, job.owner, job.webhook, job.webhook_tries))
        return taken

    def settle(self, delivery: Delivery, status: int | None) -> None:
        """Write down how a message went.

        Args:
            delivery: The message.
            status: HTTP status of the answer; None if there was none.
        """
        with self._store.writing.begin() as session:
            job = session.get(Job, delivery.job_id, with_for_update=True)
            if job is None or job.webhook_tries != delivery.attempt:
                return
            job.webhook_status = status
            done = status is not None and status // 100 == 2
            if done or delivery.attempt >= self._config.max_tries:
                job.webhook_due = None
            else:
                pause = self._config.retry_after_s * BACK_OFF ** (delivery.attempt - 1)
                job.webhook_due = time.time() + pause
