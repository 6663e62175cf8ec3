"""What is kept no longer: old jobs, pictures of nobody."""

from __future__ import annotations

import time

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from nurie_serve.jobs.rows import input_file, kept_bytes, remove_job
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import FINAL, Batch, Job, JobInput, Picture

ROUND = 100
"""Jobs deleted in one transaction: others want to write, too."""
ARRIVING_S = 600.0
"""A picture without a job may still be waiting for it this long."""


def clean(store: JobStore) -> int:
    """Delete finished jobs that are too old or too many, and pictures that nobody uses.

    Returns:
        Number of jobs deleted.
    """
    deleted = 0
    while True:
        with store.writing.begin() as session:
            jobs = _too_old(session, store) or _too_many(session, store)
            files = [name for job in jobs for name in remove_job(session, job)]
        _delete(store, files)
        deleted += len(jobs)
        if not jobs:
            break
    with store.writing.begin() as session:
        files = _unused_pictures(session)
        _empty_batches(session, store)
    _delete(store, files)
    return deleted


def _delete(store: JobStore, files: list[str]) -> None:
    for name in files:
        store.files.delete(name)


def _too_old(session: Session, store: JobStore) -> list[Job]:
    ended = Job.status.in_(FINAL), Job.finished_at < time.time() - store.config.keep_s
    query = select(Job).where(*ended)
    return list(session.scalars(query.limit(ROUND).with_for_update(skip_locked=True)))


def _too_many(session: Session, store: JobStore) -> list[Job]:
    """The oldest finished jobs, as long as there are too many of them or their bytes."""
    finished = session.scalar(select(func.count()).where(Job.status.in_(FINAL))) or 0
    too_many = finished - store.config.max_kept
    if too_many <= 0 and kept_bytes(session) <= store.config.max_bytes:
        return []
    query = select(Job).where(Job.status.in_(FINAL)).order_by(Job.finished_at)
    limit = min(ROUND, max(1, too_many))
    return list(session.scalars(query.limit(limit).with_for_update(skip_locked=True)))


def _unused_pictures(session: Session) -> list[str]:
    """Delete uploads whose time is over and pictures whose job never came."""
    now = time.time()
    used = select(JobInput.job_id).where(JobInput.picture_id == Picture.id).exists()
    over = (Picture.expires_at < now - ARRIVING_S) | (
        Picture.expires_at.is_(None) & (Picture.created_at < now - ARRIVING_S)
    )
    pictures = session.scalars(select(Picture).where(over, ~used)).all()
    for picture in pictures:
        session.delete(picture)
    return [input_file(picture.id) for picture in pictures]


def _empty_batches(session: Session, store: JobStore) -> None:
    """Delete batches whose jobs are gone."""
    old = Batch.created_at < time.time() - store.config.keep_s
    has_jobs = select(Job.id).where(Job.batch_id == Batch.id).exists()
    session.execute(delete(Batch).where(old, ~has_jobs))
