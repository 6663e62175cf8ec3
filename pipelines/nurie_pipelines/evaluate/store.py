"""What an evaluation has made so far, on disk: an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from nurie.checkpoints.manifest import write_atomically
from nurie.evaluation.tasks import Task
from nurie_pipelines.evaluate.actor import SCORED_SCHEMA

Row = dict[str, Any]
"""A scored task: its ``SCORED_SCHEMA`` columns without pictures, with ``task`` and ``metrics``
decoded."""

_IDENTITY = "identity.json"
_ROWS_PER_PART = 64
_WITHOUT_PICTURES = [name for name in SCORED_SCHEMA.names if name != "pictures"]


class ResultStore:
    """Scored tasks in Parquet parts; a part appears whole or not at all.

    Args:
        output: The evaluation's folder; the store is ``results`` in it.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output / "results"

    def claim(self, identity: dict[str, Any]) -> None:
        """Begin, or go on with what an interrupted evaluation left.

        Args:
            identity: What the results depend on. Those of another identity, which are of another
                model or other settings, are removed.
        """
        path = self.folder / _IDENTITY
        text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
        if path.exists() and path.read_text() != text:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())

    def keys(self) -> set[str]:
        """Keys of the tasks that are done."""
        return {key for batch in self._batches(["key"]) for key in batch["key"].to_pylist()}

    def add(self, tables: Iterable[pa.Table]) -> Iterator[int]:
        """Write tables as they come; yields the number of rows of each.

        What has come is written also when the iteration ends with an error.
        """
        waiting: list[pa.Table] = []
        try:
            for table in tables:
                waiting.append(table)
                if sum(part.num_rows for part in waiting) >= _ROWS_PER_PART:
                    self._write(waiting)
                    waiting = []
                yield table.num_rows
        finally:
            if waiting:
                self._write(waiting)

    def rows(self) -> Iterator[Row]:
        """All rows without their pictures, in the order of the parts."""
        for batch in self._batches(_WITHOUT_PICTURES):
            for row in batch.to_pylist():
                yield row | {
                    "task": Task.from_json(row["task"]),
                    "metrics": json.loads(row["metrics"]),
                }

    def pictures(self, keys: Sequence[str]) -> dict[str, list[bytes]]:
        """The pictures of some tasks, PNG."""
        data = self._dataset()
        if data is None or not keys:
            return {}
        chosen = data.to_table(["key", "pictures"], filter=pads.field("key").isin(list(keys)))
        return {row["key"]: row["pictures"] for row in chosen.to_pylist()}

    def _write(self, tables: list[pa.Table]) -> None:
        path = self.folder / f"part-{uuid4().hex}.parquet"
        temporary = path.with_suffix(".tmp")
        pq.write_table(pa.concat_tables(tables), temporary, compression="none")
        temporary.rename(path)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        data = self._dataset()
        if data is not None:
            yield from data.to_batches(columns=columns)

    def _dataset(self) -> pads.Dataset | None:
        parts = sorted(str(path) for path in self.folder.glob("part-*.parquet"))
        return pads.dataset(parts, schema=SCORED_SCHEMA) if parts else None
