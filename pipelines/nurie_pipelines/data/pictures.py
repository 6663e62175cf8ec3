"""Pictures of one's own as a source: which sample each becomes, and how it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from nurie.config.data import PicturesSource
from nurie.data.buckets import Bucket, fit, nearest_bucket
from nurie.data.mismatch import MismatchStrategy
from nurie.data.near_duplicates import connected, near_duplicate_groups
from nurie.data.plan import UNSCORED_AESTHETICS, finish_plan
from nurie.data.schema import Row
from nurie.inference.images import decode_image, to_rgb
from nurie_pipelines.data.check import MAX_PIXELS, CheckedItem
from nurie_pipelines.data.collections.storage import read_bytes


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


def plan_pictures(
    source: PicturesSource,
    checked: list[CheckedItem],
    buckets: Sequence[Bucket],
    seed: int,
    mismatch_rounds: int,
    strategy: MismatchStrategy = "tag_distance",
) -> pa.Table:
    """Plan one sample per usable item; items of one group share a split.

    Equal content, near-duplicates and the layout's own groups make a group.

    The test split is left empty where it would hold fewer than two different pictures.

    Raises:
        ValueError: If fewer than two different pictures can be used.
    """
    usable = [entry for entry in checked if not entry.problem]
    groups = _groups(usable, source.near_duplicate_distance)
    first: dict[str, CheckedItem] = {}
    for entry in usable:
        first.setdefault(groups[entry.item.name], entry)
    test = {
        group
        for group, entry in first.items()
        if entry.item.split == "test"
        or (entry.item.split is None and _place(entry.item.name) < source.test_fraction)
    }
    if len(test) < 2:
        test = set()
    if len(first) - len(test) < 2:
        raise ValueError(
            f"source.path: {source.path} has {len(first)} different usable pictures of "
            f"{len(checked)} files; at least 2 are needed for training, since every picture gets "
            "another one as its mismatched reference"
        )
    rows = []
    for entry in usable:
        group = groups[entry.item.name]
        row = _plan_row(entry, group, "test" if group in test else "train")
        rows.append(row | {"bucket": nearest_bucket(*entry.size, buckets).name})
    return finish_plan(rows, seed, mismatch_rounds, strategy)


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


def _groups(usable: list[CheckedItem], max_distance: int | None) -> dict[str, str]:
    """Group of every item by name: all that is joined by content, by looks or by the layout."""
    first_of: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for number, entry in enumerate(usable):
        pairs.append((first_of.setdefault(f"content {entry.sha256}", number), number))
        if entry.item.group:
            pairs.append((first_of.setdefault(f"group {entry.item.group}", number), number))
    if max_distance is not None:
        alike = near_duplicate_groups([entry.hash for entry in usable], max_distance)
        pairs += zip(alike, range(len(usable)), strict=True)
    groups = connected(len(usable), pairs)
    return {
        entry.item.name: usable[group].sha256 for entry, group in zip(usable, groups, strict=True)
    }


def _plan_row(entry: CheckedItem, group: str, split: str) -> Row:
    item = entry.item
    return {
        "sample_id": item.name,
        "source": item.picture,
        "sketch_source": item.sketch,
        "mask_source": item.mask,
        "character_id": item.name,
        "palette_id": entry.sha256,
        "group_id": group,
        "split": split,
        "roles": [],
        "palette": "{}",
        "tags": list(item.tags),
        "colours": list(entry.colours),
        "aesthetic_score": UNSCORED_AESTHETICS if entry.score is None else entry.score,
        "same_palette_ids": [],
    }


def _place(name: str) -> float:
    """A number in 0..1 that depends on the name alone: more files move no file to another split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _grey(root: str, locator: str, field: str) -> np.ndarray:
    return np.asarray(
        to_rgb(decode_image(read_bytes(root, locator), field, MAX_PIXELS)).convert("L")
    )
