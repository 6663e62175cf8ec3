"""Opening every picture of a collection once, before anything is made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow as pa
import ray

from nurie.data.schema import Row
from nurie.inference.images import ImageError, decode_image
from nurie_pipelines.cluster import connect
from nurie_pipelines.data.collections import Item
from nurie_pipelines.data.collections.storage import StorageError, read_bytes

MAX_PIXELS = 64_000_000
ITEMS_PER_BLOCK = 64
_RESULT = pa.schema([("number", pa.int64()), ("sha256", pa.string()), ("problem", pa.string())])


@dataclass(frozen=True)
class CheckedItem:
    """An item with the digest of its picture and, if it cannot be used, why."""

    item: Item
    sha256: str

    @property
    def problem(self) -> str:
        """Why it cannot be used (empty: it can)."""
        return self.item.problem


def check_items(
    root: str,
    items: list[Item],
    num_cpus: int,
    tell: Callable[[int], None] = lambda count: None,
) -> list[CheckedItem]:
    """Open every picture and what belongs to it, in parallel: digest it, see whether it decodes.

    Args:
        root: Folder of the collection.
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
            partial(_check_rows, root=root),
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=min(num_cpus, num_blocks)),
        )
        for row in dataset.iter_rows():
            found[row["number"]] = row
            tell(1)
    return [
        CheckedItem(item, "")
        if number not in found
        else CheckedItem(replace(item, problem=found[number]["problem"]), found[number]["sha256"])
        for number, item in enumerate(named)
    ]


def _check_rows(rows: pa.Table, root: str) -> pa.Table:
    checked = []
    for row in rows.to_pylist():
        sha256, problem = _check(row, root)
        checked.append({"number": row["number"], "sha256": sha256, "problem": problem})
    return pa.Table.from_pylist(checked, schema=_RESULT)


def _check(row: Row, root: str) -> tuple[str, str]:
    """Digest of the picture and of what belongs to it, and the first problem."""
    digest, size = hashlib.sha256(), None
    for part in ("picture", "sketch", "mask"):
        if row[part] is None:
            continue
        where = "" if part == "picture" else f"{part} "
        try:
            data = read_bytes(root, row[part])
            digest.update(data)
            picture = decode_image(data, part, MAX_PIXELS)
        except ImageError as error:
            return digest.hexdigest(), f"{error.code}: {where}{error.message}"
        except StorageError as error:
            return digest.hexdigest(), f"{error.code}: {where}{error.message}"
        if size is not None and picture.size != size:
            width, height = picture.size
            return digest.hexdigest(), (
                f"size_mismatch: the {part} is {width} x {height} pixels, "
                f"the picture {size[0]} x {size[1]}"
            )
        size = picture.size
    return digest.hexdigest(), ""


def _with_utf8_name(item: Item) -> Item:
    try:
        item.name.encode()
    except UnicodeEncodeError:
        name = item.name.encode(errors="surrogateescape").decode(errors="replace")
        return Item(name, "", problem="bad_name: the file's name is not UTF-8")
    return item
