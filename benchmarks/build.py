"""CPU time per picture of every step of a data build: `python -m benchmarks.build`.

`python -m benchmarks.build 1000000` measures instead what planning that many pictures takes on the
driver, memory included.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.reading import painting
from nurie.config.data import DataConfig, PicturesSource
from nurie.data.colour_histogram import NUM_COLOURS
from nurie.data.near_duplicates import HASH_BITS
from nurie_pipelines.data.check import CHECKED_COLUMNS, Scorers, check_rows, to_check
from nurie_pipelines.data.collections import Item, as_table, list_items
from nurie_pipelines.data.latents import append_latents
from nurie_pipelines.data.pictures import columns_of_plan, plan_pictures
from nurie_pipelines.data.render import render_shard
from nurie_pipelines.data.write import SHARD_COLUMN, write_shard

T = TypeVar("T")
PICTURES = 48
SIDE = 1024
ITEMS_AT_ONCE = 2**15


def main() -> int:
    """Print the table."""
    if len(sys.argv) > 1:
        steps = plan_many(int(sys.argv[1]))
        peak = steps.pop("peak bytes")
        show(steps, Console())
        Console().print(f"{peak:.0f} bytes of the driver per picture at its peak")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="nurie-bench-"))
    cv2.setNumThreads(1)
    try:
        steps = measure(folder)
        size = steps.pop("bytes")
        show(steps, Console())
        Console().print(f"{size / 2**20:.2f} MiB per sample of {SIDE} x {SIDE} pixels, no latents")
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
        f"cut, draw {len(config.line_styles)} sketches, compress": render,
        "write": write,
        "bytes": size,
    }


def show(steps: dict[str, float], console: Console) -> None:
    """Print milliseconds."""
    table = Table("step", "CPU ms per picture")
    for name, milliseconds in {**steps, "all": sum(steps.values())}.items():
        table.add_row(name, f"{milliseconds:.3g}")
    console.print(table)


def plan_many(pictures: int) -> dict[str, float]:
    """Plan so many checked pictures with 25 tags each.

    Returns:
        Milliseconds of CPU time per picture, and ``peak bytes`` of the driver per picture.
    """
    config = DataConfig(
        name="benchmark",
        source=PicturesSource(kind="folder", path="pictures"),
        output=Path("out"),
        image_size=SIDE,
    )
    assert isinstance(config.source, PicturesSource)
    source = config.source
    as_table(_synthetic(ITEMS_AT_ONCE))  # what does not grow with the set is no part of it
    before, peak = _memory(), [0]
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(peak, stop))
    watch.start()
    try:
        checked, milliseconds = _timed(lambda: _checked(as_table(_synthetic(pictures))), pictures)
        checked = checked.select(columns_of_plan(config)).take(np.arange(pictures))
        plan, planning = _timed(lambda: plan_pictures(config, source, checked), pictures)
    finally:
        stop.set()
        watch.join()
    assert plan.num_rows == pictures
    return {
        "list": milliseconds,
        "plan, with 8 mismatched references": planning,
        "peak bytes": (peak[0] - before) / pictures,
    }


def _synthetic(pictures: int) -> Iterator[Item]:
    rng = np.random.default_rng(0)
    tags = [f"tag_number_{number}" for number in range(8000)]
    for number in range(pictures):
        name = f"{number // 1000:06d}/{number:010d}.png"
        drawn = rng.zipf(1.3, 25) % len(tags)  # few are frequent, many are rare
        yield Item(name, name, tags=tuple(tags[place] for place in drawn.tolist()))


def _checked(items: pa.Table) -> pa.Table:
    """The items with what opening them could have found."""
    rng, count = np.random.default_rng(1), items.num_rows
    digests = (hashlib.sha256(name.as_py().encode()).hexdigest() for name in items["name"])
    hashes = pa.py_buffer(rng.bytes(HASH_BITS // 8 * count))
    colours = pa.array(rng.random(NUM_COLOURS * count, np.float32))
    columns = {
        "sha256": pa.array(digests, pa.large_string()),
        "hash": pa.Array.from_buffers(pa.binary(HASH_BITS // 8), count, [None, hashes]),
        "colours": pa.FixedSizeListArray.from_arrays(colours, NUM_COLOURS),
        "score": pa.nulls(count, pa.float64()),
        "width": pa.array(np.full(count, SIDE, np.int32)),
        "height": pa.array(np.full(count, SIDE, np.int32)),
    }
    for name, values in columns.items():
        items = items.append_column(name, values)
    return items


def _memory() -> int:
    return psutil.Process().memory_full_info().uss


def _watch(peak: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.05):
        peak[0] = max(peak[0], _memory())


def _timed(work: Callable[[], T], count: int) -> tuple[T, float]:
    start = time.process_time()
    result = work()
    return result, 1000 * (time.process_time() - start) / count


if __name__ == "__main__":
    sys.exit(main())
