"""The job store as the HTTP application sees it: submit, read, cancel, delete."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from nurie.config.serve import JobsConfig
from nurie_serve.jobs.files import PictureFiles
from nurie_serve.jobs.pictures import PictureStore
from nurie_serve.jobs.rows import (
    NOTES,
    Pace,
    append_event,
    count_jobs,
    end_job,
    estimate_pace,
    kept_bytes,
    note,
    num_queued,
    place_in_queue,
    remove_job,
)
from nurie_serve.jobs.sessions import WritingSessions
from nurie_serve.jobs.tables import (
    CANCELLED,
    FINAL,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Event,
    Image,
    Job,
    JobInput,
    new_id,
    open_database,
)
from nurie_serve.logs import log_job
from nurie_serve.metrics import count_ended


class QueueFull(Exception):
    """As many jobs wait as may."""


class OwnerBusy(Exception):
    """As many jobs of the owner wait and run as may."""

    def __init__(self, max_active: int) -> None:
        super().__init__(max_active)
        self.max_active = max_active


class KeyConflict(Exception):
    """An idempotency key that was used for something else."""


@dataclass(frozen=True)
class NewJob:
    """A checked request.

    Args:
        owner: Who asks; sees this job alone.
        params: Every control with its value, the seed included.
        inputs: Input name to picture id.
        batch_key: Equal for jobs that may run in one batch.
        fingerprint: SHA-256 of what was asked for, before a seed was drawn.
        idempotency_key: The same key and fingerprint give the same job.
        deadline: Unix time after which nobody waits.
        priority: Higher goes first.
        preview_every: Steps between two previews; 0: none.
        max_active: Most jobs of the owner that wait or run at once (None: any number).
        batch_id: Batch that the job belongs to.
        traceparent: Trace that the job belongs to (W3C Trace Context).
        webhook: Address that is told when it has ended.
    """

    owner: str
    params: dict[str, Any]
    inputs: dict[str, str]
    batch_key: str
    fingerprint: str
    idempotency_key: str | None = None
    deadline: float | None = None
    max_active: int | None = None
    priority: int = 0
    preview_every: int = 0
    batch_id: str | None = None
    traceparent: str | None = None
    webhook: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A job as it is now.

    Args:
        job: Its row.
        images: Its finished pictures.
        position: Place in the queue, from 1; None once it has left the queue.
        eta_s: Estimated seconds until it is finished; None if nothing is known.
    """

    job: Job
    images: Sequence[Image] = field(default_factory=list)
    position: int | None = None
    eta_s: float | None = None


