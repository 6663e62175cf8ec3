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
from nurie.data.buckets import make_buckets
from nurie.data.mismatch import MismatchSampler
from nurie_pipelines.data.check import CheckedItem, Scorers, check_rows
from nurie_pipelines.data.collections import list_items
from nurie_pipelines.data.latents import append_latents
from nurie_pipelines.data.pictures import plan_pictures
from nurie_pipelines.data.render import render_shard
from nurie_pipelines.data.write import SHARD_COLUMN, write_shard

T = TypeVar("T")
PICTURES = 48
SIDE = 1024
SAMPLED_ROWS = 20_000


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
    rows = pa.Table.from_pylist(
        [{"number": number, **vars(item)} for number, item in enumerate(items)]
    )
    checked, check = _timed(lambda: check_rows(rows, source, Scorers()), pictures)
    entries = [
        CheckedItem.of(item, row) for item, row in zip(items, checked.to_pylist(), strict=True)
    ]
    buckets = make_buckets(side, config.aspect_ratios)
    plan, _ = _timed(lambda: plan_pictures(source, entries, buckets, 0, 8), pictures)
    rendered, render = _timed(lambda: render_shard(plan, config, source.path), pictures)
    table = append_latents(rendered, [None] * pictures, ())
    file = f"bucket={side}x{side}/train-00000.parquet"
    table = table.append_column(SHARD_COLUMN, pa.array([file] * pictures))
    (folder / "out").mkdir()
    _, write = _timed(lambda: write_shard(table, folder / "out", "benchmark"), pictures)
    size = (folder / "out" / file).stat().st_size / pictures
    return {
        "open and check": check,
        "choose 8 mismatched references": _choosing(),
        f"cut, draw {len(config.line_styles)} sketches, compress": render,
        "write": write,
        "bytes": size,
    }


def show(steps: dict[str, float], console: Console) -> None:
    """Print milliseconds and size."""
    size = steps.pop("bytes")
    table = Table("step", "CPU ms per picture")
    for name, milliseconds in {**steps, "all": sum(steps.values())}.items():
        table.add_row(name, f"{milliseconds:.1f}")
    console.print(table)
    console.print(f"{size / 2**20:.2f} MiB per sample of {SIDE} x {SIDE} pixels, without latents")


def _choosing() -> float:
    """Of a set of twenty thousand with tags."""
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 2000, (SAMPLED_ROWS, 25)).astype(str).tolist()
    ids = [f"s{number:06d}" for number in range(SAMPLED_ROWS)]
    index = pa.table(
        {"sample_id": ids, "group_id": ids, "palette_id": ids, "tags": tags}
        | {"split": ["train"] * SAMPLED_ROWS}
    )
    sampler = MismatchSampler(index, 0)
    chosen = ids[::10]
    _, milliseconds = _timed(
        lambda: [sampler.choose(name, epoch) for epoch in range(8) for name in chosen], len(chosen)
    )
    return milliseconds


def _timed(work: Callable[[], T], count: int) -> tuple[T, float]:
    start = time.process_time()
    result = work()
    return result, 1000 * (time.process_time() - start) / count


if __name__ == "__main__":
    sys.exit(main())
