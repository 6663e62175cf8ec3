"""Layouts that are folders of files: plain, Hugging Face imagefolder, kohya."""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from nurie_pipelines.data.collections.item import Item, split_tags
from nurie_pipelines.data.collections.storage import list_files, read_json_lines, read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SPLITS = {"train": "train", "test": "test", "validation": "test", "val": "test"}


def is_picture(file: str) -> bool:
    """Whether a file's name is that of a picture."""
    return file.lower().endswith(SUFFIXES)


def plain_folder(root: str) -> Iterator[Item]:
    """Every picture below a folder, named by its path."""
    return (Item(file, file) for file in list_files(root) if is_picture(file))


def imagefolder(root: str) -> Iterator[Item]:
    """Hugging Face's layout: ``metadata.jsonl`` or ``.csv`` beside the pictures, splits as folders.

    ``file_name`` names the picture, ``text`` its caption; ``sketch_file_name`` and
    ``mask_file_name`` name pictures that belong to it. Pictures without an entry have no caption.
    """
    files = list_files(root)
    entries: dict[str, dict[str, Any]] = {}
    for file in files:
        if PurePosixPath(file).name in ("metadata.jsonl", "metadata.csv"):
            entries |= _metadata(root, file)
    companions = {
        entry[key]
        for entry in entries.values()
        for key in ("sketch_file_name", "mask_file_name")
        if entry.get(key)
    }
    missing = sorted((entries.keys() | companions) - set(files))
    for file in files:
        if is_picture(file) and file not in companions:
            yield _described(file, entries.get(file, {}))
    for file in missing:
        yield Item(file, file, problem="missing: a metadata file names it")


def kohya(root: str) -> Iterator[Item]:
    """Kohya's layout: captions beside the pictures, or a TOML file that names the folders.

    ``conditioning_data_dir`` of a subset holds sketches with the same names.
    """
    if not root.endswith(".toml"):
        yield from _captioned(root, "", ".txt", None)
        return
    parent, _, name = root.rpartition("/")
    settings = tomllib.loads(read_text(parent, name))
    for dataset in settings.get("datasets", []):
        for subset in dataset.get("subsets", []):
            if "image_dir" not in subset:
                raise ValueError(f"source.path: {root}: a subset has no image_dir")
            extension = (
                subset.get("caption_extension")
                or dataset.get("caption_extension")
                or settings.get("general", {}).get("caption_extension", ".txt")
            )
            yield from _captioned(
                parent, subset["image_dir"], extension, subset.get("conditioning_data_dir")
            )


def _captioned(root: str, folder: str, extension: str, sketches: str | None) -> Iterator[Item]:
    prefix = f"{folder.strip('/')}/" if folder else ""
    files = [file for file in list_files(root) if file.startswith(prefix)]
    known = set(files)
    drawn = {} if sketches is None else _by_stem(list_files(root), sketches.strip("/"))
    for file in files:
        if not is_picture(file):
            continue
        caption = str(PurePosixPath(file).with_suffix(extension))
        tags = split_tags(read_text(root, caption)) if caption in known else ()
        sketch = drawn.get(PurePosixPath(file).stem)
        problem = "" if sketches is None or sketch else "missing_sketch: none of the same name"
        yield Item(file, file, sketch=sketch, tags=tags, problem=problem)


def _by_stem(files: list[str], folder: str) -> dict[str, str]:
    inside = [file for file in files if file.startswith(f"{folder}/") and is_picture(file)]
    return {PurePosixPath(file).stem: file for file in inside}


def _metadata(root: str, file: str) -> dict[str, dict[str, Any]]:
    """Entries of a metadata file by the path of their picture; all names are made paths."""
    folder = PurePosixPath(file).parent
    found = {}
    for number, entry in _entries(root, file):
        if not entry.get("file_name"):
            raise ValueError(f"{root}/{file}, line {number}: no file_name")
        names = {
            key: str(folder / value)
            for key, value in entry.items()
            if key.endswith("file_name") and value
        }
        found[names["file_name"]] = entry | names
    return found


def _entries(root: str, file: str) -> Iterable[tuple[int, dict[str, Any]]]:
    if file.endswith(".csv"):
        return enumerate(csv.DictReader(io.StringIO(read_text(root, file))), start=2)
    return read_json_lines(root, file)


def _described(file: str, entry: dict[str, Any]) -> Item:
    return Item(
        file,
        file,
        sketch=entry.get("sketch_file_name"),
        mask=entry.get("mask_file_name"),
        tags=split_tags(str(entry.get("text") or "")),
        split=_SPLITS.get(file.split("/")[0].lower()),
    )
