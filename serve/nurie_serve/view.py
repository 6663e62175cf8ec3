"""From a job in the store to the document that the API shows."""

from __future__ import annotations

from datetime import UTC, datetime

from nurie_serve.documents import (
    ImageDocument,
    JobDocument,
    ProblemDocument,
    ProgressDocument,
    QueueDocument,
    WebhookDocument,
    moment,
)
from nurie_serve.jobs.store import Snapshot
from nurie_serve.jobs.tables import RUNNING, Job


def job_document(snapshot: Snapshot, keep_s: float) -> JobDocument:
    """Describe a job.

    Args:
        snapshot: The job.
        keep_s: Seconds that a finished job is kept.
    """
    job = snapshot.job
    queue = progress = None
    if snapshot.position is not None:
        queue = QueueDocument(position=snapshot.position, eta_s=snapshot.eta_s)
    if job.status == RUNNING:
        progress = ProgressDocument(step=job.step, steps=job.num_steps, eta_s=snapshot.eta_s)
    return JobDocument(
        id=job.id,
        status=job.status,  # type: ignore[arg-type]
        created_at=datetime.fromtimestamp(job.created_at, UTC),
        started_at=moment(job.started_at),
        finished_at=moment(job.finished_at),
        expires_at=moment(job.finished_at and job.finished_at + keep_s),
        queue=queue,
        progress=progress,
        priority=job.priority,
        params=job.params,
        model=job.model,
        images=[
            ImageDocument(
                index=image.number,
                seed=image.seed,
                width=image.width,
                height=image.height,
                bytes=image.num_bytes,
                sha256=image.sha256,
                url=f"/v1/jobs/{job.id}/images/{image.number}",
            )
            for image in snapshot.images
        ],
        timing=job.timing,
        attempts=job.attempts,
        error=ProblemDocument(**job.error) if job.error else None,
        batch=job.batch_id,
        traceparent=job.traceparent,
        webhook=_webhook(job),
    )


def _webhook(job: Job) -> WebhookDocument | None:
    if job.webhook is None:
        return None
    return WebhookDocument(
        url=job.webhook,
        tries=job.webhook_tries,
        status=job.webhook_status,
        due_at=moment(job.webhook_due),
    )
