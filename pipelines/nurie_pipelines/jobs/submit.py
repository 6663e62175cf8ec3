"""``nurie submit``: run a nurie command as a job on a Ray cluster, as if it ran here.

What travels: the four packages of this installation, ``configs/`` and ``assets/`` of the current
folder, and the files that the command names by a relative path. Data sets and runs stay where they
are. Where the cluster sees the current folder (same machine, shared disk) the job runs in it, so
that ``data/`` and ``runs/`` are the same as without a cluster; else it runs in the uploaded copy.
"""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nurie_pipelines.jobs.connection import SubmitError, connect_client, job_api_address

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PACKAGES = ("nurie", "nurie_cli", "nurie_pipelines", "nurie_serve")
FOLDERS = ("configs", "assets")
MAX_UPLOAD_BYTES = 500 * 2**20  # Ray refuses packages over 512 MiB
ATTEMPTS_TO_REACH = 20
SECONDS_BETWEEN = 3.0
SECONDS_TO_STOP = 300
INTERRUPTED = 130


def submit(
    argv: Sequence[str],
    address: str | None = None,
    *,
    submission_id: str | None = None,
    working_dir: Path | None = None,
    cluster_dir: str | None = None,
    entrypoint_num_cpus: float = 0.0,
) -> int:
    """Run ``nurie ARGV`` on a cluster, print its log and return its exit code.

    The cluster's token comes from ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or
    ``~/.ray/auth_token``. Ctrl+C stops the job; on a terminal it asks first.

    Args:
        argv: The command, as ``["train", "configs/train/nano.yaml"]``.
        address: The job API, as ``http://head:8265`` (None: ``RAY_API_SERVER_ADDRESS``, then
            ``RAY_ADDRESS``, then this machine).
        submission_id: Name of the job; a job of this name that exists is followed instead of
            started again, so that a repeated command does no harm (None: one is made up).
        working_dir: Folder to submit from (None: the current one).
        cluster_dir: Folder of the cluster to run in, with its own configs; only the packages
            are uploaded then (None: see the module's docstring).
        entrypoint_num_cpus: CPUs reserved for the driver; more than 0 keeps it off a head node
            that offers none.

    Returns:
        The exit code of the command; 130 after Ctrl+C.

    Raises:
        SubmitError: The cluster cannot be reached, refuses the token, or the job's name belongs
            to another command.
    """
    folder = (working_dir or Path.cwd()).absolute()
    entrypoint = _entrypoint(argv, folder, cluster_dir)
    client = connect_client(job_api_address(address))
    job_id = submission_id or f"{argv[0]}-{secrets.token_hex(4)}"
    try:
        with _upload_folder(argv, folder, cluster_dir) as upload:
            job = {
                "submission_id": job_id,
                "entrypoint": entrypoint,
                "runtime_env": _runtime_env(upload),
                "entrypoint_num_cpus": entrypoint_num_cpus or None,
            }
            _start(client, job)
        return _follow(client, job_id)
    except KeyboardInterrupt:
        _interrupt(client, job_id)
        return INTERRUPTED


def _entrypoint(argv: Sequence[str], folder: Path, cluster_dir: str | None) -> str:
    command = f"exec python -m nurie_cli.main {shlex.join(argv)}"
    if cluster_dir is not None:
        return f"cd {shlex.quote(cluster_dir)} && {command}"
    # configs/ tells the same folder from one that has the same name on another machine.
    here = shlex.quote(str(folder))
    return f"if [ -d {here}/configs ]; then cd {here}; fi; {command}"


def _start(client: JobSubmissionClient, job: dict[str, Any]) -> None:
    """Submit the job unless one of its name exists, through broken connections and a busy head.

    A submission whose answer is lost may have arrived: the job's name tells.
    """
    error: Exception | None = None
    for _ in range(ATTEMPTS_TO_REACH):
        try:
            if not _exists(client, job):
                client.submit_job(**job)
                _tell(f"job {job['submission_id']} submitted to {client.get_address()}")
            return
        except (OSError, RuntimeError) as failed:
            # A status of 5xx passes, as while the head is still starting; others are a refusal.
            if isinstance(failed, RuntimeError) and "status code 5" not in str(failed):
                raise SubmitError(f"the cluster refuses the job: {failed}") from failed
            error = failed
            time.sleep(SECONDS_BETWEEN)
    raise SubmitError(f"cannot submit to {client.get_address()}: {error}") from error


