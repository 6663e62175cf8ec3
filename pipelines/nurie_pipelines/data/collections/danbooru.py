"""A Danbooru-style metadata file as a filter over any collection of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from nurie.config.data import TagFilter
from nurie_pipelines.data.collections.item import Item
from nurie_pipelines.data.collections.storage import read_json_lines


def apply_metadata(items: list[Item], metadata: str, wanted: TagFilter) -> list[Item]:
    """Give items their tags and groups, and name why some are left out.

    A picture belongs to the entry whose ``id`` or ``md5`` is its file's stem. A picture and its
    parent are one group: they are variants of one drawing.

    Args:
        items: A collection.
        metadata: JSON lines.
        wanted: Which to keep.

    Raises:
        ValueError: If a line is not an object with ``id`` or ``md5``.
    """
    folder, _, name = metadata.rpartition("/")
    stems = {PurePosixPath(item.name).stem for item in items}
    entries: dict[str, dict[str, Any]] = {}
    for number, entry in read_json_lines(folder, name):
        keys = [str(entry[key]) for key in ("id", "md5") if entry.get(key) is not None]
        if not keys:
            raise ValueError(f"{metadata}, line {number}: neither id nor md5")
        # The file may list millions of pictures that are not here.
        entries |= {key: entry for key in keys if key in stems}
    return [_filtered(item, entries, wanted) for item in items]


def _filtered(item: Item, entries: dict[str, dict[str, Any]], wanted: TagFilter) -> Item:
    entry = entries.get(PurePosixPath(item.name).stem)
    if entry is None:
        return replace(item, problem=item.problem or "not_in_metadata: no entry has its id or md5")
    tags = _tags(entry)
    group = entry.get("parent_id") or entry.get("id") or entry.get("md5")
    problem = item.problem or _refusal(entry, tags, wanted)
    return replace(item, tags=tags, group=f"danbooru-{group}", problem=problem)


def _refusal(entry: dict[str, Any], tags: tuple[str, ...], wanted: TagFilter) -> str:
    for flag in ("is_deleted", "is_banned"):
        if entry.get(flag) in (True, 1, "1", "true"):
            return f"{flag}: the metadata says so"
    rating = str(entry.get("rating", ""))
    if rating not in wanted.ratings:
        return f"rating: {rating or 'none'} is not one of {', '.join(wanted.ratings)}"
    score = entry.get("score")
    if wanted.min_score is not None and (score is None or int(score) < wanted.min_score):
        return f"score: {score} is below {wanted.min_score}"
    if missing := set(wanted.required_tags) - set(tags):
        return f"tags: without {', '.join(sorted(missing))}"
    if found := set(wanted.excluded_tags) & set(tags):
        return f"tags: with {', '.join(sorted(found))}"
    return ""


def _tags(entry: dict[str, Any]) -> tuple[str, ...]:
    """Tags of either form: a list of objects, or words in a text."""
    if isinstance(entry.get("tags"), list):
        return tuple(tag["name"] if isinstance(tag, dict) else str(tag) for tag in entry["tags"])
    return tuple(str(entry.get("tag_string", "")).split())
