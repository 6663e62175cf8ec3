"""The manifest of a data set: what was built, from what, with digests. Written last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from nurie.data.data_folder import DataFolder
from nurie.data.schema import SCHEMA_VERSION

MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema(
    [("file", pa.string()), ("step", pa.string()), ("reason", pa.string())]
)
"""An input file that was left out: its name in the collection; where (``list``: layout, metadata,
filters, ``check``: opened and looked at); why, as ``code: text``. Millions may be filtered out, so
they are no part of the manifest, which everybody reads."""


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
        quarantine: Number of input files left out, by reason; ``quarantine.parquet`` names each.
        quarantine_sha256: Digest of that file; empty without one.
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
    quarantine: dict[str, int] = {}
    quarantine_sha256: str = ""

    def shards_of(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of a split, in row order.

        Raises:
            ManifestError: If the data set has no such split.
        """
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            raise ManifestError(
                f"no split {split!r}; this data set has {sorted(self.counts)}. A tenth of own "
                "pictures is kept for tests from ten different ones on (near-duplicates count "
                "once), unless source.test_fraction is 0: add pictures and build it again"
            )
        return shards


def read_manifest(folder: Path | str, verify: bool = False) -> Manifest:
    """Read a data set's manifest.

    Args:
        folder: The data set, a path or an address.
        verify: Also compare every shard with its digest (reads all bytes).

    Raises:
        ManifestError: If the manifest is missing, unreadable or of another schema version, or
            a shard is missing or differs.
    """
    files = DataFolder(folder)
    path = f"{files}/{MANIFEST_NAME}"
    if not files.exists(MANIFEST_NAME):
        raise ManifestError(f"{path} does not exist: run 'nurie data build', it writes it last")
    try:
        manifest = Manifest.model_validate_json(files.read(MANIFEST_NAME))
    except ValidationError as error:
        raise ManifestError(f"{path} is not a manifest: {error}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ManifestError(
            f"{path} has schema version {manifest.schema_version!r}, this program reads "
            f"{SCHEMA_VERSION!r}: build the data set again"
        )
    present = files.sizes()
    for file, digest in _digests(manifest):
        if file not in present:
            raise ManifestError(f"{files}/{file} is missing: run 'nurie data build' again")
        if verify and files.sha256(file) != digest:
            raise ManifestError(
                f"{files}/{file} is damaged (digest differs): run 'nurie data build' again"
            )
    return manifest


def _digests(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for shard in manifest.shards:
        yield shard.file, shard.sha256
    if manifest.quarantine_sha256:
        yield QUARANTINE_NAME, manifest.quarantine_sha256


def write_quarantine(folder: Path | str, files: pa.Table) -> str:
    """Write the list of the files that were left out (``QUARANTINE_SCHEMA``); return its digest."""
    write = partial(pq.write_table, files.cast(QUARANTINE_SCHEMA), compression="zstd")
    return DataFolder(folder).put(QUARANTINE_NAME, write)[0]


def read_quarantine(folder: Path | str) -> pa.Table:
    """The files that were left out of a data set, with ``QUARANTINE_SCHEMA``."""
    if not read_manifest(folder).quarantine:
        return QUARANTINE_SCHEMA.empty_table()
    return DataFolder(folder).open_parquet(QUARANTINE_NAME).read()


def write_manifest(folder: Path | str, manifest: Manifest) -> None:
    """Write ``manifest.json``, whole or not at all."""
    text = manifest.model_dump_json(indent=1) + "\n"
    DataFolder(folder).put(MANIFEST_NAME, lambda file: file.write(text.encode()))


def file_sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 digest of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
