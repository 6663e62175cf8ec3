"""Child processes of the demo: their logs, their end, and free ports for them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

STOP_SIGNALS = ((signal.SIGINT, 5.0), (signal.SIGTERM, 15.0))
"""What a process is sent to end it, and the seconds it has: children of a shell's background job
ignore the first."""
LOG_TAIL_BYTES = 8192
# Progress bars go to the log too, which is no terminal: the demo shows its newest line.
_SHOW_PROGRESS = {"PYTHONUNBUFFERED": "1", "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class StepError(RuntimeError):
    """A step of the demo failed; the message holds the end of its log."""


class NurieProcess:
    """One ``nurie`` command in a process of its own, with its output in a file.

    Use it in a ``with`` block: at the end of the block the process and all that it started
    (Ray's processes, workers) are gone.

    Args:
        words: The command's arguments, as ``["data", "build", "configs/data/characters.yaml"]``.
        log: File for the output.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.words = list(words)
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nurie_cli.main", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # Ctrl+C reaches the demo only, which then stops its children in order.
                start_new_session=True,
                env={**os.environ, **_SHOW_PROGRESS},
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def __enter__(self) -> NurieProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, on_line: Callable[[str], None]) -> None:
        """Wait for a successful end and report the newest line of output meanwhile.

        Raises:
            StepError: The command returned another exit code than 0.
        """
        while self._process.poll() is None:
            on_line(last_line(self.log))
            time.sleep(0.3)
        if self._process.returncode:
            raise self.failure(f"ended with exit code {self._process.returncode}")

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until the command, which is to stay alive, is ready.

        Raises:
            StepError: The command ended, or the time is over.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None:
                raise self.failure(f"ended with exit code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self.failure(f"was not ready after {seconds:.0f} s")
            time.sleep(0.3)

    def is_running(self) -> bool:
        """Whether the command still runs."""
        return self._process.poll() is None

    def failure(self, reason: str) -> StepError:
        """Describe a failure with the end of the log."""
        tail = "\n".join(_lines(self.log)[-15:])
        return StepError(f"`nurie {' '.join(self.words)}` {reason}.\n{tail}\nWhole log: {self.log}")

    def stop(self) -> None:
        """End the command and everything it started; does nothing when all has ended."""
        if self.is_running():
            family = psutil.Process(self._process.pid).children(recursive=True)
            for number, seconds in STOP_SIGNALS:
                self._process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
                    break
            # Ray's processes end with their driver; they get a moment for it.
            _, alive = psutil.wait_procs(family, 5.0)
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def unwind_on_signals() -> None:
    """Let the first Ctrl+C or `kill` unwind the program, which ends its children; ignore others.

    A second signal would cut the cleaning up: impatient users press twice, `timeout` sends two.
    """

    def unwind(number: int, _: object) -> None:
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, unwind)


def last_line(log: Path) -> str:
    """Return the newest line of a log that is not empty, without colours."""
    return next(reversed(_lines(log)), "").strip()


def free_port(wanted: int) -> int:
    """Return ``wanted`` if nothing listens there, else a port the system chooses."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise StepError("no free port on 127.0.0.1")


def _lines(log: Path) -> list[str]:
    """The last lines that are not empty; progress bars rewrite theirs with CR."""
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - LOG_TAIL_BYTES))
        text = _TERMINAL_CODES.sub("", stream.read().decode(errors="replace"))
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
