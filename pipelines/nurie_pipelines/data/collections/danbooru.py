"""A Danbooru-style metadata file as a filter over any collection of pictures."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Self

import pyarrow as pa

from nurie.config.data import TagFilter
from nurie_pipelines.data.collections.item import Item, iterate
from nurie_pipelines.data.collections.storage import read_json_lines


def apply_metadata(items: pa.Table, metadata: str, wanted: TagFilter) -> Iterator[Item]:
    """Give items their tags and groups, and name why some are left out.

    A picture belongs to the entry whose ``id`` or ``md5`` is its file's stem. A picture and its
    parent are one group: they are variants of one drawing.

    Args:
        items: A collection, a table of items.
        metadata: JSON lines.
        wanted: Which to keep.

    Raises:
        ValueError: If a line is not an object with ``id`` or ``md5``.
    """
    folder, _, name = metadata.rpartition("/")
    stems = {PurePosixPath(name.as_py()).stem for name in items["name"]}
    entries: dict[str, _Entry] = {}
    for number, entry in read_json_lines(folder, name):
        keys = [str(entry[key]) for key in ("id", "md5") if entry.get(key) is not None]
        if not keys:
            raise ValueError(f"{metadata}, line {number}: neither id nor md5")
        # The file may list millions of pictures that are not here, and say much about each.
        if here := [key for key in keys if key in stems]:
            entries |= dict.fromkeys(here, _Entry.of(entry, wanted))
    return (_filtered(item, entries.get(PurePosixPath(item.name).stem)) for item in iterate(items))


class _Entry(NamedTuple):
    """What is kept of one line of the metadata."""

    tags: tuple[str, ...]
    group: str
    refusal: str

    @classmethod
    def of(cls, entry: dict[str, Any], wanted: TagFilter) -> Self:
        tags = tuple(map(sys.intern, _tags(entry)))
        group = entry.get("parent_id") or entry.get("id") or entry.get("md5")
        return cls(tags, f"danbooru-{group}", _refusal(entry, tags, wanted))


def _filtered(item: Item, entry: _Entry | None) -> Item:
    if entry is None:
        return replace(item, problem=item.problem or "not_in_metadata: no entry has its id or md5")
    problem = item.problem or entry.refusal
    return replace(item, tags=entry.tags, group=entry.group, problem=problem)


def _refusal(entry: dict[str, Any], tags: tuple[str, ...], wanted: TagFilter) -> str:
    for flag in ("is_deleted", "is_banned"):
        if entry.get(flag) in (True, 1, "1", "true"):
            return f"{flag}: the metadata says so"
    rating = str(entry.get("rating", ""))
    if rating not in wanted.ratings:
        return f"rating: {rating or 'none'} is not one of {', '.join(wanted.ratings)}"
    if wanted.min_score is not None:
        score = entry.get("score")
        try:
            number = -math.inf if score is None else float(score)
        except (TypeError, ValueError):
            return f"bad_metadata: score {score!r} is not a number"
        if not number >= wanted.min_score:
            return f"score: {score} is below {wanted.min_score}"
    if missing := set(wanted.required_tags) - set(tags):
        return f"tags: without {', '.join(sorted(missing))}"
    if found := set(wanted.excluded_tags) & set(tags):
        return f"tags: with {', '.join(sorted(found))}"
    return ""


def _tags(entry: dict[str, Any]) -> tuple[str, ...]:
    """Tags of either form: a list of objects, or words in a text."""
    if isinstance(entry.get("tags"), list):
        return tuple(
            str(tag.get("name") if isinstance(tag, dict) else tag) for tag in entry["tags"]
        )
    return tuple(str(entry.get("tag_string", "")).split())
