"""Collections of pictures in the layouts people keep them in, as one list of items."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from nurie.config.data import PicturesSource, TagFilter
from nurie_pipelines.data.collections.archives import colorizediffusion, webdataset
from nurie_pipelines.data.collections.danbooru import apply_metadata
from nurie_pipelines.data.collections.folders import imagefolder, kohya, plain_folder
from nurie_pipelines.data.collections.item import Item

__all__ = ["Item", "collection_root", "list_items"]


def collection_root(source: PicturesSource) -> str:
    """The folder that the items' locators start from."""
    if source.kind == "kohya" and source.path.endswith(".toml"):
        return source.path.rpartition("/")[0]
    return source.path


def list_items(source: PicturesSource) -> list[Item]:
    """Everything a collection lists, usable or not, sorted by name.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a list or an archive of it cannot be read, or two items have one name.
    """
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
        items = apply_metadata(items, source.metadata, source.filter or TagFilter())
    items = [_above(item, source.min_aesthetic_score) for item in items]
    name, count = Counter(item.name for item in items).most_common(1)[0] if items else ("", 0)
    if count > 1:
        raise ValueError(f"source.path: {source.path}: {count} pictures are named {name!r}")
    return sorted(items, key=lambda item: item.name)


def _above(item: Item, minimum: float | None) -> Item:
    """The item, with a problem if its score is known already and too low."""
    score = item.aesthetic_score
    if minimum is None or score is None or score >= minimum or item.problem:
        return item
    return replace(item, problem=f"aesthetic_score: {score:g} is below {minimum:g}")
