"""``nurie data export``: a data set in the layouts that other tools read."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

from nurie.data.manifest import read_manifest
from nurie.data.pixels import decode_pixels
from nurie.data.png import encode_png
from nurie.data.schema import Row
from nurie.data.shards import ShardReader

ExportLayout = Literal["webdataset", "colorizediffusion"]
SAMPLES_PER_ARCHIVE = 1000
_COLUMNS = (
    "sample_id",
    "image",
    "sketches",
    "mask",
    "tags",
    "split",
    "width",
    "height",
    "aesthetic_score",
)


def export_dataset(folder: Path | str, output: Path, layout: ExportLayout) -> list[Path]:
    """Write all samples of a data set, each with its first sketch and its mask.

    Args:
        folder: Data set made by ``nurie data build``, a path or an address.
        output: Folder to write; it must not exist or be empty.
        layout: ``webdataset`` (tars per split) or ``colorizediffusion`` (zips and an index).

    Returns:
        The archives, in order.

    Raises:
        nurie.data.manifest.ManifestError: If the data set is unfinished or damaged.
        ValueError: If the output folder holds something.
    """
    manifest = read_manifest(folder, verify=True)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output: {output} is not empty; name another folder")
    output.mkdir(parents=True, exist_ok=True)
    write = _write_tars if layout == "webdataset" else _write_zips
    total = sum(manifest.counts.values())
    rows = track(
        _rows(folder, tuple(manifest.counts)), "exporting", total, console=Console(stderr=True)
    )
    return write(rows, output)


def _rows(folder: Path | str, splits: tuple[str, ...]) -> Iterator[Row]:
    for split in splits:
        reader = ShardReader(folder, split)
        for index in range(len(reader)):
            yield reader.read([index], _COLUMNS)[0]


def _write_tars(rows: Iterable[Row], output: Path) -> list[Path]:
    """``SPLIT-000000.tar`` with ``KEY.color.png``, ``.sketch.png``, ``.mask.png``, ``.json``."""
    paths: list[Path] = []
    for split, number, part in _archives(rows):
        path = output / f"{split}-{number:06d}.tar"
        temporary = path.with_suffix(".part")
        with tarfile.open(temporary, "w") as tar:
            for key, row in part:
                for extension, data in _files(row).items():
                    info = tarfile.TarInfo(f"{key:09d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        os.replace(temporary, path)
        paths.append(path)
    return paths


def _write_zips(rows: Iterable[Row], output: Path) -> list[Path]:
    """``color/0000.zip`` and so on with the member ``0000/KEY.png``, and ``data_index/``."""
    index: dict[str, dict[str, Any]] = {}
    paths: list[Path] = []
    for number, (_, _, part) in enumerate(_archives(rows)):
        names = {kind: output / kind / f"{number:04d}.zip" for kind in ("color", "sketch", "mask")}
        with ExitStack() as open_files:
            archives = {}
            for kind, path in names.items():
                path.parent.mkdir(exist_ok=True)
                # PNG is compressed already.
                archive = zipfile.ZipFile(path.with_suffix(".part"), "w", zipfile.ZIP_STORED)
                archives[kind] = open_files.enter_context(archive)
            for key, row in part:
                member = f"{number:04d}/{key:09d}.png"
                files = _files(row)
                for kind, archive in archives.items():
                    archive.writestr(member, files[f"{kind}.png"])
                index[member] = _fields(row) | {"exist_sketch": True}
        for path in names.values():
            os.replace(path.with_suffix(".part"), path)
        paths += names.values()
    folder = output / "data_index"
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    return paths


def _archives(rows: Iterable[Row]) -> Iterator[tuple[str, int, list[tuple[int, Row]]]]:
    """Rows in parts of one split, with the split and the part's number."""
    part: list[tuple[int, Row]] = []
    number, split = 0, ""
    for key, row in enumerate(rows):
        if part and (row["split"] != split or len(part) == SAMPLES_PER_ARCHIVE):
            yield split, number, part
            number = number + 1 if row["split"] == split else 0
            part = []
        split = row["split"]
        part.append((key, row))
    if part:
        yield split, number, part


def _files(row: Row) -> dict[str, bytes]:
    return {
        "color.png": encode_png(decode_pixels(row["image"])),
        "sketch.png": encode_png(decode_pixels(row["sketches"][0])),
        "mask.png": encode_png(decode_pixels(row["mask"])),
        "json": json.dumps(_fields(row)).encode(),
    }


def _fields(row: Row) -> dict[str, Any]:
    names = ("sample_id", "tags", "width", "height", "aesthetic_score")
    return {name: row[name] for name in names}
