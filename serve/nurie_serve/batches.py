"""Batches: every sketch with every reference and every seed, as jobs of their own."""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from nurie.inference.controls import ControlError
from nurie_serve.caller import Caller
from nurie_serve.documents import BatchDocument, BatchItem, ProblemDocument
from nurie_serve.errors import to_problem
from nurie_serve.form import batch_key, check_other_side
from nurie_serve.jobs.store import JobStore, KeyConflict, NewJob, Snapshot
from nurie_serve.jobs.tables import FAILED, FINAL, SUCCEEDED, Batch, Job, new_id

PRIORITY = -1
"""Below single jobs, whose senders wait."""
DELETED = "deleted"


@dataclass(frozen=True)
class Source:
    """A sketch or a reference of a batch.

    Args:
        name: As sent; for people only.
        picture_id: Where it is kept, if it can be used.
        size: Width and height in pixels, if it can be used.
        error: Why it cannot be used.
    """

    name: str
    picture_id: str | None = None
    size: tuple[int, int] | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class AskedBatch:
    """A request for many pictures, its pictures decoded.

    Args:
        sketches: The sketches.
        references: The references.
        seeds: The seeds; None draws one.
        values: Every other control.
        fingerprint: SHA-256 of what was asked for.
        key: Idempotency key.
    """

    sketches: Sequence[Source]
    references: Sequence[Source]
    seeds: Sequence[int | None]
    values: dict[str, Any]
    fingerprint: str
    key: str | None


class BatchStore:
    """Batches in the job store.

    Args:
        store: The job store.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def find_repeated(self, owner: str, key: str, fingerprint: str) -> Batch | None:
        """The batch that an idempotency key stands for.

        Raises:
            KeyConflict: If the key stands for something else.
        """
        query = select(Batch).where(Batch.owner == owner, Batch.idempotency_key == key)
        with self._store.reading.begin() as session:
            batch = session.scalar(query)
        if batch is not None and batch.fingerprint != fingerprint:
            raise KeyConflict(key)
        return batch

    def submit(self, caller: Caller, asked: AskedBatch) -> Batch:
        """Accept a batch; items that cannot be made are refused alone.

        Raises:
            QueueFull: If too few places are free.
            OwnerBusy: If the caller would have too many jobs.
            KeyConflict: If the idempotency key stands for something else.
        """
        owner, batch_id = caller.name, new_id("batch")
        items, jobs = self._plan(caller, asked, batch_id)
        try:
            with self._store.writing.begin() as session:
                accepted = iter(self._store.accept(session, jobs))
                for item in items:
                    if item["error"] is None:
                        item["job"] = next(accepted).job.id
                batch = Batch(
                    id=batch_id,
                    owner=owner,
                    idempotency_key=asked.key,
                    fingerprint=asked.fingerprint,
                    created_at=time.time(),
                    items=items,
                )
                session.add(batch)
            return batch
        except IntegrityError:
            repeated = asked.key and self.find_repeated(owner, asked.key, asked.fingerprint)
            if not repeated:
                raise
            return repeated

    def get(self, owner: str, batch_id: str) -> tuple[Batch, dict[str, Snapshot]] | None:
        """An owner's batch and those of its jobs that exist."""
        query = select(Job).where(Job.owner == owner, Job.batch_id == batch_id)
        with self._store.reading.begin() as session:
            batch = session.get(Batch, batch_id)
            if batch is None or batch.owner != owner:
                return None
            snapshots = [self._store.snapshot(session, job) for job in session.scalars(query)]
        return batch, {snapshot.job.id: snapshot for snapshot in snapshots}

    def _plan(
        self, caller: Caller, asked: AskedBatch, batch_id: str
    ) -> tuple[list[dict[str, Any]], list[NewJob]]:
        items: list[dict[str, Any]] = []
        jobs: list[NewJob] = []
        for sketch in asked.sketches:
            for reference in asked.references:
                for wanted in asked.seeds:
                    seed = secrets.randbelow(2**32) if wanted is None else wanted
                    params = {**asked.values, "seed": seed}
                    error = _problem(sketch, reference, params, caller.limits.max_side)
                    items.append(
                        {
                            "sketch": sketch.name,
                            "reference": reference.name,
                            "seed": seed,
                            "error": error,
                            "job": None,
                        }
                    )
                    if error is None:
                        jobs.append(_new_job(caller, sketch, reference, params, asked, batch_id))
        return items, jobs


def batch_document(batch: Batch, snapshots: dict[str, Snapshot]) -> BatchDocument:
    """Describe a batch.

    Args:
        batch: The batch.
        snapshots: Those of its jobs that exist, by id.
    """
    items = [
        _item(index, item, snapshots.get(item["job"] or ""))
        for index, item in enumerate(batch.items)
    ]
    return BatchDocument(
        id=batch.id,
        created_at=datetime.fromtimestamp(batch.created_at, UTC),
        counts=dict(Counter(item.status for item in items)),
        finished=all(item.status in (*FINAL, DELETED) for item in items),
        items=items,
        archive=f"/v1/batches/{batch.id}/archive.zip",
    )


def file_name(item: BatchItem, suffix: str) -> str:
    """Name of an item's picture in an archive: no path, no odd characters."""
    stems = (re.sub(r"\.[^.]*$", "", name) for name in (item.sketch, item.reference))
    words = [re.sub(r"\W+", "_", stem)[:40].strip("_") for stem in stems]
    return "-".join([f"{item.index:03d}", *(word for word in words if word), f"{item.seed}"]) + (
        f".{suffix}"
    )


def _problem(
    sketch: Source, reference: Source, params: dict[str, Any], max_side: int
) -> dict[str, Any] | None:
    """Why an item cannot be made."""
    if sketch.error or reference.error:
        return sketch.error or reference.error
    assert sketch.size is not None
    try:
        check_other_side(sketch.size, params, max_side)
    except ControlError as error:
        return to_problem(error).document()
    return None


def _new_job(
    caller: Caller,
    sketch: Source,
    reference: Source,
    params: dict[str, Any],
    asked: AskedBatch,
    batch_id: str,
) -> NewJob:
    assert sketch.picture_id and sketch.size and reference.picture_id and reference.size
    inputs = {"sketch": sketch.picture_id, "reference": reference.picture_id}
    sizes = {"sketch": sketch.size, "reference": reference.size}
    return NewJob(
        owner=caller.name,
        params=params,
        inputs=inputs,
        batch_key=batch_key(sizes, params),
        fingerprint=asked.fingerprint,
        priority=PRIORITY,
        max_active=caller.max_active,
        batch_id=batch_id,
        traceparent=caller.traceparent,
    )


def _item(index: int, item: dict[str, Any], snapshot: Snapshot | None) -> BatchItem:
    error, url = item["error"], None
    if item["job"] is None:
        status = FAILED
    elif snapshot is None:
        status = DELETED
    else:
        status, error = snapshot.job.status, snapshot.job.error
        url = f"/v1/jobs/{item['job']}/images/0" if status == SUCCEEDED else None
    return BatchItem(
        index=index,
        sketch=item["sketch"],
        reference=item["reference"],
        seed=item["seed"],
        status=status,  # type: ignore[arg-type]
        job=item["job"],
        error=ProblemDocument(**error) if error else None,
        url=url,
    )
