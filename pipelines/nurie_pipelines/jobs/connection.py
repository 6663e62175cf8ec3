"""The way to a cluster's job API: address, token, and clear words when either is wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
SECONDS_TO_ANSWER = 10
CHATTY_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class SubmitError(ValueError):
    """A job cannot be submitted or followed; the message says what to change."""


def job_api_address(address: str | None) -> str:
    """Return the address as ``http://host:port``.

    Args:
        address: The address, with or without ``http://`` (None: ``RAY_API_SERVER_ADDRESS``, then
            ``RAY_ADDRESS``, then this machine's usual one).

    Raises:
        SubmitError: It is the address of something else, as ``ray://`` or ``auto``.
    """
    given = map(os.environ.get, ADDRESS_VARIABLES)
    found = address or next(filter(None, given), DEFAULT_ADDRESS)
    if "://" not in found and ":" in found:
        found = f"http://{found}"
    if not found.startswith(("http://", "https://")):
        raise SubmitError(
            f"{found} is no job API address: give --address http://HEAD:8265 (the dashboard's port)"
        )
    return found.rstrip("/")


def cluster_token() -> str | None:
    """Return the token from where Ray looks for it, or None.

    Raises:
        SubmitError: ``RAY_AUTH_TOKEN_PATH`` names no file.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"
    if path.is_file():
        return path.read_text().strip()
    if given:
        raise SubmitError(f"RAY_AUTH_TOKEN_PATH={given}: there is no such file")
    return None


def connect_client(address: str) -> JobSubmissionClient:
    """Return a client of the job API at ``address``, which answers and accepts the token.

    Raises:
        SubmitError: Nothing answers, something else answers, or the token is missing or wrong.
    """
    import requests
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY_LOGGERS:  # after the import, which sets their levels
        logging.getLogger(name).setLevel(logging.ERROR)
    token = cluster_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # Ray's own client waits without a limit for a host that swallows packets.
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=SECONDS_TO_ANSWER)
    except requests.RequestException as error:
        raise SubmitError(
            f"no Ray cluster answers at {address} ({type(error).__name__}): is the head running, "
            "with its dashboard on this address and port?"
        ) from error
    if answer.status_code == 401:
        raise SubmitError(
            f"the cluster at {address} wants a token: set RAY_AUTH_TOKEN_PATH to the token file "
            "of the cluster, or RAY_AUTH_TOKEN"
        )
    if answer.status_code == 403:
        raise SubmitError(
            f"the cluster at {address} refuses the token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token (the first one that is set) belongs to another cluster"
        )
    if answer.status_code != 200 or "ray_version" not in answer.text:
        raise SubmitError(f"{address} answers, but not as a Ray job API ({answer.status_code})")
    with _without_ray_address():
        return JobSubmissionClient(address, headers=headers)


@contextmanager
def _without_ray_address() -> Iterator[None]:
    """Hide the variables that override an address given to Ray's client."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
