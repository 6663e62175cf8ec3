"""A registered model is found by alias, loaded by digest, and refused when it changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nurie.checkpoints.manifest import CheckpointError, manifest_digest, write_manifest
from nurie.tracking.mlflow_tracker import MlflowTracker, connect, mlflow_errors
from nurie.tracking.registry import (
    RegistryError,
    list_models,
    promote,
    register_model,
    resolve_model,
)
from nurie.tracking.server import command


def model_folder(path: Path, content: str) -> Path:
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text("{}")
    (path / "unet" / "weights.safetensors").write_text(content)
    write_manifest(path)
    return path


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs; creating the schema takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    with mlflow_errors():
        connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    shutil.copy(empty_store, tmp_path / "store" / "mlflow.db")
    return f"sqlite:///{tmp_path}/store/mlflow.db"


def test_round_trip_by_alias_and_version(uri: str, tmp_path: Path) -> None:
    first = model_folder(tmp_path / "first", "one")
    second = model_folder(tmp_path / "second", "two")
    tracker = MlflowTracker(uri, "test")
    run_id = tracker.start_run("train")
    assert register_model(uri, first, "nurie", "champion", run_id) == "1"
    assert register_model(uri, second, "nurie", "challenger", run_id) == "2"
    assert register_model(uri, first, "nurie", None, None) == "1"  # The same files again.

    found = resolve_model("models:/nurie@champion", uri)
    assert manifest_digest(found) == manifest_digest(first)
    assert (found / "unet" / "weights.safetensors").read_text() == "one"
    found = resolve_model("models:/nurie/2", uri)
    assert (found / "unet" / "weights.safetensors").read_text() == "two"

    assert promote(uri, "models:/nurie@challenger") == "2"
    found = resolve_model("models:/nurie@champion", uri)
    assert (found / "unet" / "weights.safetensors").read_text() == "two"

    newest, oldest = list_models(uri)
    assert (newest.version, newest.aliases) == ("2", ("challenger", "champion"))
    assert (oldest.version, oldest.aliases) == ("1", ())
    assert oldest.digest == manifest_digest(first)
    assert newest.run_id == run_id


def test_errors_name_what_exists(uri: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="registered: none"):
        resolve_model("models:/nurie@champion", uri)
    register_model(uri, model_folder(tmp_path / "m", "x"), "nurie", "champion")
    with pytest.raises(RegistryError, match=r"no alias 'winner'; its aliases: champion"):
        resolve_model("models:/nurie@winner", uri)
    with pytest.raises(RegistryError, match=r"no version 7; its versions: 1"):
        resolve_model("models:/nurie/7", uri)
    with pytest.raises(RegistryError, match=r"no registered model 'nuri'; registered: nurie"):
        resolve_model("models:/nuri@champion", uri)
    with pytest.raises(RegistryError, match=r"models:/NAME@ALIAS"):
        resolve_model("models:/nurie", uri)
    with pytest.raises(RegistryError, match="is no folder"):
        resolve_model(tmp_path / "absent", uri)


def test_changed_files_are_refused(uri: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "x")
    assert resolve_model(folder, uri) == folder
    register_model(uri, folder, "nurie", "champion")
    stored = resolve_model("models:/nurie@champion", uri)
    (stored / "unet" / "weights.safetensors").write_text("y")
    with pytest.raises(CheckpointError, match="content has changed"):
        resolve_model("models:/nurie@champion", uri)
    with pytest.raises(CheckpointError, match="content has changed"):
        promote(uri, "models:/nurie/1", "production")
    write_manifest(stored)  # A manifest of one's own does not help: the registry knows the digest.
    with pytest.raises(CheckpointError, match="is not that of version 1"):
        resolve_model("models:/nurie@champion", uri)
    (folder / "unet" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        register_model(uri, folder, "nurie")


def test_remote_artifacts_are_downloaded_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NURIE_CACHE", str(tmp_path / "cache"))
    folder = model_folder(tmp_path / "m", "x")
    register_model(uri, folder, "nurie", "champion")
    stored = resolve_model("models:/nurie@champion", uri)
    fetched: list[str] = []

    def fetch(artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        fetched.append(artifact_uri)
        return shutil.copytree(tmp_path / "elsewhere", Path(dst_path) / "model")

    stored.rename(tmp_path / "elsewhere")  # As on a machine without the store's disk.
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", fetch)
    found = resolve_model("models:/nurie@champion", uri)
    assert found == tmp_path / "cache" / "models" / manifest_digest(folder)
    assert resolve_model("models:/nurie@champion", uri) == found
    assert len(fetched) == 1
    assert [path.name for path in found.parent.iterdir()] == [found.name]


def test_a_plain_folder_needs_no_mlflow(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "x")
    code = (
        "import sys; from nurie.tracking.registry import resolve_model; "
        "print(resolve_model(sys.argv[1], 'sqlite:///unused.db'), 'mlflow' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder), "False"]


def test_server_command_is_closed_to_other_hosts(uri: str, tmp_path: Path) -> None:
    argv, environment = command(uri, "127.0.0.1", 5123)
    assert argv[argv.index("--artifacts-destination") + 1] == f"{tmp_path}/store/mlartifacts"
    assert argv[argv.index("--port") + 1] == "5123"
    assert "*" not in argv[argv.index("--allowed-hosts") + 1].split(",")
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    with pytest.raises(ValueError, match="server already"):
        command("http://localhost:5000")
