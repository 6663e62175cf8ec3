"""Random access to the samples of a data set."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nurie.data.data_folder import DataFolder
from nurie.data.manifest import read_manifest
from nurie.data.schema import INDEX_COLUMNS, Row

DEFAULT_CACHE_BYTES = 192 * 2**20
FOOTER_CACHE_BYTES = 256 * 2**20
"""Parsed footers of shards that are kept. A shard of large pictures has 2 MB of them (a row group
per few rows) and takes 2 ms to open again."""
_PARSED = 12
"""Bytes in memory of a byte of a footer (measured: 11)."""


class _OpenShard(NamedTuple):
    """A shard's file and the first rows of its row groups."""

    file: pq.ParquetFile
    group_starts: list[int]
    footer_bytes: int


class ShardReader:
    """Reads rows of one split by index, row group by row group, with a bounded cache.

    Args:
        folder: Data set made by ``nurie data build``, a path or an address.
        split: ``train`` or ``test``.
        cache_bytes: Upper bound of the decoded row groups kept in memory.

    Raises:
        nurie.data.manifest.ManifestError: If the data set is unfinished or lacks the split.
    """

    def __init__(
        self, folder: Path | str, split: str, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self.manifest = read_manifest(folder)
        shards = self.manifest.shards_of(split)
        self._shards = shards
        self._folder = DataFolder(folder)
        self._open_shards: OrderedDict[int, _OpenShard] = OrderedDict()
        self._footer_bytes = 0
        self._starts = _starts(shard.rows for shard in shards)
        self._num_rows = sum(shard.rows for shard in shards)
        self._cache: OrderedDict[tuple[int, int, tuple[str, ...]], pa.Table] = OrderedDict()
        self._cache_bytes, self._cached_bytes = cache_bytes, 0

    def __len__(self) -> int:
        """Return the number of samples of the split."""
        return self._num_rows

    @cached_property
    def buckets(self) -> dict[str, range]:
        """The rows of every bucket."""
        rows: dict[str, range] = {}
        for shard, start in zip(self._shards, self._starts, strict=True):
            first = rows[shard.bucket].start if shard.bucket in rows else start
            rows[shard.bucket] = range(first, start + shard.rows)
        return rows

    @cached_property
    def index(self) -> pa.Table:
        """The narrow columns (ids, group, palette, tags, references) of all rows, in order."""
        return self._columns(INDEX_COLUMNS).combine_chunks()

    def column(self, name: str) -> list:
        """One narrow column of all rows, in order."""
        return self._columns((name,))[name].to_pylist()

    def _columns(self, names: Sequence[str]) -> pa.Table:
        files = (self._folder.open_parquet(shard.file) for shard in self._shards)
        return pa.concat_tables(file.read(list(names), use_threads=False) for file in files)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row index of every sample id."""
        return {sample_id: row for row, sample_id in enumerate(self.column("sample_id"))}

    def read(self, indices: Iterable[int], columns: Sequence[str]) -> list[Row]:
        """Return rows as dictionaries of the wanted columns.

        Args:
            indices: Row indices, in any order, repeats allowed.
            columns: Names of the columns.

        Raises:
            IndexError: If an index is not in 0..len-1.
        """
        names = tuple(columns)
        return [self._row(int(index), names) for index in indices]

    def _row(self, index: int, columns: tuple[str, ...]) -> Row:
        if not 0 <= index < self._num_rows:
            raise IndexError(f"row {index} is not in 0..{self._num_rows - 1}")
        shard = bisect_right(self._starts, index) - 1
        row = index - self._starts[shard]
        group_starts = self._open(shard).group_starts
        group = bisect_right(group_starts, row) - 1
        table = self._row_group(shard, group, columns)
        return table.slice(row - group_starts[group], 1).to_pylist()[0]

    def _open(self, shard: int) -> _OpenShard:
        if shard in self._open_shards:
            self._open_shards.move_to_end(shard)
            return self._open_shards[shard]
        file = self._folder.open_parquet(self._shards[shard].file)
        footer = file.metadata
        groups = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        opened = _OpenShard(file, _starts(groups), _PARSED * footer.serialized_size)
        self._open_shards[shard] = opened
        self._footer_bytes += opened.footer_bytes
        while self._footer_bytes > FOOTER_CACHE_BYTES and len(self._open_shards) > 1:
            _, oldest = self._open_shards.popitem(last=False)
            self._footer_bytes -= oldest.footer_bytes
            oldest.file.close()
        return opened

    def _row_group(self, shard: int, group: int, columns: tuple[str, ...]) -> pa.Table:
        key = (shard, group, columns)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        file = self._open(shard).file
        table = file.read_row_group(group, columns=list(columns), use_threads=False)
        self._cache[key] = table
        self._cached_bytes += table.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes
        return table


def _starts(sizes: Iterable[int]) -> list[int]:
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += size
    return starts
