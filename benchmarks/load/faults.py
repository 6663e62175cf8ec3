"""Faults that kill processes of a running application; the tests do the same and assert."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import requests

from benchmarks.load.endpoint import Endpoint, Files
from benchmarks.load.waiting import eventually

STEPS = 6
SEED = 5


@dataclass(frozen=True)
class KilledReplica:
    """What came of a replica that was killed in mid-job.

    Args:
        waiting: Answer to the visitor who waited for the job that ran.
        before: The same job, made before.
        queued: The same job, which waited in the queue.
        back_after_s: Seconds until the queue moved again.
    """

    waiting: requests.Response
    before: dict[str, Any]
    queued: dict[str, Any]
    back_after_s: float


def kill_replica(
    endpoint: Endpoint, files: Files, find: Callable[[], Sequence[psutil.Process]]
) -> KilledReplica:
    """Kill the replica that makes a picture while another waits.

    Args:
        endpoint: The endpoint.
        files: The form's pictures.
        find: The processes to kill.
    """
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "seed": SEED}
    before = endpoint.ended(endpoint.submit(files, **settings)["id"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(endpoint.colorize, files, **settings)
        (first, *_) = eventually(endpoint.running)
        queued = endpoint.submit(files, **settings)
        killed_at = time.monotonic()
        kill(find())
        # What the dead one was making counts as running for a while: look for another try. Not too
        # often: every look costs the ingress time that the new replica needs to start.
        eventually(lambda: set(map(_try, endpoint.running())) - {_try(first)}, 150, 0.2)
        back_after_s = time.monotonic() - killed_at
        answer = waiting.result()
    return KilledReplica(answer, before, endpoint.ended(queued["id"]), back_after_s)


def _try(job: dict[str, Any]) -> tuple[str, int]:
    return job["id"], job["attempts"]


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL."""
    assert processes
    for process in processes:
        process.kill()


def send_meanwhile(
    endpoint: Endpoint, files: Files, happens: Callable[[], object]
) -> list[requests.Response]:
    """One request after the other while something happens, and one afterwards."""
    stop = threading.Event()

    def keep_sending() -> list[requests.Response]:
        answers = []
        while not stop.is_set():
            answers.append(endpoint.colorize(files, num_inference_steps=1))
        answers.append(endpoint.colorize(files, num_inference_steps=1))
        return answers

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(keep_sending)
        try:
            happens()
        finally:
            stop.set()
        return sending.result()


def outage_s(endpoint: Endpoint, every_s: float = 0.1, seconds: float = 60.0) -> float:
    """Seconds until the endpoint answers again; 0 if it never stopped for two seconds."""
    began = last_failed = time.monotonic()
    failed = False
    while time.monotonic() - began < seconds:
        if not endpoint.is_ready():
            failed, last_failed = True, time.monotonic()
        elif time.monotonic() - last_failed > 2:
            break
        time.sleep(every_s)
    return last_failed - began if failed else 0.0
