"""Which shards of an interrupted build can be kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nurie import __version__
from nurie.config.data import DataConfig, PictureInputConfig, PicturesSource, TaggerConfig
from nurie.data.data_folder import DataFolder
from nurie.data.manifest import MANIFEST_NAME, QUARANTINE_NAME
from nurie.data.schema import SCHEMA_VERSION
from nurie_pipelines.data.write import sidecar_name

RECORD_NAME = "build.json"
# Where the files lie and how many tasks run changes no byte of a shard; what lies in those places
# counts by its digest.
_PLACES = ("name", "output", "num_cpus", "vae", "num_model_actors", "model_gpus")
_OURS = re.compile(r"(bucket=\d+x\d+/)?(train|test)-\d{5}\.parquet(\.json)?")


class BuildError(ValueError):
    """The output folder holds a build of something else."""


def model_paths(config: DataConfig) -> dict[str, Path]:
    """Where the user's own models lie that a build runs, by the name of their setting."""
    named: dict[str, PictureInputConfig | TaggerConfig | None] = {
        "line_model": config.line_model,
        "mask_model": config.mask_model,
    }
    if isinstance(config.source, PicturesSource):
        named["aesthetic_model"] = config.source.aesthetic_model
        named["safety_model"] = config.source.safety_model
        named["tagger"] = config.source.tagger
    return {name: model.path for name, model in named.items() if model is not None}


@dataclass(frozen=True)
class BuildRecord:
    """Everything the bytes of the shards depend on.

    Attributes:
        config: The configuration without places.
        inputs: Digests of the source and of the autoencoder.
        versions: Schema version and program version.
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]

    @classmethod
    def of(cls, config: DataConfig, inputs: dict[str, str]) -> BuildRecord:
        """Return the record of a build."""
        settings = config.model_dump(mode="json", exclude=set(_PLACES))
        settings["source"].pop("path", None)
        for name in model_paths(config):
            (settings if name in settings else settings["source"])[name].pop("path")
        versions = {"schema": SCHEMA_VERSION, "nurie": __version__}
        return cls(settings, inputs, versions)

    @property
    def text(self) -> str:
        """The record as JSON, always the same for the same build."""
        return json.dumps(vars(self), sort_keys=True, indent=1)

    @property
    def digest(self) -> str:
        """Digest of the record."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def prepare_folder(folder: Path | str, record: BuildRecord, force: bool) -> None:
    """Make the output folder ready for a build, new or continued.

    Raises:
        BuildError: If it holds shards of another build and ``force`` is off.
    """
    files = DataFolder(folder)
    old = files.read(RECORD_NAME).decode() if files.exists(RECORD_NAME) else ""
    shards = [name for name in files.sizes() if _OURS.fullmatch(name)]
    if shards and old != record.text:
        if not force:
            raise BuildError(
                f"{files} holds another build ({_difference(old, record)}): choose another "
                "output, or build with --force to delete its shards"
            )
        for name in shards:
            files.remove(name)
    if old != record.text:
        for name in (MANIFEST_NAME, QUARANTINE_NAME):
            files.remove(name)
        files.put(RECORD_NAME, lambda file: file.write(record.text.encode()))
    files.remove_leftovers()


def finished_shards(
    folder: Path | str, shards: Iterable[str], record: BuildRecord
) -> dict[str, str]:
    """Digests of the shards that are whole and of this build.

    On a disk their bytes are read; at an address their sizes are compared: an upload that broke off
    leaves no file there, or a shorter one.
    """
    files = DataFolder(folder)
    sizes = files.sizes()
    written = [name for name in shards if name in sizes and sidecar_name(name) in sizes]
    sidecars = files.read_many([sidecar_name(name) for name in written])
    finished = {}
    for name in written:
        stored = json.loads(sidecars[sidecar_name(name)])
        whole = stored["build"] == record.digest and stored["bytes"] == sizes[name]
        if whole and (not files.is_local or files.sha256(name) == stored["sha256"]):
            finished[name] = stored["sha256"]
    return finished


def _difference(old: str, record: BuildRecord) -> str:
    if not old:
        return f"no {RECORD_NAME} says of what"
    there, here = _flat(json.loads(old)), _flat(vars(record))
    changed = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in changed)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
