"""Pictures of one's own as a source: which sample each becomes, and how it is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nurie.config.data import DataConfig, PicturesSource
from nurie.data.buckets import Bucket, fit, make_buckets, nearest_bucket
from nurie.data.near_duplicates import connected, near_duplicate_groups
from nurie.data.plan import SPLITS, UNSCORED_AESTHETICS, Plan
from nurie.data.schema import Row
from nurie.inference.images import decode_image, to_rgb
from nurie_pipelines.data.check import MAX_PIXELS
from nurie_pipelines.data.collections.storage import read_bytes

MIN_TO_SPLIT = 10
"""Different pictures, at least, of which two are kept for the test split."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture in the shape of its bucket.

    Attributes:
        image: uint8 [H, W, 3], transparency laid over white.
        mask: uint8 [H, W], 255 where it is foreground: the given mask, else where the file is
            opaque, else everywhere.
        sketch: The given sketch, uint8 [H, W], or None.
        original_area: Pixels of the file's picture.
    """

    image: np.ndarray
    mask: np.ndarray
    sketch: np.ndarray | None
    original_area: int


def columns_of_plan(config: DataConfig) -> list[str]:
    """Columns of a checked item that its plan needs: a set may be large, and is copied."""
    item = ["name", "picture", "sketch", "mask", "tags", "group", "split"]
    checked = ["sha256", "hash", "score", "width", "height"]
    return [*item, *checked, *(["colours"] if config.mismatch_strategy == "hard" else [])]


def plan_pictures(config: DataConfig, source: PicturesSource, usable: pa.Table) -> Plan:
    """Plan one sample per item; items of one group share a split.

    Equal content, near-duplicates and the layout's own groups make a group.

    The test split holds at least two different pictures, so that there is something to evaluate on;
    of a set of fewer than ``MIN_TO_SPLIT`` it is left empty instead.

    Args:
        config: The build: shapes, seed, references.
        source: The collection.
        usable: ``columns_of_plan`` of what ``check_items`` returns, without items that have a
            problem.

    Raises:
        ValueError: If there are fewer than two different pictures.
    """
    content = _first_of_equal(usable["sha256"])
    group = _groups(usable, content, source.near_duplicate_distance)
    first = np.unique(group)
    test = first[_is_for_test(usable.take(first), source.test_fraction)]
    if len(first) - len(test) < 2:
        raise ValueError(
            f"source.path: {source.path} has {len(first)} different usable pictures; at least 2 "
            "are needed for training, since every picture gets another one as its mismatched "
            "reference"
        )
    return Plan(_samples(config, usable, content, group, np.isin(group, test)), config)


def _samples(
    config: DataConfig,
    usable: pa.Table,
    content: np.ndarray,
    group: np.ndarray,
    is_test: np.ndarray,
) -> pa.Table:
    """The columns that ``Plan`` wants; nothing is stored twice.

    Args:
        config: The build.
        usable: Checked items.
        content: First item of the same content, of each.
        group: First item of its group, of each.
        is_test: Whether each is in the test split.
    """
    name, digest = (usable[column].combine_chunks() for column in ("name", "sha256"))
    nothing = np.zeros(usable.num_rows + 1, np.int32)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "sample_id": name,
        "source": usable["picture"],
        "sketch_source": usable["sketch"],
        "mask_source": usable["mask"],
        "character_id": name,
        "palette_id": pa.DictionaryArray.from_arrays(pa.array(content, pa.int32()), digest),
        "group_id": pa.DictionaryArray.from_arrays(pa.array(group, pa.int32()), digest),
        "split": pa.DictionaryArray.from_arrays(pa.array(is_test, pa.int8()), list(SPLITS)),
        "bucket": _buckets(config, usable),
        "roles": pa.ListArray.from_arrays(pa.array(nothing), pa.array([], pa.string())),
        "palette": pa.DictionaryArray.from_arrays(pa.array(nothing[1:], pa.int8()), ["{}"]),
        "tags": usable["tags"],
        "aesthetic_score": pc.fill_null(usable["score"], UNSCORED_AESTHETICS),
        "relatives": pa.ListArray.from_arrays(pa.array(nothing), pa.array([], pa.int32())),
    }
    if config.mismatch_strategy == "hard":
        columns["colours"] = usable["colours"]
    return pa.table(columns)


def read_picture(root: str, row: Row) -> Picture:
    """Decode a planned picture with what belongs to it, all cut and resized to its bucket's shape.

    Args:
        root: Folder of the collection.
        row: A plan row: ``source``, ``sketch_source``, ``mask_source``, ``bucket``.

    Raises:
        nurie.inference.images.ImageError: If a file cannot be used.
        nurie_pipelines.data.collections.storage.StorageError: If it cannot be read.
    """
    picture = decode_image(read_bytes(root, row["source"]), "picture", MAX_PIXELS)
    width, height = picture.size
    bucket = Bucket.parse(row["bucket"])
    mask = np.full((height, width), 255, np.uint8)
    if row["mask_source"] is not None:
        mask = np.where(_grey(root, row["mask_source"], "mask") > 127, 255, 0).astype(np.uint8)
    elif picture.mode == "RGBA":
        mask = np.where(np.asarray(picture)[..., 3] > 127, 255, 0).astype(np.uint8)
    sketch = None
    if row["sketch_source"] is not None:
        sketch = fit(_grey(root, row["sketch_source"], "sketch"), bucket)
    return Picture(
        image=fit(np.asarray(to_rgb(picture)), bucket),
        mask=fit(mask, bucket, cv2.INTER_NEAREST),
        sketch=sketch,
        original_area=width * height,
    )


def _groups(usable: pa.Table, content: np.ndarray, max_distance: int | None) -> np.ndarray:
    """First row of everyone's group: all that is joined by content, by looks or by the layout."""
    rows = np.arange(usable.num_rows)
    joined = [(content, rows)]
    in_group = np.flatnonzero(usable["group"].is_valid().to_numpy())
    joined.append((in_group[_first_of_equal(usable["group"].take(in_group))], in_group))
    if max_distance is not None:
        hashes = usable["hash"].combine_chunks()
        matrix = np.frombuffer(hashes.buffers()[1], np.uint8).reshape(-1, hashes.type.byte_width)
        part = matrix[hashes.offset : hashes.offset + len(hashes)]
        joined.append((near_duplicate_groups(part, max_distance), rows))
    ones, others = (np.concatenate(numbers) for numbers in zip(*joined, strict=True))
    return connected(usable.num_rows, ones, others)


