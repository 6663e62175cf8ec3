"""The JSON documents of the API, for the server's answers and the client's results alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Document(BaseModel):
    """Base of the documents; the docstring below a field is its description."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ProblemDocument(Document):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    """Always ``about:blank``: ``code`` tells problems apart."""
    title: str
    """Name of the status."""
    status: int
    """HTTP status."""
    code: str
    """Stable short name, for programs."""
    detail: str
    """What is wrong and what to do, for people."""
    field: str | None = None
    """The field at fault."""
    request_id: str | None = None
    """``X-Request-Id`` of the answer; null in what a job ended with."""


class QueueDocument(Document):
    """Place of a waiting job."""

    position: int
    """From 1."""
    eta_s: float | None
    """Estimated seconds until it is done; null while nothing is known."""


class ProgressDocument(Document):
    """How far a running job is."""

    step: int
    """Denoising steps done."""
    steps: int | None
    """Steps in all."""
    eta_s: float | None
    """Estimated seconds until the last step."""


class ImageDocument(Document):
    """A finished picture."""

    index: int
    """Number within the job, from 0."""
    seed: int
    """The same seed gives the same picture."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    bytes: int
    """Size of what is kept: the picture and its layers."""
    sha256: str
    """Of the PNG without its settings (``metadata=0``): the same seed gives the same."""
    url: str
    """Where to get it."""


class WebhookDocument(Document):
    """Telling somebody that a job has ended."""

    url: str
    """Who is told."""
    tries: int
    """How often that was tried."""
    status: int | None
    """HTTP status of the newest answer; null if there was none."""
    due_at: datetime | None
    """When it is tried next; null before the job has ended, and when it is over."""


class JobDocument(Document):
    """One picture to make."""

    id: str
    """Name of the job."""
    status: JobStatus
    """Jobs end as succeeded, failed or cancelled."""
    created_at: datetime
    """When it was accepted."""
    started_at: datetime | None
    """When a replica took it."""
    finished_at: datetime | None
    """When it ended."""
    expires_at: datetime | None
    """When it and its pictures are deleted."""
    queue: QueueDocument | None
    """While it waits."""
    progress: ProgressDocument | None
    """While it runs."""
    priority: int = 0
    """Those of a higher one are taken first, then the older."""
    params: dict[str, Any]
    """Every control; null is the model's own choice."""
    model: str | None
    """Model and digest that made the pictures."""
    images: list[ImageDocument]
    """The pictures."""
    timing: dict[str, float]
    """Seconds by stage."""
    attempts: int
    """How often a replica has begun."""
    error: ProblemDocument | None
    """Why it failed."""
    batch: str | None = None
    """Batch that it belongs to."""
    traceparent: str | None = None
    """Trace that its request was part of (W3C Trace Context)."""
    webhook: WebhookDocument | None = None
    """Who is told when it has ended."""


class JobPage(Document):
    """Some of the caller's jobs, newest first."""

    jobs: list[JobDocument]
    """The jobs."""
    cursor: str | None
    """Give it back as ``cursor`` for the next page; null on the last."""


class UploadDocument(Document):
    """A picture that was sent once, to be used often."""

    upload_id: str
    """Send it as text in the place of a file."""
    sha256: str
    """Of the picture as kept: decoded, turned upright, without metadata."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    expires_at: datetime
    """When it is deleted."""


class BatchItem(Document):
    """One picture of a batch."""

    index: int
    """Number within the batch, from 0."""
    sketch: str
    """Name of its sketch, as sent."""
    reference: str
    """Name of its reference, as sent."""
    seed: int
    """Its seed."""
    status: JobStatus | Literal["deleted"]
    """Of its job."""
    job: str | None
    """Its job; null if the item was refused."""
    error: ProblemDocument | None
    """Why it was refused or failed."""
    url: str | None
    """Where its picture is, once it is finished."""


class BatchDocument(Document):
    """Many pictures asked for at once: every sketch with every reference and every seed."""

    id: str
    """Name of the batch."""
    created_at: datetime
    """When it was accepted."""
    counts: dict[str, int]
    """Items by status."""
    finished: bool
    """Whether every item has ended."""
    items: list[BatchItem]
    """The pictures."""
    archive: str
    """Where a zip of the finished pictures is."""


class CountDocument(Document):
    """How many."""

    count: int
    """Number of jobs."""


def moment(seconds: float | None) -> datetime | None:
    """A point in time from Unix seconds."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
