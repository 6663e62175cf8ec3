"""Which shards of an interrupted build can be kept."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nurie import __version__
from nurie.config.data import DataConfig, PictureInputConfig, PicturesSource, TaggerConfig
from nurie.data.manifest import MANIFEST_NAME, file_sha256, write_atomically
from nurie.data.schema import SCHEMA_VERSION
from nurie_pipelines.data.write import sidecar_path

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


def prepare_folder(folder: Path, record: BuildRecord, force: bool) -> None:
    """Make the output folder ready for a build, new or continued.

    Raises:
        BuildError: If it holds shards of another build and ``force`` is off.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD_NAME
    same = path.is_file() and path.read_text() == record.text
    shards = [
        file
        for file in folder.rglob("*.parquet*")
        if _OURS.fullmatch(file.relative_to(folder).as_posix())
    ]
    if shards and not same:
        if not force:
            raise BuildError(
                f"{folder} holds another build ({_difference(path, record)}): choose another "
                "output, or build with --force to delete its shards"
            )
        for file in shards:
            file.unlink()
    if not same:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        write_atomically(path, record.text.encode())
    for leftover in folder.rglob(".*.part"):
        leftover.unlink()


def finished_shard(folder: Path, file: str, record: BuildRecord) -> str | None:
    """Return the digest of a shard that is whole and of this build, else None."""
    path = folder / file
    sidecar = sidecar_path(path)
    if not (path.is_file() and sidecar.is_file()):
        return None
    stored = json.loads(sidecar.read_text())
    digest = stored["sha256"]
    whole = stored["build"] == record.digest and file_sha256(path) == digest
    return digest if whole else None


def _difference(path: Path, record: BuildRecord) -> str:
    if not path.is_file():
        return f"no {RECORD_NAME} says of what"
    old, new = _flat(json.loads(path.read_text())), _flat(vars(record))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
