"""Requests to an endpoint, one at a time, and what has become of the jobs; tests use it, too."""

from __future__ import annotations

import io
from typing import Any

import requests
from PIL import Image, ImageDraw

from benchmarks.load.waiting import eventually
from nurie.config.serve import JobsConfig
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import FINAL, Event, Job
from nurie_serve.jobs.tables import Image as ImageRow

Files = dict[str, bytes]
TIMEOUT_S = 60.0


def drawing(width: int = 96, height: int = 64) -> bytes:
    """A PNG of a few lines."""
    sketch = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(sketch).ellipse((8, 8, width - 8, height - 8), outline="black", width=2)
    buffer = io.BytesIO()
    sketch.save(buffer, "PNG")
    return buffer.getvalue()


def drawings(width: int = 96, height: int = 64) -> Files:
    """A form's pictures."""
    return {"sketch": drawing(width, height), "reference": drawing(width, height)}


class Endpoint:
    """One endpoint.

    Attributes:
        accepted: Ids of the jobs that it has promised to make.
        asked: One entry per job that it was asked for.

    Args:
        address: Of the endpoint.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.accepted: list[str] = []
        self.asked: list[str] = []

    def get(self, path: str, timeout: float = TIMEOUT_S) -> requests.Response:
        """Read something."""
        return requests.get(self.address + path, timeout=timeout)

    def colorize(
        self, files: Files, headers: dict[str, str] | None = None, **data: Any
    ) -> requests.Response:
        """Have a sketch coloured and wait."""
        url = f"{self.address}/v1/colorize"
        self.asked.append(url)
        answer = requests.post(url, files=files, data=data, headers=headers, timeout=TIMEOUT_S)
        if answer.ok:
            self.accepted.append(answer.headers["x-job-id"])
        return answer

    def submit(self, files: Files, **data: Any) -> dict[str, Any]:
        """Have a job accepted."""
        url = f"{self.address}/v1/jobs"
        self.asked.append(url)
        answer = requests.post(url, files=files, data=data, timeout=TIMEOUT_S)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        self.accepted.append(job["id"])
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        """How a job is doing."""
        return self.get(f"/v1/jobs/{job_id}").json()

    def ended(self, job_id: str, seconds: float = 180.0) -> dict[str, Any]:
        """Wait until a job has ended, even while the endpoint does not answer."""

        def look() -> dict[str, Any] | None:
            try:
                answer = self.get(f"/v1/jobs/{job_id}")
            except requests.RequestException:
                return None
            found = answer.json() if answer.status_code == 200 else {}
            return found if found.get("status") in FINAL else None

        return eventually(look, seconds, 0.1)

    def models(self) -> list[str]:
        """Names of the models that answer."""
        return [model["name"] for model in self.get("/v1/models").json()["models"]]

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self.get("/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def running(self) -> list[dict[str, Any]]:
        """Jobs that run."""
        return self.get("/v1/jobs?status=running").json()["jobs"]


def digest_of(job: dict[str, Any]) -> str | None:
    """SHA-256 of a job's picture."""
    return job["images"][0]["sha256"] if job.get("images") else None


def count_faults(jobs: JobsConfig, accepted: list[str], num_sent: int) -> tuple[int, int]:
    """Lost and duplicated jobs, counted in the store itself.

    Args:
        jobs: Where the store is.
        accepted: Ids of the jobs that the endpoint has promised to make.
        num_sent: Jobs that it was asked for.

    Returns:
        Accepted jobs that are missing or have not ended; jobs that nobody asked for, and pictures
        and ends beyond the first of a job.
    """
    store = JobStore(jobs, 1)
    with store.reading.begin() as session:
        status = {row.id: row.status for row in session.query(Job.id, Job.status)}
        ends = [row.job_id for row in session.query(Event.job_id).filter(Event.kind == "done")]
        pictures = [row.job_id for row in session.query(ImageRow.job_id)]
    store.close()
    lost = sum(status.get(job_id) not in FINAL for job_id in accepted)
    twice = [len(found) - len(set(found)) for found in (ends, pictures)]
    return lost, max(0, len(status) - num_sent) + max(twice)
