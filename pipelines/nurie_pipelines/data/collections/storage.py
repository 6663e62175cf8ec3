"""Reading a collection: files and members of archives, on any file system that fsspec knows.

A *locator* says where the bytes of one picture are below a root: ``sub/a.png`` for a file,
``0001.zip!/0001/a.png`` for a member of a zip, ``00.tar!/512,2048`` for 2048 bytes at 512 of a tar.
Whoever has root and locator can read the bytes: no index has to travel to the workers. Nothing is
ever unpacked to disk, so that no name in an archive can lead anywhere.
"""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
from fsspec import AbstractFileSystem

INSIDE = "!/"
MAX_FILE_BYTES = 256 * 2**20
"""A larger picture file is left out: it is a mistake or a bomb."""


class StorageError(ValueError):
    """Bytes that cannot be had.

    Attributes:
        code: ``too_large``, ``unreadable`` or ``link``.
        message: What is wrong.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def read_bytes(root: str, locator: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read what a locator names.

    Args:
        root: Folder of the collection, a path or an address.
        locator: Where below it.
        limit: Most bytes.

    Raises:
        StorageError: If it cannot be read, is too large or leads out of the folder.
    """
    file, _, inside = locator.partition(INSIDE)
    system, path = _inside(root, file)
    try:
        if not inside:
            size = system.size(path) or 0
            _check(size, limit)
            return cast("bytes", system.cat_file(path))
        if file.endswith(".zip"):
            return _from_zip(root, file, inside, limit)
        start, size = (int(number) for number in inside.split(","))
        _check(size, limit)
        return cast("bytes", system.cat_file(path, start, start + size))
    except (OSError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
        raise StorageError("unreadable", str(error) or type(error).__name__) from error


def read_text(root: str, file: str) -> str:
    """Read a small text file of the collection (UTF-8).

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return read_bytes(root, file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{root}/{file}: not UTF-8 text ({error})") from error


def read_json_lines(root: str, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of every line of a JSON lines file that is not empty.

    The file is read as it comes: it may be larger than memory.

    Raises:
        ValueError: Naming the line that is no JSON object.
        FileNotFoundError: If there is no such file.
        StorageError: If it leads out of the folder.
    """
    system, path = _inside(root, file)
    with cast("BinaryIO", system.open(path, "rb")) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{root}/{file}, line {number}: not UTF-8 ({error})") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{root}/{file}, line {number}: not JSON ({error})") from error
            if not isinstance(entry, dict):
                raise ValueError(f"{root}/{file}, line {number}: not an object")
            yield number, entry


def list_files(root: str) -> list[str]:
    """All files below a folder, sorted, hidden ones left out; links to folders are not followed.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    system, base = _system(root)
    if not system.isdir(base):
        raise FileNotFoundError(f"source.path: {root} is not a folder")
    found: list[str] = []
    for folder, _, names in system.walk(base):
        inside = str(folder).removeprefix(base).strip("/")
        found += [f"{inside}/{name}".lstrip("/") for name in names]
    return sorted(
        file for file in found if not any(part.startswith(".") for part in file.split("/"))
    )


def tar_members(root: str, file: str) -> list[tuple[str, int, int]]:
    """Name, offset and size of the plain files in an uncompressed tar.

    Raises:
        ValueError: If it is no readable tar.
    """
    try:
        with (
            _open(root, file) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,
        ):
            return [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{root}/{file}: not a readable uncompressed tar ({error})") from error


def zip_members(root: str, file: str) -> list[str]:
    """Names of the files in a zip.

    Raises:
        ValueError: If it is no readable zip.
    """
    try:
        names = _zip(root, file).namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{root}/{file}: not a readable zip ({error})") from error
    return [name for name in names if not name.endswith("/")]


def is_safe(name: str) -> bool:
    """Whether a member's name stays inside its archive (zip slip, absolute names)."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in name


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise StorageError("too_large", f"{size} bytes; at most {limit} are read")


def _from_zip(root: str, file: str, member: str, limit: int) -> bytes:
    archive = _zip(root, file)
    # The header's size can lie: reading stops at the limit, too.
    _check(archive.getinfo(member).file_size, limit)
    with archive.open(member) as stream:
        data = stream.read(limit + 1)
    _check(len(data), limit)
    return data


def _inside(root: str, file: str) -> tuple[AbstractFileSystem, str]:
    """Where a file of the collection is.

    Raises:
        StorageError: If it leads out of the folder.
    """
    system, base = _system(root)
    path = f"{base}/{file}"
    if _leads_out(system, base, path):
        raise StorageError("link", "it leads out of the folder")
    return system, path


def _leads_out(system: AbstractFileSystem, base: str, path: str) -> bool:
    if "file" not in (
        system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)
    ):
        return False
    inside = os.path.realpath(base)
    return os.path.commonpath([inside, os.path.realpath(path)]) != inside


@lru_cache(maxsize=16)
def _zip(root: str, file: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(_open(root, file))


def _open(root: str, file: str) -> BinaryIO:
    system, base = _system(root)
    return cast("BinaryIO", system.open(f"{base}/{file}", "rb"))


@lru_cache(maxsize=4)
def _system(root: str) -> tuple[AbstractFileSystem, str]:
    system, base = fsspec.core.url_to_fs(root)
    return system, str(base).rstrip("/")
