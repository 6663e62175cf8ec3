"""CPU time per picture of every step of a data build: `python -m benchmarks.build`."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.reading import painting
from nurie.config.data import DataConfig, PicturesSource
from nurie.data.near_duplicates import HASH_BITS
from nurie_pipelines.data.check import CHECKED_COLUMNS, Scorers, check_rows, to_check
from nurie_pipelines.data.collections import Item, as_table, list_items
from nurie_pipelines.data.latents import append_latents
from nurie_pipelines.data.pictures import plan_pictures
from nurie_pipelines.data.render import render_shard
from nurie_pipelines.data.write import SHARD_COLUMN, write_shard

T = TypeVar("T")
PICTURES = 48
SIDE = 1024
PLANNED_PICTURES = 100_000


def main() -> int:
    """Print the table."""
    folder = Path(tempfile.mkdtemp(prefix="nurie-bench-"))
    cv2.setNumThreads(1)
    try:
        show(measure(folder), Console())
    finally:
        shutil.rmtree(folder)
    return 0


def measure(folder: Path, pictures: int = PICTURES, side: int = SIDE) -> dict[str, float]:
    """Milliseconds of CPU time per picture, by step; ``bytes`` is the size of a row."""
    (folder / "in").mkdir()
    for number in range(pictures):
        cv2.imwrite(str(folder / "in" / f"{number:04d}.png"), painting(number, side)[0])
    source = PicturesSource(kind="folder", path=str(folder / "in"), test_fraction=0)
    config = DataConfig(name="benchmark", source=source, output=folder / "out", image_size=side)
    items = list_items(source)
    rows = to_check(items, np.arange(items.num_rows))
    found, check = _timed(lambda: check_rows(rows, source, Scorers()), pictures)
    for field in CHECKED_COLUMNS:
        items = items.append_column(field, found[field.name])
    plan = plan_pictures(config, source, items).table()
    rendered, render = _timed(lambda: render_shard(plan, config, source.path), pictures)
    table = append_latents(rendered, [None] * pictures, ())
    file = f"bucket={side}x{side}/train-00000.parquet"
    table = table.append_column(SHARD_COLUMN, pa.array([file] * pictures))
    (folder / "out").mkdir()
    _, write = _timed(lambda: write_shard(table, folder / "out", "benchmark"), pictures)
    size = (folder / "out" / file).stat().st_size / pictures
    return {
        "open and check": check,
        "plan, with 8 mismatched references": _planning(),
        f"cut, draw {len(config.line_styles)} sketches, compress": render,
        "write": write,
        "bytes": size,
    }


def show(steps: dict[str, float], console: Console) -> None:
    """Print milliseconds and size."""
    size = steps.pop("bytes")
    table = Table("step", "CPU ms per picture")
    for name, milliseconds in {**steps, "all": sum(steps.values())}.items():
        table.add_row(name, f"{milliseconds:.2f}")
    console.print(table)
    console.print(f"{size / 2**20:.2f} MiB per sample of {SIDE} x {SIDE} pixels, without latents")


def _planning() -> float:
    """Of a set of a hundred thousand with 25 tags each, checked already."""
    rng = np.random.default_rng(0)
    tags = np.char.add("tag", rng.integers(0, 2000, (PLANNED_PICTURES, 25)).astype(str)).tolist()
    names = [f"{number:06d}.png" for number in range(PLANNED_PICTURES)]
    source = PicturesSource(kind="folder", path="pictures")
    items = as_table(
        Item(name, name, tags=tuple(row)) for name, row in zip(names, tags, strict=True)
    )
    hashes = pa.py_buffer(rng.bytes(HASH_BITS // 8 * PLANNED_PICTURES))
    columns = {
        "sha256": pa.array(names, pa.large_string()),
        "hash": pa.Array.from_buffers(pa.binary(HASH_BITS // 8), PLANNED_PICTURES, [None, hashes]),
        "score": pa.nulls(PLANNED_PICTURES, pa.float64()),
        "width": np.full(PLANNED_PICTURES, SIDE, np.int32),
        "height": np.full(PLANNED_PICTURES, SIDE, np.int32),
    }
    for name, values in columns.items():
        items = items.append_column(name, pa.chunked_array([values]))
    config = DataConfig(name="benchmark", source=source, output=Path("out"), image_size=SIDE)
    return _timed(lambda: plan_pictures(config, source, items), PLANNED_PICTURES)[1]


def _timed(work: Callable[[], T], count: int) -> tuple[T, float]:
    start = time.process_time()
    result = work()
    return result, 1000 * (time.process_time() - start) / count


if __name__ == "__main__":
    sys.exit(main())
