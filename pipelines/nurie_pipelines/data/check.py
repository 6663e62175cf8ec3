"""Opening every picture of a collection once, before anything is made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import cv2
import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from nurie.config.data import PicturesSource
from nurie.data.lines import xdog
from nurie.data.near_duplicates import difference_hash
from nurie.data.schema import Row
from nurie.inference.images import ImageError, decode_image, to_rgb
from nurie_pipelines.cluster import connect
from nurie_pipelines.data.collections import Item, collection_root
from nurie_pipelines.data.collections.storage import StorageError, read_bytes

MAX_PIXELS = 64_000_000
ITEMS_PER_BLOCK = 64
MIN_INK, MAX_INK = 0.002, 0.6
"""Share of a picture's sketch that is line, at least and at most."""
_THUMBNAIL = 256
_RESULT = pa.schema(
    [
        ("number", pa.int64()),
        ("sha256", pa.string()),
        ("hash", pa.binary()),
        ("problem", pa.string()),
    ]
)


@dataclass(frozen=True)
class CheckedItem:
    """An item after it was opened.

    Attributes:
        item: The item, with its problem if it cannot be used.
        sha256: Digest of the picture and of what belongs to it.
        hash: Difference hash of the picture; empty if it was not decoded.
    """

    item: Item
    sha256: str
    hash: bytes = b""

    @property
    def problem(self) -> str:
        """Why it cannot be used (empty: it can)."""
        return self.item.problem


def check_items(
    source: PicturesSource,
    items: list[Item],
    num_cpus: int,
    tell: Callable[[int], None] = lambda count: None,
) -> list[CheckedItem]:
    """Open every picture and what belongs to it, in parallel: digest it, see whether it decodes.

    Args:
        source: The collection.
        items: Its items; those with a problem are not opened.
        num_cpus: Tasks at a time.
        tell: Called with the number of items that were opened since.

    Returns:
        One entry per item, in their order.
    """
    named = [_with_utf8_name(item) for item in items]
    rows = [
        {"number": number, **asdict(item)} for number, item in enumerate(named) if not item.problem
    ]
    found: dict[int, Row] = {}
    if rows:
        connect(num_cpus)
        num_blocks = -(-len(rows) // ITEMS_PER_BLOCK)
        dataset = ray.data.from_items(rows, override_num_blocks=num_blocks).map_batches(
            partial(_check_rows, source=source),
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=min(num_cpus, num_blocks)),
        )
        for row in dataset.iter_rows():
            found[row["number"]] = row
            tell(1)
    return [
        CheckedItem(item, "") if number not in found else _checked(item, found[number])
        for number, item in enumerate(named)
    ]


def _checked(item: Item, row: Row) -> CheckedItem:
    return CheckedItem(replace(item, problem=row["problem"]), row["sha256"], row["hash"])


def _check_rows(rows: pa.Table, source: PicturesSource) -> pa.Table:
    cv2.setNumThreads(1)  # Ray runs one task per core already
    checked = [{"number": row["number"], **_check(row, source)} for row in rows.to_pylist()]
    return pa.Table.from_pylist(checked, schema=_RESULT)


def _check(row: Row, source: PicturesSource) -> Row:
    """Digest of the picture and of what belongs to it, its hash, and the first problem."""
    root, digest = collection_root(source), hashlib.sha256()
    found: Row = {"sha256": "", "hash": b"", "problem": ""}
    size = None
    for part in ("picture", "sketch", "mask"):
        if row[part] is None:
            continue
        where = "" if part == "picture" else f"{part} "
        try:
            data = read_bytes(root, row[part])
            digest.update(data)
            picture = decode_image(data, part, MAX_PIXELS)
        except (ImageError, StorageError) as error:
            return found | {"problem": f"{error.code}: {where}{error.message}"}
        if part == "picture":
            size = picture.size
            image = _thumbnail(picture)
            found |= {"hash": difference_hash(image), "problem": _unfit(picture, image, source)}
        elif picture.size != size and not found["problem"]:
            found["problem"] = (
                f"size_mismatch: the {part} is {picture.width} x {picture.height} pixels, the "
                "picture is not"
            )
    return found | {"sha256": digest.hexdigest()}


def _thumbnail(picture: Image.Image) -> np.ndarray:
    small = to_rgb(picture).copy()  # thumbnail() changes its picture
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small)


def _unfit(picture: Image.Image, thumbnail: np.ndarray, source: PicturesSource) -> str:
    """Why a whole picture is of no use for training (empty: it is)."""
    short, long = sorted(picture.size)
    size = f"{picture.width} x {picture.height} pixels"
    if short < source.min_side:
        return f"too_small: {size}; min_side is {source.min_side}"
    if long > source.max_aspect_ratio * short:
        return f"too_long: {size}; max_aspect_ratio is {source.max_aspect_ratio:g}"
    ink = float(1 - xdog(thumbnail).mean())
    if not MIN_INK <= ink <= MAX_INK:
        return f"bad_lines: {100 * ink:.1f} % of its sketch would be line"
    return ""


def _with_utf8_name(item: Item) -> Item:
    try:
        item.name.encode()
    except UnicodeEncodeError:
        name = item.name.encode(errors="surrogateescape").decode(errors="replace")
        return Item(name, "", problem="bad_name: the file's name is not UTF-8")
    return item
