"""One picture of a collection, as its layout lists it, and all of them as a table."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions while it is imported)

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

TAGS = pa.large_list(pa.dictionary(pa.int32(), pa.string()))
"""Tags are few and come again and again: a number for each."""
ITEM_SCHEMA = pa.schema(
    [
        ("name", pa.large_string()),
        ("picture", pa.large_string()),
        ("sketch", pa.large_string()),
        ("mask", pa.large_string()),
        ("tags", TAGS),
        ("aesthetic_score", pa.float64()),
        ("group", pa.large_string()),
        ("split", pa.string()),
        ("problem", pa.large_string()),
    ]
)
"""A table of items: the fields of ``Item``, a tenth of the memory of the objects."""
_ITEMS_AT_ONCE = 2**15


@dataclass(frozen=True)
class Item:
    """One picture with what is known of it before it is opened.

    Attributes:
        name: What people call it; unique in the collection.
        picture: Locator of the picture (see ``nurie_pipelines.data.collections.storage``).
        sketch: Locator of a sketch that belongs to it.
        mask: Locator of a foreground mask that belongs to it.
        tags: Tags, or the comma-separated parts of a caption.
        aesthetic_score: The layout's own score (None: it has none).
        group: Pictures of one group are never each other's mismatched reference.
        split: ``train`` or ``test`` (None: by the hash of the name).
        problem: Why it is left out, if that is known already (empty: it is not).
    """

    name: str
    picture: str
    sketch: str | None = None
    mask: str | None = None
    tags: tuple[str, ...] = ()
    aesthetic_score: float | None = None
    group: str | None = None
    split: str | None = None
    problem: str = ""


def split_tags(text: str) -> tuple[str, ...]:
    """The tags of a comma-separated caption."""
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())


def as_table(items: Iterable[Item]) -> pa.Table:
    """Items as a table with ``ITEM_SCHEMA``, sorted by name.

    What is no text in UTF-8 (names of files can be any bytes) becomes the problem of its item.
    """
    remaining, parts = iter(items), [ITEM_SCHEMA.empty_table()]
    while part := [vars(_as_utf8(item)) for item in islice(remaining, _ITEMS_AT_ONCE)]:
        parts.append(pa.Table.from_pylist(part, schema=ITEM_SCHEMA))
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    del parts
    return table.take(pc.sort_indices(table["name"]))


def iterate(table: pa.Table) -> Iterator[Item]:
    """The items of a table, one after the other."""
    names = [field.name for field in fields(Item)]
    for batch in table.select(names).to_batches(_ITEMS_AT_ONCE):
        for row in batch.to_pylist():
            yield Item(**row | {"tags": tuple(row["tags"])})


def _as_utf8(item: Item) -> Item:
    try:
        "".join((item.name, item.picture, item.sketch or "", item.mask or "")).encode()
    except UnicodeEncodeError:
        name = item.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        return Item(name, "", problem="bad_name: the file's name is not UTF-8")
    try:
        "".join((*item.tags, item.group or "")).encode()
    except UnicodeEncodeError as error:
        return Item(item.name, item.picture, problem=f"bad_metadata: not UTF-8 ({error.reason})")
    return item
