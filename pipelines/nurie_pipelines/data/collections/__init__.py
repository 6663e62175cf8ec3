"""Collections of pictures in the layouts people keep them in, as one list of items."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions while it is imported)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from nurie.config.data import PicturesSource, TagFilter
from nurie_pipelines.data.collections.archives import colorizediffusion, webdataset
from nurie_pipelines.data.collections.danbooru import apply_metadata
from nurie_pipelines.data.collections.folders import imagefolder, kohya, plain_folder
from nurie_pipelines.data.collections.item import Item, as_table, iterate

__all__ = ["Item", "as_table", "collection_root", "iterate", "list_items"]


def collection_root(source: PicturesSource) -> str:
    """The folder that the items' locators start from."""
    if source.kind == "kohya" and source.path.endswith(".toml"):
        return source.path.rpartition("/")[0]
    return source.path


def list_items(source: PicturesSource) -> pa.Table:
    """Everything a collection lists, usable or not.

    Returns:
        A table with ``ITEM_SCHEMA``, sorted by name.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a list or an archive of it cannot be read, or two items have one name.
    """
    items: Iterable[Item]
    match source.kind:
        case "folder":
            items = plain_folder(source.path)
        case "imagefolder":
            items = imagefolder(source.path)
        case "webdataset":
            items = webdataset(source.path)
        case "colorizediffusion":
            items = colorizediffusion(source.path)
        case "kohya":
            items = kohya(source.path)
    if source.metadata is not None:
        wanted = source.filter or TagFilter()
        items = apply_metadata(as_table(items), source.metadata, wanted)
    table = as_table(_above(item, source.min_aesthetic_score) for item in items)
    names = table["name"]
    twice = pc.equal(names[1:], names[:-1])
    if pc.any(twice).as_py():
        name = names[1:].filter(twice)[0].as_py()
        count = pc.sum(pc.equal(names, name)).as_py()
        raise ValueError(f"source.path: {source.path}: {count} pictures are named {name!r}")
    return table


def _above(item: Item, minimum: float | None) -> Item:
    """The item, with a problem if its score is known already and too low."""
    score = item.aesthetic_score
    if minimum is None or score is None or score >= minimum or item.problem:
        return item
    return replace(item, problem=f"aesthetic_score: {score:g} is below {minimum:g}")
