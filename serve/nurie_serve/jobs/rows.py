"""What several transactions do to the rows of a job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from nurie_serve.jobs.tables import (
    FINAL,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Event,
    Image,
    Job,
    JobInput,
    Picture,
)

NOTES = "notes"
RECENT = 20
"""Finished jobs that an estimate looks at."""


def input_file(picture_id: str) -> str:
    """Name of the file of a picture that came in."""
    return f"inputs/{picture_id}.arrow"


def note(session: Session, event: str, job: Job, **fields: Any) -> None:
    """Have something told (log, metrics) once the transaction has succeeded."""
    fields["trace_id"] = trace_id(job.traceparent)
    session.info.setdefault(NOTES, []).append((event, job.id, fields))


def trace_id(traceparent: str | None) -> str | None:
    """The part of a ``traceparent`` that logs and traces have in common."""
    return None if traceparent is None else traceparent.split("-")[1]


def append_event(session: Session, job: Job, kind: str, data: Mapping[str, Any]) -> None:
    """Write an event down; the caller holds the job's row."""
    job.last_event += 1
    session.add(Event(job_id=job.id, number=job.last_event, kind=kind, data=dict(data)))


def end_job(session: Session, job: Job, status: str, error: dict[str, Any] | None = None) -> None:
    """Bring a job to its one and only end."""
    assert job.status not in FINAL
    now = time.time()
    job.status, job.error, job.finished_at = status, error, now
    job.lease = job.leased_until = job.eta_s = None
    job.webhook_due = now if job.webhook else None
    previews = select(Event).where(Event.job_id == job.id, Event.kind == "preview")
    for preview in session.scalars(previews):
        session.delete(preview)
    code = error["code"] if error else None
    seconds = round(now - job.created_at, 3)
    note(session, "ended", job, status=status, code=code, seconds=seconds, attempts=job.attempts)
    if status != SUCCEEDED:
        append_event(session, job, status, {"error": error} if error else {})


def remove_job(session: Session, job: Job) -> list[str]:
    """Delete a job's rows; return the files to delete after the commit."""
    files = list(session.scalars(select(Image.path).where(Image.job_id == job.id)))
    inputs = select(Picture).join(JobInput).where(JobInput.job_id == job.id)
    pictures = session.scalars(inputs.where(Picture.expires_at.is_(None))).all()
    session.delete(job)
    session.flush()
    for picture in pictures:
        query = select(JobInput.job_id).where(JobInput.picture_id == picture.id).limit(1)
        if session.scalar(query) is None:
            files.append(input_file(picture.id))
            session.delete(picture)
    return files


def kept_bytes(session: Session) -> int:
    """Bytes of all pictures."""
    sums = (func.sum(Picture.num_bytes), func.sum(Image.num_bytes))
    return sum(session.scalar(select(total)) or 0 for total in sums)


def count_jobs(session: Session) -> dict[str, int]:
    """Jobs by status, of all owners."""
    rows = session.execute(select(Job.status, func.count()).group_by(Job.status))
    return {row[0]: row[1] for row in rows}


def num_queued(session: Session) -> int:
    """Jobs that wait, of all owners."""
    return session.scalar(select(func.count()).where(Job.status == QUEUED)) or 0


def place_in_queue(session: Session, job: Job) -> int:
    """Place of a waiting job, from 1."""
    ahead = (Job.priority > job.priority) | ((Job.priority == job.priority) & (Job.id < job.id))
    return 1 + (session.scalar(select(func.count()).where(Job.status == QUEUED, ahead)) or 0)


@dataclass(frozen=True)
class Pace:
    """How fast the queue moves.

    Args:
        mean_s: Mean seconds that a recent job ran; None if none has.
        num_running: Jobs that run now.
    """

    mean_s: float | None
    num_running: int

    def until(self, place: int) -> float | None:
        """Seconds until the job at this place may be done; None if nothing is known."""
        if self.mean_s is None:
            return None
        return round(self.mean_s + place * self.mean_s / max(1, self.num_running), 1)


def estimate_pace(session: Session) -> Pace:
    """How fast the queue moves now."""
    recent = (
        select((Job.finished_at - Job.started_at).label("seconds"))
        .where(Job.status == SUCCEEDED)
        .order_by(Job.finished_at.desc())
        .limit(RECENT)
        .subquery()
    )
    mean_s = session.scalar(select(func.avg(recent.c.seconds)))
    running = session.scalar(select(func.count()).where(Job.status == RUNNING)) or 0
    return Pace(mean_s, running)
