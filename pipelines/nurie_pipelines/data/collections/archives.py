"""Layouts that are archives: WebDataset tars and the zips of ColorizeDiffusion."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from nurie_pipelines.data.collections.folders import is_picture
from nurie_pipelines.data.collections.item import Item, split_tags
from nurie_pipelines.data.collections.storage import (
    INSIDE,
    is_safe,
    list_files,
    read_bytes,
    read_text,
    tar_members,
    zip_members,
)

_PICTURES = ("color.png", "color.jpg", "color.webp", "png", "jpg", "jpeg", "webp")
_SKETCHES = ("sketch.png", "sketch.jpg", "sketch.webp")
_MASKS = ("mask.png",)


def webdataset(root: str) -> Iterator[Item]:
    """Tar shards: members with one name up to the first dot are a sample.

    The picture is ``NAME.color.png`` or ``NAME.jpg`` and the like, ``NAME.sketch.png`` and
    ``NAME.mask.png`` belong to it, ``NAME.txt`` is a caption, ``NAME.json`` has ``tags`` or
    ``caption``. A sample without a picture is left out.
    """
    for file in list_files(root):
        if not file.endswith(".tar"):
            continue
        samples: dict[str, dict[str, str]] = {}
        for name, offset, size in tar_members(root, file):
            folder, _, base = name.rpartition("/")
            key, _, extension = base.partition(".")
            sample = samples.setdefault(f"{folder}/{key}".lstrip("/"), {})
            sample[extension.lower()] = f"{file}{INSIDE}{offset},{size}"
        for key, parts in samples.items():
            yield _sample(root, f"{file}/{key}", parts)


def colorizediffusion(root: str) -> Iterator[Item]:
    """Zips in ``color/``, ``sketch/`` and ``mask/`` with the same members, and optionally an index.

    The index is a file of ``data_index/`` (JSON or Parquet) or ``image_list.json``, by member:
    ``aesthetic_score``, ``exist_sketch``, ``tags`` or ``caption``. A picture whose sketch does not
    exist is left out.
    """
    files = list_files(root)
    colours = [file for file in files if file.startswith("color/") and file.endswith(".zip")]
    if not colours:
        raise ValueError(f"source.path: {root} has no zip in color/")
    index = _index(root, files)
    for file in colours:
        name = PurePosixPath(file).name
        there = {
            part: set(zip_members(root, f"{part}/{name}")) if f"{part}/{name}" in files else set()
            for part in ("sketch", "mask")
        }
        for member in zip_members(root, file):
            if not is_picture(member):
                continue
            entry, wrong = _entry(index, member)
            locators = {
                part: f"{part}/{name}{INSIDE}{member}" if member in there[part] else None
                for part in there
            }
            problem = _problem(member, entry, index, locators["sketch"])
            yield Item(
                f"{PurePosixPath(name).stem}:{member}",
                f"{file}{INSIDE}{member}",
                sketch=locators["sketch"],
                mask=locators["mask"],
                tags=entry.get("tags", ()),
                aesthetic_score=entry.get("aesthetic_score"),
                problem=problem or wrong,
            )


def _sample(root: str, name: str, parts: dict[str, str]) -> Item:
    def first(extensions: tuple[str, ...]) -> str | None:
        return next((parts[e] for e in extensions if e in parts), None)

    picture = first(_PICTURES)
    if picture is None:
        return Item(name, "", problem=f"no_picture: the sample has {', '.join(sorted(parts))}")
    tags: tuple[str, ...] = ()
    try:
        if "json" in parts:
            tags = _tags(json.loads(read_bytes(root, parts["json"])))
        if not tags and "txt" in parts:
            tags = split_tags(read_bytes(root, parts["txt"]).decode())
    except ValueError as error:
        return Item(name, picture, problem=f"bad_metadata: {error}")
    problem = "" if is_safe(name) else "unsafe_name: it leads out of the archive"
    return Item(name, picture, first(_SKETCHES), first(_MASKS), tags, problem=problem)


def _problem(
    member: str,
    entry: dict[str, Any],
    index: dict[str, Any] | None,
    sketch: str | None,
) -> str:
    if not is_safe(member):
        return "unsafe_name: it leads out of the archive"
    if index is not None and member not in index:
        return "not_in_index: the index does not list it"
    if sketch is None or not entry.get("exist_sketch", True):
        return "missing_sketch: none of the same name"
    return ""


def _entry(index: dict[str, Any] | None, member: str) -> tuple[dict[str, Any], str]:
    """What the index says of a member, tags and score made what they must be, or the problem."""
    if not index or member not in index:
        return {}, ""
    try:
        tags = _tags(index[member])
        score = _aesthetic_score(index[member].get("aesthetic_score"))
    except ValueError as error:
        return {}, f"bad_metadata: {error}"
    return index[member] | {"tags": tags, "aesthetic_score": score}, ""


def _aesthetic_score(given: Any) -> float | None:
    """The score, which may be written as text."""
    if given is None:
        return None
    try:
        score = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"aesthetic_score {given!r} is not a number")
    return score


def _tags(entry: Any) -> tuple[str, ...]:
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is not an object")
    given = entry.get("tags") or entry.get("caption") or ()
    if isinstance(given, str):
        return split_tags(given)
    if not isinstance(given, list | tuple):
        raise ValueError(f"tags {given!r} are neither text nor a list")
    return tuple(str(tag) for tag in given)


def _index(root: str, files: list[str]) -> dict[str, Any] | None:
    found = [
        file
        for file in files
        if file == "image_list.json"
        or (file.startswith("data_index/") and file.endswith((".json", ".parquet")))
    ]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"source.path: {root} has several indices: {', '.join(found)}; keep one")
    if found[0].endswith(".parquet"):
        import pyarrow as pa

        rows = pq.read_table(pa.BufferReader(read_bytes(root, found[0]))).to_pylist()
        key = next(
            (k for k in ("path", "file_name", "name", "index") if rows and k in rows[0]), None
        )
        if key is None:
            raise ValueError(f"{root}/{found[0]}: no column path, file_name, name or index")
        return {row[key]: row for row in rows}
    entries = json.loads(read_text(root, found[0]))
    if not isinstance(entries, dict):
        raise ValueError(f"{root}/{found[0]}: not an object from member to its fields")
    return entries
