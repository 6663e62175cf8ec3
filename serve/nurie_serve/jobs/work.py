"""The job store as a replica sees it: lease, heartbeat, progress, end.

A lease is a name that a replica makes up for one batch. Every write names the lease and counts only
while the job still has it, so a replica that was given up for dead can neither end a job twice nor
overwrite what its successor does.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from nurie_serve.errors import deadline_exceeded, worker_lost
from nurie_serve.jobs.rows import append_event, end_job, note
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import FAILED, QUEUED, RUNNING, SUCCEEDED, Event, Image, Job, JobInput


@dataclass(frozen=True)
class Work:
    """A leased job.

    Args:
        job_id: Which.
        params: Every control with its value, the seed included.
        inputs: Input name to picture id.
        batch_key: Equal for jobs that may run in one batch.
        preview_every: Steps between two previews; 0: none.
        deadline: Unix time after which nobody waits, if there is one.
        attempt: From 1.
        waited_s: Seconds in the queue.
        accepted_at: Unix time since which it waited.
        traceparent: Trace that it belongs to.
    """

    job_id: str
    params: dict[str, Any]
    inputs: dict[str, str]
    batch_key: str
    preview_every: int
    deadline: float | None
    attempt: int
    waited_s: float
    accepted_at: float
    traceparent: str | None


@dataclass(frozen=True)
class NewImage:
    """A picture that a replica has made.

    Args:
        data: The picture with its layers and settings, an OpenRaster file.
        seed: Its seed.
        width: In pixels.
        height: In pixels.
        sha256: Of the PNG without settings (None: of the file).
    """

    data: bytes
    seed: int
    width: int
    height: int
    sha256: str | None = None


class WorkQueue:
    """A replica's way into the store.

    Args:
        store: The store.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._config = store.config

    def take(self, lease: str, limit: int, batch_key: str | None = None) -> list[Work]:
        """Lease the job that waits longest and up to ``limit`` others of its kind.

        A job whose replica died before comes alone, so that it cannot take others down again.

        Args:
            lease: Name of the lease.
            limit: Most jobs.
            batch_key: Only jobs of this kind, none that failed before.
        """
        if not self._any_waiting(batch_key):
            return []
        with self._store.writing.begin() as session:
            _fail_late(session)
            waiting = (
                select(Job)
                .where(Job.status == QUEUED)
                .order_by(Job.priority.desc(), Job.id)
                .with_for_update(skip_locked=True)
            )
            jobs: list[Job] = []
            if batch_key is None:
                jobs = list(session.scalars(waiting.limit(1)))
                if not jobs or jobs[0].attempts > 0:
                    limit = 0
                batch_key = jobs[0].batch_key if jobs else None
            if limit > len(jobs):
                taken = [job.id for job in jobs]
                alike = waiting.where(Job.batch_key == batch_key, Job.attempts == 0)
                alike = alike.where(Job.id.not_in(taken)).limit(limit - len(jobs))
                jobs += session.scalars(alike)
            return [self._begin(session, job, lease) for job in jobs]

    def held(self, lease: str) -> set[str]:
        """Jobs that are still to be done under a lease; the others were cancelled or lost."""
        with self._store.reading.begin() as session:
            return set(session.scalars(select(Job.id).where(Job.lease == lease)))

    def extend(self, lease: str) -> None:
        """Say that work on a lease goes on."""
        until = time.time() + self._config.lease_s
        with self._store.writing.begin() as session:
            session.execute(update(Job).where(Job.lease == lease).values(leased_until=until))

    def release(self, lease: str, *, counts: bool) -> int:
        """Give a lease's jobs back; return how many there were.

        Args:
            lease: Name of the lease.
            counts: The replica died; after too many such deaths a job fails.
        """
        with self._store.writing.begin() as session:
            jobs = session.scalars(select(Job).where(Job.lease == lease).with_for_update()).all()
            for job in jobs:
                _put_back(session, job, self._config.max_attempts, counts=counts)
        return len(jobs)

    def release_silent(self) -> int:
        """Give back the jobs of leases that ran out, end those that are too late."""
        with self._store.writing.begin() as session:
            _fail_late(session)
            query = select(Job).where(Job.status == RUNNING, Job.leased_until < time.time())
            jobs = session.scalars(query.with_for_update(skip_locked=True)).all()
            for job in jobs:
                _put_back(session, job, self._config.max_attempts, counts=True)
        return len(jobs)

    def progress(self, lease: str, step: int, num_steps: int, eta_s: float) -> None:
        """Tell the jobs of a lease how far they are."""
        data = {"step": step, "steps": num_steps, "eta_s": round(eta_s, 1)}
        with self._store.writing.begin() as session:
            for job in self._of(session, lease):
                job.step, job.num_steps, job.eta_s = step, num_steps, data["eta_s"]
                append_event(session, job, "progress", data)

    def preview(self, lease: str, previews: Mapping[str, dict[str, Any]]) -> None:
        """Show what jobs look like by now; only the newest preview of a job is kept."""
        with self._store.writing.begin() as session:
            for job in self._of(session, lease, previews):
                old = select(Event).where(Event.job_id == job.id, Event.kind == "preview")
                for event in session.scalars(old):
                    session.delete(event)
                append_event(session, job, "preview", previews[job.id])

    def finish(
        self,
        lease: str,
        work: Work,
        images: Sequence[NewImage],
        model: str,
        timing: Mapping[str, float],
    ) -> bool:
        """Bring in a job's pictures; False if the job is no longer this lease's."""
        names = [f"results/{work.job_id}/{lease}-{number}.ora" for number in range(len(images))]
        for name, image in zip(names, images, strict=True):
            self._store.files.write(name, image.data)
        with self._store.writing.begin() as session:
            done = self._of(session, lease, [work.job_id])
            for job in done:
                job.model, job.timing = model, dict(timing)
                end_job(session, job, SUCCEEDED)
                rows = [
                    _image_row(job.id, number, name, image)
                    for number, (name, image) in enumerate(zip(names, images, strict=True))
                ]
                session.add_all(rows)
                append_event(session, job, "done", {"seeds": [image.seed for image in images]})
        if not done:
            for name in names:
                self._store.files.delete(name)
        return bool(done)

    def fail(self, lease: str, job_id: str, problem: dict[str, Any]) -> bool:
        """End a job with an error; False if the job is no longer this lease's."""
        with self._store.writing.begin() as session:
            jobs = self._of(session, lease, [job_id])
            for job in jobs:
                end_job(session, job, FAILED, problem)
        return bool(jobs)

    def read_input(self, picture_id: str) -> bytes:
        """A job's input, packed."""
        return self._store.pictures.read(picture_id)

    def _any_waiting(self, batch_key: str | None) -> bool:
        """Whether it is worth while to keep other writers out: most calls come for nothing."""
        waiting = select(Job.id).where(Job.status == QUEUED)
        if batch_key is not None:
            waiting = waiting.where(Job.batch_key == batch_key, Job.attempts == 0)
        with self._store.reading.begin() as session:
            return session.scalar(waiting.limit(1)) is not None

    def _begin(self, session: Session, job: Job, lease: str) -> Work:
        now = time.time()
        job.status, job.lease, job.leased_until = RUNNING, lease, now + self._config.lease_s
        job.attempts += 1
        job.started_at, job.step, job.eta_s = now, 0, None
        append_event(session, job, "started", {"attempt": job.attempts})
        note(session, "started", job, attempt=job.attempts, lease=lease)
        inputs = select(JobInput.name, JobInput.picture_id).where(JobInput.job_id == job.id)
        return Work(
            job.id,
            job.params,
            {row.name: row.picture_id for row in session.execute(inputs)},
            job.batch_key,
            job.preview_every,
            job.deadline,
            job.attempts,
            now - job.created_at,
            job.created_at,
            job.traceparent,
        )

    def _of(
        self, session: Session, lease: str, job_ids: Collection[str] | None = None
    ) -> Sequence[Job]:
        query = select(Job).where(Job.lease == lease, Job.status == RUNNING).with_for_update()
        if job_ids is not None:
            query = query.where(Job.id.in_(list(job_ids)))
        return session.scalars(query).all()


def _put_back(session: Session, job: Job, max_attempts: int, *, counts: bool) -> None:
    if counts and job.attempts >= max_attempts:
        end_job(session, job, FAILED, worker_lost(job.attempts).document())
        return
    if not counts:
        job.attempts -= 1
    job.status, job.lease, job.leased_until = QUEUED, None, None
    job.step, job.eta_s = 0, None
    reason = "its replica died" if counts else "handed on"
    append_event(session, job, QUEUED, {"again": reason})
    note(session, "given back", job, reason=reason, attempts=job.attempts)


def _fail_late(session: Session) -> None:
    late = select(Job).where(Job.status == QUEUED, Job.deadline < time.time())
    for job in session.scalars(late.with_for_update(skip_locked=True)):
        end_job(session, job, FAILED, deadline_exceeded().document())


def _image_row(job_id: str, number: int, path: str, image: NewImage) -> Image:
    return Image(
        job_id=job_id,
        number=number,
        path=path,
        seed=image.seed,
        width=image.width,
        height=image.height,
        sha256=image.sha256 or hashlib.sha256(image.data).hexdigest(),
        num_bytes=len(image.data),
    )
