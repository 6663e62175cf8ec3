"""Clusters of several nodes on this machine, with token authentication, as people start them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "test-token-" + "0" * 32
PORTS = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port",
         "dashboard-agent-listen-port", "runtime-env-agent-port")  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A running head: where its job API is, where drivers join, and the token."""

    address: str
    gcs_address: str
    token_path: Path


@contextmanager
def head_node(log: Path) -> Iterator[Head]:
    """A head, started by our own script."""
    folder = Path(f"/tmp/nurie-head-{uuid.uuid4().hex[:8]}")  # short, for socket paths
    folder.mkdir(mode=0o700)
    (folder / "token").write_text(TOKEN)
    try:
        # `ray start --block` ends when one of its helpers is not up within 30 s, which happens
        # where many processes share two cores.
        for _ in range(3):
            ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
            process = start_head(folder, ports, log)
            try:
                if is_up(ports, process):
                    address = f"http://127.0.0.1:{ports['dashboard-port']}"
                    yield Head(address, f"127.0.0.1:{ports['port']}", folder / "token")
                    return
            finally:
                end_family(process)
        pytest.fail(f"the head did not come up:\n{log.read_text()}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start_head(folder: Path, ports: dict[str, int], log: Path) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [ROOT / "infra/ray/start-head.sh", "--num-cpus=2", "--object-store-memory=100000000",
         '--resources={"encoder": 1}', f"--temp-dir={folder}/ray",
         *(f"--{name}={port}" for name, port in ports.items())],
        env=clean | {
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def is_up(ports: dict[str, int], process: subprocess.Popen[bytes]) -> bool:
    """Wait until the job API and the last of the helpers answer, or the head ends."""
    import requests

    address = f"http://127.0.0.1:{ports['dashboard-port']}/api/jobs/"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for _ in range(240):
        if process.poll() is not None:
            return False
        try:
            requests.get(address, headers=headers, timeout=5).raise_for_status()
            socket.create_connection(("127.0.0.1", ports["ray-client-server-port"]), 5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return True
    return False


def end_family(process: subprocess.Popen[bytes]) -> None:
    """End the head and what it started, by their ids."""
    import psutil

    family = [process.pid]
    if psutil.pid_exists(process.pid):
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(timeout=20)


def run_on(head: Head, code: str, *arguments: str) -> str:
    """Output of a driver that joins the head from outside."""
    with start_on(head, code, *arguments) as driver:
        out, error = driver.communicate(timeout=240)
    assert driver.returncode == 0, error
    return out


@contextmanager
def start_on(head: Head, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A driver that joins the head from outside; it ends with the context."""
    driver = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=joining(head) | {"RAY_ADDRESS": head.gcs_address},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def joining(head: Head) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_path)}


@contextmanager
def node(head: Head, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A further node of two CPUs; it ends with the context."""
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", f"--address={head.gcs_address}",
         "--num-cpus=2", "--object-store-memory=100000000", *options, "--block",
         f"--dashboard-agent-listen-port={free_ports(1)[0]}"],
        env=joining(head),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        end_family(process)


def wait_for_nodes(head: Head, count: int) -> None:
    code = (
        "from nurie_pipelines.cluster import connect; connect(); import ray, time\n"
        f"while sum(node['Alive'] for node in ray.nodes()) < {count}: time.sleep(0.5)"
    )
    run_on(head, code)
