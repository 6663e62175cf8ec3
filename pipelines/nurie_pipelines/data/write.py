"""Writing one shard: whole or not at all."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nurie.data.data_folder import DataFolder
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


def write_shard(rows: pa.Table, folder: Path | str, record_digest: str) -> pa.Table:
    """Write the rows of one shard and its sidecar.

    The sidecar comes when all bytes of the shard are written, so a shard with a matching sidecar
    is whole.

    Args:
        rows: All rows of the shard, with ``SHARD_COLUMN``.
        folder: The data set's folder, a path or an address.
        record_digest: Digest of the build the shard belongs to.

    Returns:
        One row: ``file`` and ``sha256``.
    """
    name, files = rows[SHARD_COLUMN][0].as_py(), DataFolder(folder)
    table = rows.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)
    row_bytes = max(1, table.nbytes // table.num_rows)
    write = partial(
        pq.write_table,
        table,
        row_group_size=max(1, min(MAX_ROWS_PER_GROUP, GROUP_BYTES // row_bytes)),
        compression=_COMPRESSION,  # pyright: ignore[reportArgumentType] (stub lacks dict)
        use_dictionary=False,
    )
    digest, size = files.put(name, write)
    sidecar = {"sha256": digest, "bytes": size, "rows": table.num_rows, "build": record_digest}
    files.put(sidecar_name(name), lambda file: file.write(json.dumps(sidecar).encode()))
    return pa.table({"file": [name], "sha256": [digest]})


def sidecar_name(shard: str) -> str:
    """Return the name of a shard's sidecar."""
    return f"{shard}.json"


def stored_latent_channels(folder: Path | str, shard: str) -> int | None:
    """Return the channels of the latents inside a shard, None without any."""
    group = DataFolder(folder).open_parquet(shard).read_row_group(0, columns=["latents_shape"])
    shape = group["latents_shape"][0].as_py()
    return shape[0] if shape else None
