"""A folder of pictures of one's own as a source."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import ray

from nurie.config.data import FolderSource
from nurie.data.plan import finish_plan
from nurie.data.schema import Row
from nurie.inference.images import ImageError, decode_image, to_rgb
from nurie_pipelines.cluster import connect

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 64_000_000
FILES_PER_BLOCK = 64


@dataclass(frozen=True)
class CheckedFile:
    """One file of the folder: its digest, and why it cannot be used (empty: it can)."""

    name: str
    sha256: str
    reason: str


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, square.

    Attributes:
        image: uint8 [S, S, 3], transparency laid over white.
        mask: uint8 [S, S], 255 where the file is opaque; all 255 without transparency.
        original_area: Pixels of the file's picture.
    """

    image: np.ndarray
    mask: np.ndarray
    original_area: int


def find_pictures(root: Path) -> list[str]:
    """List the picture files below a folder, sorted; links to folders are not followed.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"source.path: {root} is not a folder")
    names = [
        os.path.relpath(os.path.join(folder, file), root)
        for folder, _, files in os.walk(root)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    ]
    return sorted(names)


def check_files(root: Path, names: list[str], num_cpus: int) -> list[CheckedFile]:
    """Open every file once, in parallel: digest it and find out whether it decodes.

    Returns:
        One entry per file, in the order of ``names``.
    """
    if not names:
        return []
    connect(num_cpus)
    rows = [{"number": i, "file": os.fsencode(name)} for i, name in enumerate(names)]
    num_blocks = -(-len(rows) // FILES_PER_BLOCK)
    dataset = ray.data.from_items(rows, override_num_blocks=num_blocks)
    checked = dataset.map(
        partial(_check_row, root=root),
        compute=ray.data.TaskPoolStrategy(size=min(num_cpus, num_blocks)),
    ).take_all()
    checked.sort(key=lambda row: row["number"])
    return [CheckedFile(row["name"], row["sha256"], row["reason"]) for row in checked]


def plan_folder(
    source: FolderSource, checked: list[CheckedFile], seed: int, mismatch_rounds: int
) -> pa.Table:
    """Plan one sample per usable file; files of equal content form a group and share a split.

    The test split is left empty where it would hold fewer than two different pictures.

    Raises:
        ValueError: If fewer than two different pictures can be used.
    """
    usable = [file for file in checked if not file.reason]
    names: dict[str, str] = {}
    for file in usable:
        names.setdefault(file.sha256, file.name)
    test = {digest for digest, name in names.items() if _place(name) < source.test_fraction}
    if len(test) < 2:
        test = set()
    if len(names) - len(test) < 2:
        raise ValueError(
            f"source.path: {source.path} has {len(names)} different usable pictures of "
            f"{len(checked)} files; at least 2 are needed for training, since every picture gets "
            "another one as its mismatched reference"
        )
    rows = [_plan_row(file, "test" if file.sha256 in test else "train") for file in usable]
    return finish_plan(rows, seed, mismatch_rounds)


def read_picture(path: Path, size: int) -> Picture:
    """Decode a picture file, cut its middle square out and resize it.

    Args:
        path: PNG, JPEG or WebP file.
        size: Side of the result, in pixels.

    Raises:
        nurie.inference.images.ImageError: If the file cannot be used.
    """
    picture = decode_image(path.read_bytes(), "file", MAX_PIXELS)
    width, height = picture.size
    mask = np.full((height, width), 255, np.uint8)
    if picture.mode == "RGBA":
        mask = np.where(np.asarray(picture)[..., 3] > 127, 255, 0).astype(np.uint8)
    return Picture(
        image=_square(np.asarray(to_rgb(picture)), size, cv2.INTER_AREA),
        mask=_square(mask, size, cv2.INTER_NEAREST),
        original_area=width * height,
    )


def _check_row(row: Row, root: Path) -> Row:
    file = os.fsdecode(row["file"])
    name = row["file"].decode(errors="replace")
    digest, reason = "", ""
    try:
        data = (root / file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        decode_image(data, "file", MAX_PIXELS)
    except ImageError as error:
        reason = f"{error.code}: {error.message}"
    except OSError as error:
        reason = f"unreadable: {error.strerror}"
    if not (root / file).resolve().is_relative_to(root.resolve()):
        reason = "link: it leads out of the folder"
    elif name.encode(errors="replace") != row["file"]:
        reason = "bad_name: the file's name is not UTF-8"
    return {"number": row["number"], "name": name, "sha256": digest, "reason": reason}


def _plan_row(file: CheckedFile, split: str) -> Row:
    return {
        "sample_id": file.name,
        "source": file.name,
        "character_id": file.name,
        "palette_id": file.sha256,
        "group_id": file.sha256,
        "split": split,
        "roles": [],
        "palette": "{}",
        "tags": [],
        "same_palette_ids": [],
    }


def _place(name: str) -> float:
    """A number in 0..1 that depends on the name alone: more files move no file to another split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _square(image: np.ndarray, size: int, shrink: int) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    method = shrink if side > size or shrink == cv2.INTER_NEAREST else cv2.INTER_LINEAR
    cut = image[top : top + side, left : left + side]
    return cv2.resize(cut, (size, size), interpolation=method)
