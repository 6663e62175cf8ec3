"""One line per thing that happens to a job, in the log of the replica that did it.

The logger is a child of Ray Serve's, so lines go where Serve's go; with ``log_format: json`` each
is one JSON object with the fields below.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("ray.serve.nurie")


def log_job(event: str, job_id: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line.

    Args:
        event: What happened, e.g. ``accepted``.
        job_id: To which job.
        level: Of the line.
        fields: What else there is to say.
    """
    known = {"event": event, "job_id": job_id, **fields}
    known = {name: value for name, value in known.items() if value is not None}
    text = " ".join(f"{name}={value}" for name, value in known.items())
    logger.log(level, text, extra=known)
