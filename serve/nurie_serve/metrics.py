"""What the endpoint counts; Ray exports it to Prometheus beside its own figures.

Ray puts ``ray_`` before the names; ``infra/monitoring`` has a dashboard and alerts that use them.
Outside Ray the calls do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300]

JOBS_ENDED = Counter(
    "nurie_jobs_ended_total",
    "jobs by how they ended; code is empty for pictures",
    ("status", "code"),
)
REQUESTS_REFUSED = Counter(
    "nurie_requests_refused_total", "requests answered with a problem", ("status", "code")
)
REPLICAS_LOST = Counter("nurie_replicas_lost_total", "calls whose replica died")
WEBHOOKS = Counter(
    "nurie_webhooks_total", "messages about jobs that ended, by class of the answer", ("answer",)
)
QUEUE = Gauge("nurie_queue_jobs", "jobs that wait or run", ("status",))
QUEUE_AGE = Gauge("nurie_queue_age_seconds", "seconds that the oldest waiting job waits")
REPLICAS = Gauge("nurie_replicas_alive", "replicas that live")
STORED_BYTES = Gauge("nurie_stored_bytes", "bytes of all pictures in the store")
STAGE_SECONDS = Histogram("nurie_stage_seconds", "seconds by stage of a job", _SECONDS, ("stage",))
BATCH_JOBS = Histogram("nurie_batch_jobs", "jobs that ran together", [1, 2, 3, 4, 6, 8, 12, 16, 32])
REFERENCES = Counter(
    "nurie_reference_encodings_total",
    "encodings of references, remembered (hit) or made",
    ("result",),
)


def count_ended(status: str, code: str | None) -> None:
    """A job has ended."""
    JOBS_ENDED.inc(1, {"status": status, "code": code or ""})


def show_load(
    counts: Mapping[str, int], age_s: float, num_replicas: int, stored_bytes: int
) -> None:
    """How the queue is now."""
    for status in ("queued", "running"):
        QUEUE.set(counts.get(status, 0), {"status": status})
    QUEUE_AGE.set(age_s)
    REPLICAS.set(num_replicas)
    STORED_BYTES.set(stored_bytes)


def observe_stages(timing: Mapping[str, float]) -> None:
    """How long the stages of a job took.

    Args:
        timing: Seconds by stage, e.g. ``denoise_s``.
    """
    for name, seconds in timing.items():
        STAGE_SECONDS.observe(seconds, {"stage": name.removesuffix("_s")})


class CacheCount:
    """Counts what a reference cache has done since it was last asked."""

    def __init__(self) -> None:
        self._seen = (0, 0)

    def take(self, hits: int, misses: int) -> None:
        """Add what is new.

        Args:
            hits: Since the cache was made.
            misses: Likewise.
        """
        for result, now, before in zip(("hit", "miss"), (hits, misses), self._seen, strict=True):
            if now > before:
                REFERENCES.inc(now - before, {"result": result})
        self._seen = (hits, misses)
