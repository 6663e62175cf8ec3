"""A private local Ray: as small, closed and quiet as promised."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nurie_pipelines import cluster

REPORT = """
import json, os, sys
from nurie_pipelines.cluster import connect
connect(num_cpus=2)
import ray
first = ray.get_runtime_context().get_node_id()
connect(num_cpus=3)

@ray.remote
def environment():
    print("a worker's print")
    return dict(os.environ)

import ray.data
ray.data.range(100).map_batches(lambda batch: batch).materialize()
worker = ray.get(environment.remote())
print(json.dumps({
    "cpus": ray.cluster_resources()["CPU"],
    "store": ray.cluster_resources()["object_store_memory"],
    "same": first == ray.get_runtime_context().get_node_id(),
    "session": ray._private.worker._global_node.get_session_dir_path(),
    "dashboard": ray._private.worker._global_node.webui_url,
    "worker": {name: worker.get(name) for name in
               ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "RAY_AUTH_MODE")},
    "driver": {name: os.environ.get(name) for name in
               ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER")},
}))
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.ray
def test_private_cluster(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    done = run_python(REPORT, HOME=str(home))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # nothing else on stdout: no bars, no worker prints
    assert report["cpus"] == 4
    assert report["store"] <= 10**9
    assert report["same"], "a second connect must change nothing"
    assert report["session"].startswith(f"/tmp/nurie-{os.getuid()}/")
    assert not report["dashboard"]
    assert report["worker"] == {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAY_AUTH_MODE": "token",
    }
    assert report["driver"] == {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    assert done.stderr.strip() == "", "a quiet start"
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) >= 32


def test_address_of_the_job_api_is_no_cluster_address():
    done = run_python(
        "from nurie_pipelines.cluster import connect; connect()",
        RAY_ADDRESS="http://127.0.0.1:8265",
    )
    assert done.returncode != 0
    assert "ClusterError" in done.stderr
    assert "nurie submit" in done.stderr


def test_an_existing_token_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    cluster._ensure_token()
    first = (tmp_path / ".ray" / "auth_token").read_text()
    cluster._ensure_token()
    assert (tmp_path / ".ray" / "auth_token").read_text() == first


def test_a_token_of_the_environment_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    cluster._ensure_token()
    assert not (tmp_path / ".ray").exists()


def test_sessions_are_closed_to_others():
    folder = cluster.session_folder()
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert len(str(folder)) < 40
    assert Path(folder).is_absolute()
