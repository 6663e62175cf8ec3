"""Submission to a real head with token authentication, started by our own script."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nurie_pipelines.jobs import submit as submission
from nurie_pipelines.jobs.connection import SubmitError, connect_client, job_api_address

# A head on a busy machine takes minutes to start, and may have to be started again.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
TOKEN = "test-token-" + "0" * 32
PORTS = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port",
         "dashboard-agent-listen-port", "runtime-env-agent-port")  # fmt: skip

FAKE_MAIN = """
import json, os, sys
from pathlib import Path
word = sys.argv[1]
print("submitted code runs", flush=True)
print("in", os.getcwd())
if word == "where":
    print("sees", json.dumps(sorted(str(p) for p in Path().rglob("*") if p.is_file())))
if word == "worker":
    from nurie_pipelines.cluster import connect
    connect()
    import ray
    @ray.remote
    def look():
        import nurie_cli
        names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "RAY_AUTH_MODE")
        return [nurie_cli.MARK, *map(os.environ.get, names)]
    print("worker says", json.dumps(ray.get(look.remote())))
if word == "wait":
    import time
    time.sleep(600)
sys.exit(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
"""


@dataclass(frozen=True)
class Head:
    """A running head: where its job API is, where drivers join, and the token."""

    address: str
    gcs_address: str
    token_path: Path


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    folder = Path(f"/tmp/nurie-head-{uuid.uuid4().hex[:8]}")  # short, for socket paths
    folder.mkdir(mode=0o700)
    (folder / "token").write_text(TOKEN)
    log = tmp_path_factory.mktemp("head") / "head.log"
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
         f"--temp-dir={folder}/ray", *(f"--{name}={port}" for name, port in ports.items())],
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


@pytest.fixture
def with_token(head, monkeypatch) -> Head:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_path))
    return head


@pytest.fixture
def fake_cli(tmp_path, monkeypatch) -> Path:
    """Put a small package in the place of ``nurie_cli``: what arrives must be this one."""
    package = tmp_path / "source" / "nurie_cli"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('MARK = "fake"\n')
    (package / "main.py").write_text(FAKE_MAIN)
    real = submission._package_folder
    monkeypatch.setattr(
        submission, "_package_folder", lambda name: package if name == "nurie_cli" else real(name)
    )
    return package


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "my project"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "a.yaml").write_text("kind: data\n")
    (folder / "configs" / ".state").write_text("hidden files stay here")
    (folder / "data").mkdir()
    (folder / "data" / "huge.parquet").write_text("not to be shipped")
    (folder / ".env").write_text("SECRET=1")
    (folder / "sketch.png").write_text("picture")
    monkeypatch.chdir(folder)
    return folder


def test_real_command(with_token, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    # An address given by hand wins over the environment.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    command = ["config", "show", "configs/model/nano.yaml"]
    assert submission.submit(command, with_token.address, entrypoint_num_cpus=1) == 0
    assert "kind: model" in capfd.readouterr().out


def test_exit_code_of_the_command(with_token, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", with_token.address)
    assert submission.submit(["config", "show", "configs/model/absent.yaml"]) == 2
    captured = capfd.readouterr()
    assert "absent.yaml" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_code_folder_and_environment(with_token, fake_cli, project, monkeypatch, capfd):
    real = submission._runtime_env

    def with_threads(upload):
        environment = real(upload)
        return environment | {"env_vars": environment["env_vars"] | {"OMP_NUM_THREADS": "3"}}

    monkeypatch.setattr(submission, "_runtime_env", with_threads)
    assert submission.submit(["worker", "7"], with_token.address) == 7
    out = capfd.readouterr().out
    assert f"in {project}\n" in out, "the cluster sees the folder, so the job runs in it"
    # The job's own setting wins, ours fills the rest.
    assert 'worker says ["fake", "3", "PASSIVE", "token"]' in out


def test_runs_in_the_uploaded_copy_elsewhere(with_token, fake_cli, project, monkeypatch, capfd):
    real = submission._entrypoint
    monkeypatch.setattr(
        submission, "_entrypoint", lambda argv, folder, given: real(argv, Path("/nowhere"), given)
    )
    assert submission.submit(["where", "0", "sketch.png"], with_token.address) == 0
    out = capfd.readouterr().out
    assert "_ray_pkg_" in out
    assert 'sees ["configs/a.yaml", "sketch.png"]' in out  # no data, no .env


def test_folder_of_the_cluster_and_a_name(with_token, fake_cli, project, tmp_path, capfd):
    there = tmp_path / "shared disk"
    there.mkdir()
    job = {"submission_id": f"once-{uuid.uuid4().hex[:8]}", "cluster_dir": str(there)}
    assert submission.submit(["where", "5"], with_token.address, **job) == 5
    first = capfd.readouterr().out
    assert f"in {there}\nsees []\n" in first
    # The same name follows the same job: same log, same exit code, no second run.
    assert submission.submit(["where", "5"], with_token.address, **job) == 5
    again = capfd.readouterr()
    assert again.out == first
    assert "following it" in again.err
    with pytest.raises(SubmitError, match="runs another command"):
        submission.submit(["where", "6"], with_token.address, **job)


def test_interrupt_stops_the_job(with_token, fake_cli, project):
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from nurie_pipelines.jobs import submit as s\n"
        # A shell without job control starts background processes with Ctrl+C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "real = s._package_folder\n"
        f"s._package_folder = lambda n: Path({str(fake_cli)!r}) if n == 'nurie_cli' else real(n)\n"
        f"sys.exit(s.submit(['wait'], {with_token.address!r}, submission_id='waiting'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert any("submitted code runs" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    client = connect_client(with_token.address)
    for _ in range(60):
        if client.get_job_status("waiting").is_terminal():
            break
        time.sleep(0.5)
    assert client.get_job_status("waiting").value == "STOPPED"


def test_wrong_and_missing_token(head, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(SubmitError, match="wants a token: set RAY_AUTH_TOKEN_PATH"):
        submission.submit(["config"], head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(SubmitError, match="refuses the token"):
        submission.submit(["config"], head.address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(SubmitError, match="no such file"):
        submission.submit(["config"], head.address)


def test_unreachable_address():
    with pytest.raises(SubmitError, match=r"no Ray cluster answers at http://127\.0\.0\.1:1 "):
        submission.submit(["config"], "127.0.0.1:1")


@pytest.mark.parametrize("address", ["ray://head:10001", "auto"])
def test_other_kinds_of_address(address):
    with pytest.raises(SubmitError, match="--address http://HEAD:8265"):
        job_api_address(address)


BUILD = """
import json, sys, ray
from nurie.config.loader import load_config
from nurie_pipelines.data.build import build_dataset
from ray.util.state import list_tasks
settings = {"source.max_characters": 24, "image_size": 64, "rows_per_shard": 8, "num_cpus": 4,
            "output": sys.argv[1]}
build_dataset(load_config("configs/data/characters.yaml", settings))
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
used = {task.node_id for task in list_tasks(limit=5000, detail=True)} & set(nodes)
print(json.dumps([len(nodes), len(used)]))
"""


def run_on(head: Head, code: str, *arguments: str) -> str:
    """Output of a driver that joins the head from outside."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=joining(head) | {"RAY_ADDRESS": head.gcs_address},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def joining(head: Head) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_path)}


def test_driver_joins_with_the_token(head):
    code = "from nurie_pipelines.cluster import connect; connect(); import ray; print(ray.nodes())"
    assert "'Alive': True" in run_on(head, code)


def test_a_second_node_changes_no_byte_of_a_build(head, tmp_path):
    assert json.loads(run_on(head, BUILD, str(tmp_path / "one")).splitlines()[-1]) == [1, 1]
    node = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", f"--address={head.gcs_address}",
         "--num-cpus=2", "--object-store-memory=100000000", "--block"],
        env=joining(head),
        stdout=(tmp_path / "node.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_nodes(head, 2)
        assert json.loads(run_on(head, BUILD, str(tmp_path / "two")).splitlines()[-1]) == [2, 2]
    finally:
        end_family(node)
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


def wait_for_nodes(head: Head, count: int) -> None:
    code = (
        "from nurie_pipelines.cluster import connect; connect(); import ray, time\n"
        f"while sum(node['Alive'] for node in ray.nodes()) < {count}: time.sleep(0.5)"
    )
    run_on(head, code)


def test_head_refuses_to_start_without_a_token(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [ROOT / "infra/ray/start-head.sh"],
        env=clean | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "no token" in done.stderr
