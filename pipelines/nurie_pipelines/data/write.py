"""Writing one shard: whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nurie.data.manifest import file_sha256, write_atomically
from nurie.data.schema import INCOMPRESSIBLE_COLUMNS, SAMPLE_SCHEMA

SHARD_COLUMN = "shard_file"
"""Column that carries the shard's file name through the job; not stored."""
_COMPRESSION = {
    name: "none" if name in INCOMPRESSIBLE_COLUMNS else "zstd" for name in SAMPLE_SCHEMA.names
}
MAX_ROWS_PER_GROUP = 16
GROUP_BYTES = 4 * 2**20
"""Small row groups: training reads single rows in random order, and a whole group for each; large
pictures have groups of their own."""


def write_shard(rows: pa.Table, folder: Path, record_digest: str) -> pa.Table:
    """Write the rows of one shard and its sidecar.

    The file appears under its name only when all its bytes are on the disk; the sidecar comes
    after it, so a shard with a matching sidecar is whole.

    Args:
        rows: All rows of the shard, with ``SHARD_COLUMN``.
        folder: The data set's folder.
        record_digest: Digest of the build the shard belongs to.

    Returns:
        One row: ``file`` and ``sha256``.
    """
    name = rows[SHARD_COLUMN][0].as_py()
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    table = rows.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)
    row_bytes = max(1, table.nbytes // table.num_rows)
    with open(temporary, "wb") as file:
        pq.write_table(
            table,
            file,
            row_group_size=max(1, min(MAX_ROWS_PER_GROUP, GROUP_BYTES // row_bytes)),
            compression=_COMPRESSION,  # pyright: ignore[reportArgumentType] (stub lacks dict)
            use_dictionary=False,
        )
        file.flush()
        os.fsync(file.fileno())
    digest = file_sha256(temporary)
    os.replace(temporary, path)
    sidecar = {"sha256": digest, "rows": table.num_rows, "build": record_digest}
    write_atomically(sidecar_path(path), json.dumps(sidecar).encode())
    return pa.table({"file": [name], "sha256": [digest]})


def sidecar_path(shard: Path) -> Path:
    """Return the path of a shard's sidecar."""
    return shard.with_name(shard.name + ".json")


def stored_latent_channels(shard: Path) -> int | None:
    """Return the channels of the latents inside a shard, None without any."""
    group = pq.ParquetFile(shard).read_row_group(0, columns=["latents_shape"])
    shape = group["latents_shape"][0].as_py()
    return shape[0] if shape else None