def _exists(client: JobSubmissionClient, job: dict[str, Any]) -> bool:
    name = job["submission_id"]
    found = next((each for each in client.list_jobs() if each.submission_id == name), None)
    if found is None:
        return False
    if found.entrypoint != job["entrypoint"]:
        raise SubmitError(
            f"job {name} exists and runs another command ({found.entrypoint}): "
            "choose another --submission-id"
        )
    _tell(f"job {name} exists ({found.status.value.lower()}): following it")
    return True


def _runtime_env(upload: Path | None) -> dict[str, object]:
    """Return the environment of the driver and of all its workers.

    The packages go as modules, not through ``PYTHONPATH`` into the uploaded folder: Ray Train
    changes the directory of its workers, after which relative entries lead nowhere.
    """
    folders = filter(None, map(_package_folder, PACKAGES))
    environment: dict[str, object] = {
        "py_modules": [str(folder) for folder in folders],
        "env_vars": {
            "PYTHONUNBUFFERED": "1",
            # A stopped training finishes its step and writes a checkpoint; Ray gives 3 s.
            "RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_STOP),
        },
    }
    if upload is not None:
        environment["working_dir"] = str(upload)
    return environment


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None


@contextmanager
def _upload_folder(
    argv: Sequence[str], folder: Path, cluster_dir: str | None
) -> Iterator[Path | None]:
    """Collect what travels besides the packages in a temporary folder."""
    if cluster_dir is not None:
        yield None
        return
    named = [word for word in map(Path, argv) if not word.is_absolute() and ".." not in word.parts]
    with tempfile.TemporaryDirectory(prefix="nurie-submit-") as temporary:
        target = Path(temporary)
        for name in FOLDERS:
            if (folder / name).is_dir():
                hidden = shutil.ignore_patterns(".*", "__pycache__")
                shutil.copytree(folder / name, target / name, ignore=hidden)
        for name in named:
            if (folder / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(folder / name, target / name)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        if size > MAX_UPLOAD_BYTES:
            raise SubmitError(
                f"{', '.join(FOLDERS)} and the named files are {size / 2**20:.0f} MiB; at most "
                f"{MAX_UPLOAD_BYTES // 2**20} MiB travel with a job: put them on a disk of the "
                "cluster and use --cluster-dir"
            )
        yield target


def _follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print the log until the job ends, through broken connections, and return its exit code."""
    import aiohttp

    printed = 0
    failures = 0
    while True:
        try:
            for chunk in _log(client, job_id, skip=printed):
                print(chunk, end="", flush=True)
                printed += len(chunk)
            job = client.get_job_info(job_id)
            if job.status.is_terminal():
                return _exit_code(job)
            failures = 0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            failures += 1
            if failures >= ATTEMPTS_TO_REACH:
                raise SubmitError(
                    f"lost the cluster while following job {job_id} ({error}), which may go on: "
                    f"the same command with --submission-id {job_id} follows it again"
                ) from error
            time.sleep(SECONDS_BETWEEN)
        else:
            time.sleep(0.2)  # the log closes a moment before the status changes


def _log(client: JobSubmissionClient, job_id: str, skip: int) -> Iterator[str]:
    """Yield the log from character ``skip`` on; Ray always starts at the beginning."""
    chunks = client.tail_job_logs(job_id)

    async def next_chunk() -> str | None:
        return await anext(chunks, None)

    with asyncio.Runner() as runner:
        while (chunk := runner.run(next_chunk())) is not None:
            if skip < len(chunk):
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))


def _exit_code(job: JobDetails) -> int:
    status = job.status.value
    if status == "SUCCEEDED":
        return 0
    reason = (job.message or "").split(", last available logs")[0]  # the log is printed already
    _tell(f"job {job.submission_id} {status.lower()}: {reason}")
    code = job.driver_exit_code
    if not code:  # never started, or stopped
        return 1
    return 128 - code if code < 0 else code


def _interrupt(client: JobSubmissionClient, job_id: str) -> None:
    """Stop the job after Ctrl+C, or leave it running when the user at a terminal says so."""
    if sys.stdin.isatty():
        try:
            answer = input(f"\nStop job {job_id} on the cluster? [Y/n] ")
        except (KeyboardInterrupt, EOFError):
            answer = "n"
        if answer.strip().lower().startswith("n"):
            _tell(
                f"job {job_id} goes on; the same command with --submission-id {job_id} follows it"
            )
            return
    try:
        client.stop_job(job_id)
        _tell(f"job {job_id} is being stopped")
    except (RuntimeError, OSError) as error:
        _tell(f"job {job_id} cannot be stopped, or was not started yet: {error}")


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
