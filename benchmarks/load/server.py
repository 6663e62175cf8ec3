"""The process of the application: starting, asking, measuring and killing it and its children."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from nurie.config.serve import AutoscalingConfig, JobsConfig, LimitsConfig, ServeConfig

ROOT = Path(__file__).parents[2]
SERVE_PROCESSES = ("ServeReplica", "ServeController", "ProxyActor")
COLORIZER, PROXY, CONTROLLER = "ServeReplica:nurie:Colorizer", "ProxyActor", "ServeController"
DEADLINE_S = 20.0
STEP_TIMEOUT_S = 5.0
LEASE_S = 5.0


class ServerFailed(RuntimeError):
    """The application did not do what it was told; the message is its own."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_processes(root: psutil.Process, *names: str) -> list[psutil.Process]:
    """Descendants of a process whose command line has one of these names."""
    found = []
    for process in root.children(recursive=True):
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(name in words for name in names):
            found.append(process)
    return found


class Server:
    """A real application of its own; a context manager that leaves nothing behind.

    Attributes:
        config: The application's settings.
        folder: Of its jobs and its log.
        wrapper: Command that the application is started by.

    Args:
        model: ``nano`` or ``sleep``.
        step_s: Seconds that a step takes (longer).
        each_s: Seconds of every picture of a sleeping step.
        folder: Existing folder to use (None: a temporary one).
        settings: Fields of the configuration.
    """

    def __init__(
        self,
        model: str = "sleep",
        step_s: float = 0.01,
        each_s: float = 0.0,
        *,
        folder: Path | None = None,
        **settings: Any,
    ) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="nurie-load-"))
        usual = {
            "model": str(ROOT / "assets/nano"),
            "port": free_port(),
            "autoscaling": AutoscalingConfig(min_replicas=1, max_replicas=1),
            "limits": LimitsConfig(deadline_s=DEADLINE_S, step_timeout_s=STEP_TIMEOUT_S),
            "jobs": JobsConfig(
                folder=str(self.folder / "jobs"), max_kept=1_000_000, lease_s=LEASE_S
            ),
        }
        self.config = ServeConfig(**(usual | settings))
        self._given = {"model": model, "step_s": step_s, "each_s": each_s}
        self.wrapper: Sequence[str] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the endpoint."""
        return self.config.address

    @property
    def pid(self) -> int:
        """Of the driver."""
        return self._process.pid

    def start(self) -> None:
        """Start the application and wait until it answers.

        Raises:
            ServerFailed: If it does not.
        """
        given = {"config": self.config.model_dump(mode="json"), **self._given}
        command = [*self.wrapper, sys.executable, "-m", "benchmarks.load.application"]
        self._log = (self.folder / "application.log").open("a")
        self._process = subprocess.Popen(
            [*command, json.dumps(given)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._root = psutil.Process(self._process.pid)
        self.ask("start")

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the application do something.

        Raises:
            ServerFailed: If that fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **fields}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("@"):
                answer = json.loads(line[1:])
                if "error" in answer:
                    raise ServerFailed(answer["error"])
                return answer
        raise ServerFailed(f"the application ended: {self.log_end()}")

    def log_end(self) -> str:
        """The last words of the application's process."""
        return (self.folder / "application.log").read_text()[-500:]

    def processes(self, *names: str) -> list[psutil.Process]:
        """The application's processes of these names (none given: of Ray Serve)."""
        return find_processes(self._root, *(names or SERVE_PROCESSES))

    def cpu_seconds(self) -> float:
        """CPU time of the whole cluster and of the children that have ended."""
        total = 0.0
        for process in self._root.children(recursive=True):
            try:
                total += sum(process.cpu_times()[:4])
            except psutil.Error:
                continue
        return total

    def memory_bytes(self) -> int:
        """Resident memory of Ray Serve's processes."""
        return sum(_or_zero(lambda p=p: p.memory_info().rss) for p in self.processes())

    def num_descriptors(self) -> int:
        """Open files and sockets of Ray Serve's processes."""
        return sum(_or_zero(process.num_fds) for process in self.processes())

    def num_connections(self, ports: Collection[int]) -> int:
        """Connections that Ray Serve's processes hold to these ports of visitors."""
        return sum(
            connection.raddr.port in ports
            for process in self.processes()
            for connection in process.net_connections("tcp")
            if connection.raddr
        )

    def kill(self) -> None:
        """Kill the driver and its cluster at once, as a power cut would."""
        doomed = [self._root, *self._root.children(recursive=True)] if self._alive() else []
        for process in doomed:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(doomed, timeout=20)
        self._process.wait()
        self._log.close()

    def _alive(self) -> bool:
        return self._process.poll() is None


def _or_zero(measure: Any) -> int:
    try:
        return measure()
    except psutil.Error:
        return 0
