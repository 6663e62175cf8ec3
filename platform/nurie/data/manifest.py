"""The manifest of a data set: what was built, from what, with digests. Written last."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nurie.data.schema import SCHEMA_VERSION

MANIFEST_NAME = "manifest.json"


class ManifestError(ValueError):
    """A data set is missing, unfinished, damaged or of another schema version."""


class ShardEntry(BaseModel):
    """One Parquet file.

    Attributes:
        file: Name inside the data set's folder.
        split: ``train`` or ``test``.
        bucket: Height and width of its pictures, ``HxW``.
        rows: Number of samples.
        sha256: Digest of the file's bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    split: str
    bucket: str
    rows: int
    sha256: str


class QuarantinedFile(BaseModel):
    """One input file that was left out.

    Attributes:
        file: Its name in the collection.
        step: Where: ``list`` (layout, metadata, filters) or ``check`` (opened and looked at).
        reason: Why, as ``code: text``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    step: Literal["list", "check"]
    reason: str


class Manifest(BaseModel):
    """Contents of ``manifest.json``; its presence says that the build is complete.

    Attributes:
        name: Name of the data set.
        schema_version: Version of the shards' Arrow schema.
        created_by: Program and version.
        config: Resolved configuration of the build.
        inputs: Digests of what went in: the source and the autoencoder's weights.
        counts: Samples per split.
        image_size: Side of a square of the pictures' area, in pixels.
        sketch_styles: Line styles of every sample, in the order of its sketches.
        roles: Colour roles; a label map holds indices into it.
        latent_channels: Channels of the cached latents, None without an autoencoder.
        mismatch_rounds: Mismatched references per sample.
        shards: All shards, in row order per split; those of a bucket follow each other.
        quarantine: Input files that were left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    schema_version: str = SCHEMA_VERSION
    created_by: str
    config: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    image_size: int
    sketch_styles: tuple[str, ...]
    roles: tuple[str, ...]
    latent_channels: int | None
    mismatch_rounds: int
    shards: tuple[ShardEntry, ...]
    quarantine: tuple[QuarantinedFile, ...] = ()

    def shards_of(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of a split, in row order.

        Raises:
            ManifestError: If the data set has no such split.
        """
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            raise ManifestError(f"no split {split!r}; this data set has {sorted(self.counts)}")
        return shards


def read_manifest(folder: str | Path, verify: bool = False) -> Manifest:
    """Read a data set's manifest.

    Args:
        folder: The data set.
        verify: Also compare every shard with its digest (reads all bytes).

    Raises:
        ManifestError: If the manifest is missing, unreadable or of another schema version, or
            a shard is missing or differs.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ManifestError(f"{path} does not exist: run 'nurie data build', it writes it last")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ManifestError(f"{path} is not a manifest: {error}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ManifestError(
            f"{path} has schema version {manifest.schema_version!r}, this program reads "
            f"{SCHEMA_VERSION!r}: build the data set again"
        )
    for shard in manifest.shards:
        _check_shard(Path(folder) / shard.file, shard, verify)
    return manifest


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    write_atomically(
        Path(folder) / MANIFEST_NAME, manifest.model_dump_json(indent=1).encode() + b"\n"
    )


def file_sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _check_shard(path: Path, shard: ShardEntry, verify: bool) -> None:
    if not path.is_file():
        raise ManifestError(f"{path} is missing: run 'nurie data build' again")
    if verify and file_sha256(path) != shard.sha256:
        raise ManifestError(f"{path} is damaged (digest differs): run 'nurie data build' again")
