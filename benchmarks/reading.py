"""Reading training samples: our shards, zips per folder read by a Python loop, WebDataset tars.

All three hold the same pictures and end in the same float tensors: picture, sketch and reference.
The reference is the picture itself, as in the published training; the loop over zips opens it a
second time, as a data set that knows only file names does.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from webdataset.compat import WebDataset

from benchmarks.measure import Row, compare
from nurie.data.assets import find_assets
from nurie.data.buckets import Bucket
from nurie.data.characters import load_characters
from nurie.data.lines import make_sketch
from nurie.data.manifest import Manifest, ShardEntry, write_manifest
from nurie.data.palettes import random_palette
from nurie.data.pixels import decode_pixels, encode_pixels
from nurie.data.png import encode_png
from nurie.data.recolour import recolour
from nurie.data.schedule import SampleSchedule
from nurie.data.schema import SAMPLE_SCHEMA
from nurie.data.shards import ShardReader
from nurie_pipelines.data.write import SHARD_COLUMN, write_shard

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Picture, sketch and reference, float32 in -1..1: [3, S, S], [1, S, S], [3, S, S]."""


def run(samples: int = 48, side: int = 1024, rounds: int = 3) -> Iterator[Row]:
    """Measure one pass over the samples: ours and the zips in random order, the tars in theirs."""
    folder = Path(tempfile.mkdtemp(prefix="nurie-bench-"))
    try:
        pictures = [painting(number, side) for number in range(samples)]
        _write_shard(folder, pictures)
        _write_zips(folder, pictures)
        _write_tar(folder, pictures)
        yield from _compare(folder, samples, rounds)
    finally:
        shutil.rmtree(folder)


def _compare(folder: Path, samples: int, rounds: int) -> Iterator[Row]:
    others = {
        "zip per folder, read in a loop": (lambda: from_zips(folder, samples), 3.0),
        "WebDataset tar": (lambda: from_tar(folder), 1.8),
    }
    mine = dict(from_shards(folder))
    for name, (read, goal) in others.items():
        difference = max(
            float((ours - other).abs().max())
            for number, triple in read()
            for ours, other in zip(mine[number], triple, strict=True)
        )
        seconds = compare(
            lambda: sum(1 for _ in from_shards(folder)),
            lambda read=read: sum(1 for _ in read()),
            rounds,
        )
        yield Row(f"reading shards | {name}", *seconds, goal, f"{difference:.0e}")


def from_shards(folder: Path) -> Iterator[tuple[int, Triple]]:
    """Random rows of Parquet."""
    reader = ShardReader(folder, "train")
    schedule = SampleSchedule(len(reader), 0)
    for position in range(len(reader)):
        row = reader.read([schedule[position][1]], ("sample_id", "image", "sketches"))[0]
        picture = _floats(decode_pixels(row["image"]))
        sketch = _floats(decode_pixels(row["sketches"][0]))
        yield int(row["sample_id"]), (picture, sketch, picture.clone())


def from_zips(folder: Path, samples: int) -> Iterator[tuple[int, Triple]]:
    """Random members of two zips, decoded by Pillow."""
    archives = (zipfile.ZipFile(folder / f"{name}.zip") for name in ("color", "sketch"))
    with next(archives) as colours, next(archives) as sketches:
        for number in np.random.default_rng(0).permutation(samples).tolist():
            member = f"{number}.png"
            picture, reference = (_pillow(colours.read(member), "RGB") for _ in range(2))
            yield number, (picture, _pillow(sketches.read(member), "L"), reference)


def from_tar(folder: Path) -> Iterator[tuple[int, Triple]]:
    """The tar from front to back, decoded by WebDataset with Pillow."""
    data = WebDataset(str(folder / "all.tar"), shardshuffle=False).decode("pil")
    for sample in cast("Iterable[dict]", data):
        picture = _floats(np.asarray(sample["color.png"].convert("RGB")))
        sketch = _floats(np.asarray(sample["sketch.png"].convert("L")))
        yield int(sample["__key__"]), (picture, sketch, picture.clone())


def painting(number: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A large character with the grain of a painting, and its sketch."""
    characters = load_characters(find_assets("characters"))
    rng = np.random.default_rng(number)
    character = characters[number % len(characters)]
    drawn = recolour(character, random_palette(rng, character.roles), side, rng=rng)
    coarse = rng.normal(0, 6, (side // 3, side // 3)).astype(np.float32)
    grain = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]
    image = np.clip(drawn.image + grain, 0, 255).astype(np.uint8)
    sketch = (make_sketch(drawn, "ink", rng) * 255).astype(np.uint8)
    return image, sketch


def _write_shard(folder: Path, pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    side = pictures[0][0].shape[0]
    bucket, rows = Bucket(side, side).name, []
    for number, (image, sketch) in enumerate(pictures):
        row = {field.name: _EMPTY[field.type] for field in SAMPLE_SCHEMA}
        rows.append(
            row
            | {"sample_id": str(number), "width": side, "height": side}
            | {"image": encode_pixels(image), "sketches": [encode_pixels(sketch)]}
        )
    table = pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
    file = f"bucket={bucket}/train-00000.parquet"
    table = table.append_column(SHARD_COLUMN, pa.array([file] * len(rows)))
    done = write_shard(table, folder, "benchmark").to_pylist()[0]
    entry = ShardEntry(split="train", bucket=bucket, rows=len(rows), **done)
    manifest = Manifest(
        name="benchmark",
        created_by="benchmark",
        config={},
        inputs={},
        counts={"train": len(rows)},
        image_size=side,
        sketch_styles=("ink",),
        roles=(),
        latent_channels=None,
        mismatch_rounds=1,
        shards=(entry,),
    )
    write_manifest(folder, manifest)


_EMPTY = {
    pa.string(): "",
    pa.binary(): b"",
    pa.int32(): 0,
    pa.int64(): 0,
    pa.float32(): 0.0,
    pa.list_(pa.string()): [],
    pa.list_(pa.binary()): [],
    pa.list_(pa.int32()): [],
}


def _write_zips(folder: Path, pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for part, name in enumerate(("color", "sketch")):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for number, picture in enumerate(pictures):
                archive.writestr(f"{number}.png", encode_png(picture[part]))


def _write_tar(folder: Path, pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    with tarfile.open(folder / "all.tar", "w") as tar:
        for number, picture in enumerate(pictures):
            for part, name in enumerate(("color", "sketch")):
                data = encode_png(picture[part])
                member = tarfile.TarInfo(f"{number}.{name}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _pillow(data: bytes, mode: str) -> torch.Tensor:
    return _floats(np.asarray(Image.open(io.BytesIO(data)).convert(mode)))


def _floats(image: np.ndarray) -> torch.Tensor:
    """uint8 [H, W] or [H, W, C] to float32 [C, H, W] in -1..1."""
    channels_last = torch.from_numpy(np.array(image)).reshape(*image.shape[:2], -1)
    return channels_last.permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)