def _first_of_equal(column: pa.ChunkedArray) -> np.ndarray:
    """For every value the row that has it first."""
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    return first[codes]


def _is_for_test(firsts: pa.Table, fraction: float) -> np.ndarray:
    """Whether the groups with these first members belong to the test split."""
    given = firsts["split"].fill_null("").to_numpy()
    places = np.array([_place(name.as_py()) for name in firsts["name"]])
    chosen = (given == "test") | ((given == "") & (places < fraction))
    if chosen.sum() >= 2:
        return chosen
    free = np.flatnonzero(given == "")
    if fraction == 0 or len(free) < MIN_TO_SPLIT:
        return np.zeros_like(chosen)
    chosen[free[np.argsort(places[free])[:2]]] = True
    return chosen


def _buckets(config: DataConfig, usable: pa.Table) -> pa.DictionaryArray:
    buckets = make_buckets(config.image_size, config.aspect_ratios)
    sizes = np.stack([usable["width"].to_numpy(), usable["height"].to_numpy()], axis=1)
    different, which = np.unique(sizes, axis=0, return_inverse=True)
    nearest = [buckets.index(nearest_bucket(w, h, buckets)) for w, h in different.tolist()]
    codes = pa.array(np.array(nearest, np.int32)[which.ravel()])
    return pa.DictionaryArray.from_arrays(codes, [bucket.name for bucket in buckets])


def _place(name: str) -> float:
    """A number in 0..1 that depends on the name alone: more files move no file to another split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _grey(root: str, locator: str, field: str) -> np.ndarray:
    return np.asarray(
        to_rgb(decode_image(read_bytes(root, locator), field, MAX_PIXELS)).convert("L")
    )
