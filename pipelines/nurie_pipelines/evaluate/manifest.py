"""Results made elsewhere: a folder with pictures and a manifest that says what belongs together.

``manifest.csv`` (with a header) or ``manifest.jsonl``; paths are relative to the folder.
"""

from __future__ import annotations

import csv
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from nurie.evaluation.measure import Picture, Reference
from nurie.evaluation.pairs import PROTOCOLS
from nurie.evaluation.tasks import MODEL, Order, Task
from nurie.inference.foreground import grey_sketch
from nurie.inference.images import decode_image, to_rgb

NAMES = ("manifest.csv", "manifest.jsonl")
AS_GIVEN = "as_given"
"""Protocol of results whose manifest names none."""


class ResultsError(ValueError):
    """A manifest or one of its pictures that cannot be used; names the file and the line."""


class Entry(BaseModel):
    """One line of the manifest.

    Attributes:
        sketch: Picture: dark lines on light paper.
        reference: Picture whose colours were wanted.
        result: Picture that was made.
        truth: Picture that would have been right.
        mask: Foreground of the sketch, bright.
        reference_mask: Foreground of the reference, bright.
        protocol: ``own``, ``same_palette`` or ``wrong``: how reference and truth belong together.
        id: Name of the sample, equal in all runs that are compared (default: the sketch's path).
        system: What made the picture (default: one system for all).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sketch: str
    reference: str
    result: str
    truth: str | None = None
    mask: str | None = None
    reference_mask: str | None = None
    protocol: str = AS_GIVEN
    id: str | None = None
    system: str = MODEL


def manifest_path(folder: Path) -> Path:
    """The manifest in a folder.

    Raises:
        ResultsError: There is none.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise ResultsError(f"{folder}: there is no {' or '.join(NAMES)}; see docs/guides/evaluate.md")


def read_entries(folder: Path) -> list[Entry]:
    """All lines of the manifest.

    Raises:
        ResultsError: A line is wrong, or names a file that does not exist.
    """
    path = manifest_path(folder)
    entries = []
    for number, values in enumerate(_lines(path), start=1):
        try:
            entry = Entry.model_validate({k: v for k, v in values.items() if v not in ("", None)})
        except ValidationError as error:
            first = error.errors()[0]
            raise ResultsError(
                f"{path}, entry {number}: {first['loc'][0]}: {first['msg']}"
            ) from None
        if entry.protocol not in (*PROTOCOLS, AS_GIVEN):
            allowed = ", ".join(PROTOCOLS)
            raise ResultsError(
                f"{path}, entry {number}: protocol {entry.protocol!r}; allowed: {allowed}"
            )
        _check_files(path, number, entry)
        entries.append(entry)
    if not entries:
        raise ResultsError(f"{path}: lists no results")
    return entries


def manifest_tasks(entries: list[Entry]) -> list[Task]:
    """A task for every entry; its order is the entry's place in the manifest."""
    return [
        Task(entry.system, entry.protocol, entry.id or entry.sketch, (entry.reference,), order)
        for order, entry in enumerate(entries)
    ]


class ManifestSource:
    """Tasks of a manifest; sketches, masks and truths are brought to the result's size.

    Args:
        folder: The folder of the manifest.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries = read_entries(folder)
        self._orders = lru_cache(maxsize=8)(self._read_orders)

    def orders(self, task: Task) -> list[Order]:
        """The picture of a task; see ``nurie.evaluation.tasks.Source``."""
        return self._orders(task.order)

    def result(self, task: Task) -> np.ndarray:
        """The picture that was made, uint8 [H, W, 3]."""
        return _read(self._folder / self._entries[task.order].result)

    def _read_orders(self, number: int) -> list[Order]:
        entry = self._entries[number]
        with Image.open(self._folder / entry.result) as result:
            size = result.size
        sketch = self._fitted(entry.sketch, size)
        assert sketch is not None
        sample = Picture(
            image=self._fitted(entry.truth, size),
            sketch=np.asarray(grey_sketch(Image.fromarray(sketch))),
            mask=self._mask(entry.mask, size),
        )
        image = _read(self._folder / entry.reference)
        mask = self._mask(entry.reference_mask, (image.shape[1], image.shape[0]))
        return [Order("0", sample, Reference(image, mask), 0)]

    def _fitted(self, name: str | None, size: tuple[int, int]) -> np.ndarray | None:
        if name is None:
            return None
        picture = Image.fromarray(_read(self._folder / name))
        if abs(picture.width / picture.height - size[0] / size[1]) > 0.02:
            raise ResultsError(
                f"{self._folder / name}: {picture.size[0]} x {picture.size[1]} has another shape "
                f"than the result of {size[0]} x {size[1]}"
            )
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))

    def _mask(self, name: str | None, size: tuple[int, int]) -> np.ndarray | None:
        found = self._fitted(name, size)
        return None if found is None else found.mean(axis=2) > 127


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path}: {error}") from None


def _check_files(path: Path, number: int, entry: Entry) -> None:
    for field in ("sketch", "reference", "result", "truth", "mask", "reference_mask"):
        name = getattr(entry, field)
        if name is not None and not (path.parent / name).is_file():
            raise ResultsError(f"{path}, entry {number}: {field}: {name}: no such file")


def _read(path: Path) -> np.ndarray:
    return np.asarray(to_rgb(decode_image(path.read_bytes(), str(path))))