class JobStore:
    """Jobs in a database, their pictures in files.

    Attributes:
        pictures: The pictures that came in.

    Args:
        config: Where and for how long.
        max_queued: Jobs that may wait.

    Raises:
        StoreError: If the database cannot be used.
    """

    def __init__(self, config: JobsConfig, max_queued: int) -> None:
        self.config = config
        self.max_queued = max_queued
        self.files = PictureFiles(config.folder)
        self._engine = open_database(config.url)
        self.reading = sessionmaker(self._engine, expire_on_commit=False)
        self.writing = WritingSessions(self._engine)
        event.listen(self.writing, "after_commit", _tell)
        self.pictures = PictureStore(config, self.files, self.reading, self.writing)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def find_repeated(self, owner: str, key: str, fingerprint: str) -> Snapshot | None:
        """The job that an idempotency key stands for.

        Raises:
            KeyConflict: If the key stands for something else.
        """
        with self.reading.begin() as session:
            query = select(Job).where(Job.owner == owner, Job.idempotency_key == key)
            job = session.scalar(query)
            if job is None:
                return None
            if job.fingerprint != fingerprint:
                raise KeyConflict(key)
            return self.snapshot(session, job)

    def submit(self, new: NewJob) -> Snapshot:
        """Accept a job; after this it is not lost.

        Raises:
            QueueFull: If no place is free.
            KeyConflict: If its idempotency key stands for something else.
        """
        try:
            return self.submit_all([new])[0]
        except IntegrityError:
            # Somebody else was faster with the same idempotency key.
            repeated = new.idempotency_key and self.find_repeated(
                new.owner, new.idempotency_key, new.fingerprint
            )
            if not repeated:
                raise
            return repeated

    def submit_all(self, new: Sequence[NewJob]) -> list[Snapshot]:
        """Accept all of these jobs or none.

        Raises:
            QueueFull: If too few places are free.
        """
        with self.writing.begin() as session:
            return self.accept(session, new)

    def accept(self, session: Session, new: Sequence[NewJob]) -> list[Snapshot]:
        """Accept jobs within a transaction.

        Raises:
            QueueFull: If too few places are free.
            OwnerBusy: If their owner would have too many.
        """
        if num_queued(session) + len(new) > self.max_queued:
            raise QueueFull
        check_owner(session, new)
        return [self._accept(session, each) for each in new]

    def _accept(self, session: Session, new: NewJob) -> Snapshot:
        job = _job_row(new)
        session.add(job)
        session.flush()
        session.add_all(
            JobInput(job_id=job.id, name=name, picture_id=picture_id)
            for name, picture_id in new.inputs.items()
        )
        snapshot = self.snapshot(session, job)
        place = {"position": snapshot.position, "eta_s": snapshot.eta_s}
        append_event(session, job, QUEUED, place)
        note(session, "accepted", job, position=snapshot.position, batch=new.batch_id)
        return snapshot

    def get(self, owner: str, job_id: str) -> Snapshot | None:
        """An owner's job."""
        with self.reading.begin() as session:
            job = session.get(Job, job_id)
            if job is None or job.owner != owner:
                return None
            return self.snapshot(session, job)

    def list_jobs(
        self, owner: str, status: str | None, limit: int, before: str | None
    ) -> list[Snapshot]:
        """An owner's jobs, newest first.

        Args:
            owner: Whose.
            status: Only of this status.
            limit: At most so many.
            before: Only those older than this job id.
        """
        query = select(Job).where(Job.owner == owner).order_by(Job.id.desc()).limit(limit)
        if status is not None:
            query = query.where(Job.status == status)
        if before is not None:
            query = query.where(Job.id < before)
        with self.reading.begin() as session:
            return [self.snapshot(session, job) for job in session.scalars(query)]

    def cancel(self, owner: str, job_id: str) -> Snapshot | None:
        """Cancel a job unless it has ended; the worker notices at its next step."""
        with self.writing.begin() as session:
            job = session.get(Job, job_id, with_for_update=True)
            if job is None or job.owner != owner:
                return None
            if job.status not in FINAL:
                end_job(session, job, CANCELLED)
            return self.snapshot(session, job)

    def cancel_all(self, owner: str, statuses: Iterable[str] = (QUEUED, RUNNING)) -> int:
        """Cancel an owner's jobs of these statuses; return how many."""
        query = select(Job).where(Job.owner == owner, Job.status.in_(list(statuses)))
        with self.writing.begin() as session:
            jobs = session.scalars(query.with_for_update()).all()
            for job in jobs:
                end_job(session, job, CANCELLED)
        return len(jobs)

    def delete(self, owner: str, job_id: str) -> bool:
        """Delete a job and its pictures, whatever its status."""
        with self.writing.begin() as session:
            job = session.get(Job, job_id, with_for_update=True)
            if job is None or job.owner != owner:
                return False
            files = remove_job(session, job)
        for name in files:
            self.files.delete(name)
        return True

    def image(self, owner: str, job_id: str, number: int) -> Image | None:
        """A finished picture of an owner's job."""
        with self.reading.begin() as session:
            job = session.get(Job, job_id)
            if job is None or job.owner != owner:
                return None
            return session.get(Image, (job_id, number))

    def events(self, job_id: str, after: int) -> list[Event]:
        """Events of a job with a higher number."""
        query = select(Event).where(Event.job_id == job_id, Event.number > after)
        with self.reading.begin() as session:
            return list(session.scalars(query.order_by(Event.number)))

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Number of the newest event of each job that exists."""
        found: dict[str, int] = {}
        with self.reading.begin() as session:
            for start in range(0, len(job_ids), 500):
                part = job_ids[start : start + 500]
                rows = session.execute(select(Job.id, Job.last_event).where(Job.id.in_(part)))
                found.update((row.id, row.last_event) for row in rows)
        return found

    def places(self) -> dict[str, tuple[int, float | None]]:
        """Every waiting job with its place, from 1, and its estimated seconds."""
        query = select(Job.id).where(Job.status == QUEUED).order_by(Job.priority.desc(), Job.id)
        with self.reading.begin() as session:
            pace = estimate_pace(session)
            waiting = enumerate(session.scalars(query), 1)
            return {job_id: (place, pace.until(place)) for place, job_id in waiting}

    def load(self) -> tuple[dict[str, int], Pace]:
        """Jobs by status, of all owners, and how fast the queue moves."""
        with self.reading.begin() as session:
            return count_jobs(session), estimate_pace(session)

    def measures(self) -> tuple[dict[str, int], float, int]:
        """Jobs by status, seconds that the oldest one waits, bytes of all pictures."""
        oldest = select(func.min(Job.created_at)).where(Job.status == QUEUED)
        with self.reading.begin() as session:
            since = session.scalar(oldest)
            age_s = 0.0 if since is None else max(0.0, time.time() - since)
            return count_jobs(session), age_s, kept_bytes(session)

    def counts_by_owner(self) -> dict[str, dict[str, int]]:
        """Jobs by owner and status."""
        query = select(Job.owner, Job.status, func.count()).group_by(Job.owner, Job.status)
        found: dict[str, dict[str, int]] = {}
        with self.reading.begin() as session:
            for owner, status, count in session.execute(query):
                found.setdefault(owner, {})[status] = count
        return found

    def num_queued(self) -> int:
        """Jobs that wait, of all owners."""
        with self.reading.begin() as session:
            return num_queued(session)

    def snapshot(self, session: Session, job: Job) -> Snapshot:
        """A job as it is within a transaction."""
        images: Sequence[Image] = []
        position = eta_s = None
        if job.status == SUCCEEDED:
            query = select(Image).where(Image.job_id == job.id).order_by(Image.number)
            images = session.scalars(query).all()
        elif job.status == QUEUED:
            position = place_in_queue(session, job)
            eta_s = estimate_pace(session).until(position)
        elif job.status == RUNNING:
            eta_s = job.eta_s
        return Snapshot(job, images, position, eta_s)


def _tell(session: Session) -> None:
    """What has happened in a transaction, once it has succeeded."""
    for kind, job_id, fields in session.info.pop(NOTES, ()):
        log_job(kind, job_id, **fields)
        if kind == "ended":
            count_ended(fields["status"], fields["code"])


def check_owner(session: Session, new: Sequence[NewJob]) -> None:
    """Check that the owner of new jobs may have so many at once.

    Raises:
        OwnerBusy: If not.
    """
    most = new[0].max_active if new else None
    if most is None:
        return
    active = select(func.count()).where(
        Job.owner == new[0].owner, Job.status.in_((QUEUED, RUNNING))
    )
    if (session.scalar(active) or 0) + len(new) > most:
        raise OwnerBusy(most)


def _job_row(new: NewJob) -> Job:
    return Job(
        id=new_id("job"),
        owner=new.owner,
        status=QUEUED,
        priority=new.priority,
        batch_key=new.batch_key,
        params=new.params,
        num_steps=new.params.get("num_inference_steps"),
        idempotency_key=new.idempotency_key,
        fingerprint=new.fingerprint,
        preview_every=new.preview_every,
        batch_id=new.batch_id,
        created_at=time.time(),
        deadline=new.deadline,
        attempts=0,
        step=0,
        timing={},
        last_event=0,
        traceparent=new.traceparent,
        webhook=new.webhook,
        webhook_tries=0,
    )
