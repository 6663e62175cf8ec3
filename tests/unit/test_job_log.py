"""Following a job's log through a connection that breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobStatus

from nurie_pipelines.jobs import submit
from nurie_pipelines.jobs.connection import SubmitError

LOST = requests.ConnectionError("Remote end closed connection without response")
BUSY = RuntimeError("Request failed with status code 500: No available agent to submit job.")
REFUSED = RuntimeError("Request failed with status code 400: bad runtime_env.")
CHUNKS = ["one\n", "two\n", "three\n"]


class BreakingClient:
    """A job API whose log connection breaks after the given numbers of chunks, then works."""

    def __init__(self, breaks: list[int], status: JobStatus, exit_code: int | None) -> None:
        self.breaks = breaks
        self.status = status
        self.exit_code = exit_code

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        limit = self.breaks.pop(0) if self.breaks else None
        for chunk in CHUNKS[:limit]:
            yield chunk
        if limit is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        return SimpleNamespace(
            submission_id=job_id,
            status=self.status,
            message="it ended, last available logs: ...",
            driver_exit_code=self.exit_code,
        )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(submit, "SECONDS_BETWEEN", 0.0)


@pytest.mark.parametrize("breaks", [[], [0], [2], [1, 2, 0]])
def test_every_line_once(breaks, capsys):
    client = BreakingClient(breaks, JobStatus.SUCCEEDED, 0)
    assert submit._follow(client, "job") == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_exit_code(status, driver_exit_code, expected, capsys):
    assert submit._follow(BreakingClient([], status, driver_exit_code), "job") == expected
    assert "last available logs" not in capsys.readouterr().err


def test_gives_up_and_says_how_to_go_on():
    client = BreakingClient([0] * 100, JobStatus.RUNNING, None)
    with pytest.raises(SubmitError, match="--submission-id job follows it again"):
        submit._follow(client, "job")


class LosingClient:
    """A job API that loses the first answers; ``arrives`` says whether the job starts anyway."""

    def __init__(self, losses: int, arrives: bool, error: Exception = LOST) -> None:
        self.losses = losses
        self.arrives = arrives
        self.error = error
        self.jobs: list[SimpleNamespace] = []

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.jobs

    def submit_job(self, *, submission_id: str, entrypoint: str) -> None:
        self.losses -= 1
        if self.losses < 0 or self.arrives:
            status = JobStatus.RUNNING
            job = SimpleNamespace(submission_id=submission_id, entrypoint=entrypoint, status=status)
            self.jobs.append(job)
        if self.losses >= 0:
            raise self.error


@pytest.mark.parametrize("arrives", [True, False])
def test_a_lost_answer_starts_no_second_job(arrives):
    client = LosingClient(losses=2, arrives=arrives)
    submit._start(client, {"submission_id": "a", "entrypoint": "run"})
    assert len(client.jobs) == 1


def test_a_busy_head_is_asked_again():
    client = LosingClient(2, False, BUSY)
    submit._start(client, {"submission_id": "a", "entrypoint": "run"})
    assert len(client.jobs) == 1


def test_a_refusal_is_final():
    client = LosingClient(1, False, REFUSED)
    with pytest.raises(SubmitError, match="refuses the job.*bad runtime_env"):
        submit._start(client, {"submission_id": "a", "entrypoint": "run"})


def test_submitting_gives_up():
    with pytest.raises(SubmitError, match="cannot submit to http://head:8265"):
        submit._start(LosingClient(100, False), {"submission_id": "a", "entrypoint": "run"})


@pytest.mark.parametrize(("answer", "stopped"), [("", True), ("y", True), ("n", False)])
def test_interrupt_at_a_terminal_asks(answer, stopped, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    submit._interrupt(SimpleNamespace(stop_job=calls.append), "job")
    assert calls == (["job"] if stopped else [])


def test_too_much_to_upload(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "weights").write_bytes(b"0" * 100)
    monkeypatch.setattr(submit, "MAX_UPLOAD_BYTES", 99)
    with (
        pytest.raises(SubmitError, match="--cluster-dir"),
        submit._upload_folder(["train"], tmp_path, None),
    ):
        pass
