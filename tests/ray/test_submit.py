"""Submission to a real head with token authentication, started by our own script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nurie_pipelines.jobs import submit as submission
from nurie_pipelines.jobs.connection import SubmitError, connect_client, job_api_address
from tests.ray.clusters import (
    ROOT,
    Head,
    end_family,
    head_node,
    node,
    run_on,
    start_on,
    wait_for_nodes,
)

# A head on a busy machine takes minutes to start, and may have to be started again.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
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


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head_node(tmp_path_factory.mktemp("head") / "head.log") as running:
        yield running


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


@pytest.mark.fault
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


def test_driver_joins_with_the_token(head):
    code = "from nurie_pipelines.cluster import connect; connect(); import ray; print(ray.nodes())"
    assert "'Alive': True" in run_on(head, code)


def test_a_second_node_changes_no_byte_of_a_build(head, tmp_path):
    assert json.loads(run_on(head, BUILD, str(tmp_path / "one")).splitlines()[-1]) == [1, 1]
    with node(head, tmp_path / "node.log"):
        wait_for_nodes(head, 2)
        assert json.loads(run_on(head, BUILD, str(tmp_path / "two")).splitlines()[-1]) == [2, 2]
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


PREPARE = """
import sys
from pathlib import Path
from nurie.config.data import CharactersSource, DataConfig
from nurie_pipelines.data.build import build_dataset
from tests.tiny import tiny_components
folder = Path(sys.argv[1])
tiny_components(folder / "components")
source = CharactersSource(palettes_per_character=2, max_characters=12)
build_dataset(DataConfig(name="t", source=source, output=folder / "shards", image_size=64))
"""

TRAIN = """
import json, sys, ray
from pathlib import Path
from ray.util.state import list_actors
from nurie.config.data import ReadConfig
from nurie.config.train import BackboneStage, EngineConfig, TrackingConfig, TrainConfig
from nurie_pipelines.train.run import train
from tests.tiny import tiny_config
folder = Path(sys.argv[1])
engine = EngineConfig(num_workers=2, min_workers=1, worker_resources={"trainer": 1})
train(TrainConfig(
    name="t", model=tiny_config(), components=folder / "components", output=folder / "run",
    data=ReadConfig(shards=folder / "shards", encoder_resources={"encoder": 0.1}),
    stages=(BackboneStage(steps=8, batch_size=4),), engine=engine,
    tracking=TrackingConfig(uri=f"sqlite:///{folder}/t.db", validation_samples=0),
    checkpoint_every=2, keep_checkpoints=4, sample_every=100))
# A dead node has no resources any more.
where = {node["NodeID"]: "trainer" in node["Resources"] for node in ray.nodes() if node["Alive"]}
actors = [actor for actor in list_actors(limit=1000, detail=True) if actor.node_id in where]
print(json.dumps({kind: sorted({where[a.node_id] for a in actors if kind in a.class_name})
                  for kind in ("RayTrainWorker", "LoadAndEncode")}))
"""


@pytest.mark.fault
@pytest.mark.long
def test_a_lost_node_costs_a_worker_and_labels_place_the_others(head, tmp_path):
    """Training goes on with the workers that are left; encoders run on other nodes than it."""
    run_on(head, PREPARE, str(tmp_path))
    label = '--resources={"trainer": 1}'
    stage = tmp_path / "run" / "backbone"
    with node(head, tmp_path / "one.log", label) as one:
        wait_for_nodes(head, 2)  # two that start at once may choose the same ports
        with node(head, tmp_path / "other.log", label) as other:
            wait_for_nodes(head, 3)
            with start_on(head, TRAIN, str(tmp_path)) as driver:
                while not (stage / "checkpoints" / "step-000002").exists():
                    assert driver.poll() is None, driver.communicate()
                    time.sleep(0.2)
                # Ray may have started the run with one worker: what data jobs have asked for in
                # the minute before is not free for it.
                end_family(one if trains(one) else other)
                out, error = driver.communicate(timeout=400)
    assert driver.returncode == 0, error
    state = json.loads((stage / "checkpoints" / "step-000008" / "state.json").read_text())
    assert state["world_size"] == 1
    assert (stage / "failures.jsonl").exists()
    assert json.loads(out.splitlines()[-1]) == {"RayTrainWorker": [True], "LoadAndEncode": [False]}


def trains(node: subprocess.Popen[bytes]) -> bool:
    """Whether a training worker lives on a node."""
    family = psutil.Process(node.pid).children(recursive=True)
    return any("RayTrainWorker" in " ".join(process.cmdline()) for process in family)


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
