"""Models by name: a model folder in the MLflow registry, found by alias, checked by digest.

A version carries the digest of its ``MANIFEST.json`` as a tag. What is loaded is verified against
that tag, wherever its files come from. No MLflow flavour is involved, so nothing is ever unpickled.

MLflow is imported inside the functions that talk to it: that takes seconds and over 100 MB, which a
server that loads a plain folder should not pay.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlparse
from uuid import uuid4

from nurie.checkpoints.manifest import (
    CheckpointError,
    manifest_digest,
    publish_folder,
    verify_manifest,
)
from nurie.tracking.store import tracking_uri
from nurie.tracking.tracker import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGEST_TAG = "nurie.manifest_sha256"
REGISTERED = "models:/"
"""How the name of a registered model begins."""
CHAMPION = "champion"
CHALLENGER = "challenger"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_REGISTRATION_EXPERIMENT = "nurie-models"


class RegistryError(TrackingError):
    """The registry has no such model, version or alias; the message names those it has."""


class RegisteredVersion(NamedTuple):
    """One version of a registered model."""

    name: str
    version: str
    aliases: tuple[str, ...]
    digest: str
    run_id: str | None
    created: int
    """Milliseconds since 1970."""
    source: str


def register_model(
    tracker_uri: str,
    folder: str | Path,
    name: str,
    alias: str | None = CHAMPION,
    run_id: str | None = None,
    lineage: Mapping[str, str] | None = None,
) -> str:
    """Upload a model folder and make it a version of ``name``; the same files make one version.

    Args:
        tracker_uri: The MLflow store.
        folder: Model folder with an intact manifest.
        name: Name of the registered model; created when it is new.
        alias: Alias that moves to the version (None: no alias).
        run_id: Run whose artifacts hold the files (None: a run of its own).
        lineage: Tags of a new version: what the model was made from.

    Returns:
        The version.

    Raises:
        CheckpointError: The folder does not fit its manifest.
        TrackingUnavailable: The store does not answer.
    """
    from nurie.tracking.mlflow_tracker import connect, mlflow_errors

    folder = Path(folder)
    digest = verify_manifest(folder)
    client = connect(tracker_uri)
    with mlflow_errors():
        version = _version_with(client, name, digest)
        if version is None:
            tags = {**(lineage or {}), DIGEST_TAG: digest}
            version = _upload(client, tracker_uri, folder, name, tags, run_id)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
    return version


def resolve_model(ref: str | Path, tracking_uri: str) -> Path:
    """A local, verified model folder.

    Args:
        ref: A folder, or ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` of the registry.
        tracking_uri: The MLflow store.

    Returns:
        The folder: the given one, the registry's own when it is on this machine, else a download
        below ``$NURIE_CACHE`` (``~/.cache/nurie``), named by its digest.

    Raises:
        RegistryError: No such model, version or alias; the message names those that exist.
        CheckpointError: Files do not fit the manifest, or the manifest not the registered digest.
        TrackingUnavailable: The store does not answer.
    """
    if not str(ref).startswith(REGISTERED):
        folder = Path(ref).expanduser().absolute()
        if not folder.is_dir():
            raise RegistryError(
                f"{str(ref)!r} is no folder; a model is a folder, models:/NAME@ALIAS, "
                "or models:/NAME/VERSION"
            )
        verify_manifest(folder)
        return folder
    from nurie.tracking.mlflow_tracker import connect, mlflow_errors

    client = connect(tracking_uri)
    with mlflow_errors():
        version = _find(client, str(ref))
    return _local_copy(tracking_uri, version)


def promote(tracking_uri: str, ref: str, alias: str = CHAMPION) -> str:
    """Give ``alias`` to the version that ``ref`` names, for example ``models:/nurie@challenger``.

    Returns:
        The version.

    Raises:
        RegistryError: No such model, version or alias.
        CheckpointError: The version's files are damaged; the alias stays where it is.
    """
    from nurie.tracking.mlflow_tracker import connect, mlflow_errors

    resolve_model(ref, tracking_uri)
    client = connect(tracking_uri)
    with mlflow_errors():
        version = _find(client, ref)
        client.set_registered_model_alias(version.name, alias, version.version)
    return str(version.version)


def list_models(tracking_uri: str) -> list[RegisteredVersion]:
    """All versions of all registered models, by name, newest first."""
    from nurie.tracking.mlflow_tracker import connect, mlflow_errors

    client = connect(tracking_uri)
    with mlflow_errors():
        versions = [
            RegisteredVersion(
                name=model.name,
                version=str(version.version),
                aliases=tuple(
                    sorted(a for a, v in model.aliases.items() if str(v) == str(version.version))
                ),
                digest=version.tags.get(DIGEST_TAG, ""),
                run_id=version.run_id or None,
                created=version.creation_timestamp,
                source=version.source or "",
            )
            for model in client.search_registered_models()
            for version in client.search_model_versions(f"name = '{model.name}'")
        ]
    return sorted(versions, key=lambda found: (found.name, -int(found.version)))


def cache_folder() -> Path:
    """Folder of downloaded models."""
    root = os.environ.get("NURIE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "nurie") / "models"


def _version_with(client: MlflowClient, name: str, digest: str) -> str | None:
    """The version of ``name`` that already holds these files."""
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(DIGEST_TAG) == digest:
            return str(version.version)
    return None


def _upload(
    client: MlflowClient,
    uri: str,
    folder: Path,
    name: str,
    tags: dict[str, str],
    run_id: str | None,
) -> str:
    from mlflow.exceptions import MlflowException

    from nurie.tracking.mlflow_tracker import MlflowTracker

    if run_id is None:
        tracker = MlflowTracker(uri, _REGISTRATION_EXPERIMENT)
        run_id = tracker.start_run(f"register {name}")
        tracker.end_run(run_id)
    # The digest in the path keeps two models of one run apart.
    path = f"models/{tags[DIGEST_TAG][:16]}"
    client.log_artifacts(run_id, str(folder), path)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{path}"
    created = client.create_model_version(
        name, source, run_id=run_id, tags=tags, await_creation_for=0
    )
    return str(created.version)


def _find(client: MlflowClient, ref: str) -> ModelVersion:
    parsed = _REFERENCE.fullmatch(ref)
    if parsed is None:
        raise RegistryError(
            f"{ref!r} is no model reference; write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    name, alias, number = parsed["name"], parsed["alias"], parsed["version"]
    known = {model.name: model for model in client.search_registered_models()}
    if name not in known:
        raise RegistryError(f"there is no registered model {name!r}; registered: {_names(known)}")
    if alias is not None:
        aliases = known[name].aliases
        if alias not in aliases:
            raise RegistryError(
                f"model {name!r} has no alias {alias!r}; its aliases: {_names(aliases)}"
            )
        number = str(aliases[alias])
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if number not in versions:
        raise RegistryError(
            f"model {name!r} has no version {number}; its versions: "
            f"{_names(dict.fromkeys(sorted(versions, key=int)))}"
        )
    return versions[number]


def _names(known: dict) -> str:
    return ", ".join(map(str, known)) or "none"


def _local_copy(uri: str, version: ModelVersion) -> Path:
    digest = version.tags.get(DIGEST_TAG)
    if not digest:
        raise RegistryError(
            f"version {version.version} of {version.name!r} has no digest; "
            "it was not registered by nurie and is not loaded"
        )
    source = version.source or ""
    parts = urlparse(source)
    folder = Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
    if folder is None or not folder.is_dir():
        folder = cache_folder() / digest
        if not folder.is_dir():
            _download(uri, source, folder)
    verify_manifest(folder)
    if manifest_digest(folder) != digest:
        raise CheckpointError(
            f"{folder}: its digest {manifest_digest(folder)[:12]}... is not that of version "
            f"{version.version} of {version.name!r}, {digest[:12]}..."
        )
    return folder


def _download(uri: str, source: str, folder: Path) -> None:
    from mlflow.artifacts import download_artifacts

    from nurie.tracking.mlflow_tracker import mlflow_errors

    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        with mlflow_errors():
            fetched = download_artifacts(
                artifact_uri=source, dst_path=str(temporary), tracking_uri=tracking_uri(uri)
            )
        verify_manifest(fetched)
        publish_folder(fetched, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
