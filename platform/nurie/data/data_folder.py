"""The folder of a data set: on a disk, or at an address of a file system that fsspec knows."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
import pyarrow.parquet as pq

_PART = ".part"
_BLOCK_BYTES = 2**22


class DataFolder:
    """Files by their names below a folder (``bucket=64x64/train-00000.parquet``).

    A file that is put appears whole or not at all on a disk and in an object store (one upload);
    other file systems may show half a file, which is why a shard counts only with its sidecar.

    Args:
        location: A path, or an address such as ``s3://bucket/folder``.
    """

    def __init__(self, location: Path | str) -> None:
        self.location = str(location)
        self.is_local = "://" not in self.location
        if self.is_local:
            self.location = str(Path(location).absolute())
        system, root = fsspec.core.url_to_fs(self.location)
        self._system, self._root = system, str(root).rstrip("/")

    def __str__(self) -> str:
        """The location."""
        return self.location

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file, by name; empty if there is no such folder."""
        found: dict[str, int] = {}
        for folder, _, files in self._system.walk(self._root, detail=True):
            inside = str(folder).removeprefix(self._root).strip("/")
            for name, info in cast("dict[str, dict]", files).items():
                found[f"{inside}/{name}".lstrip("/")] = info["size"]
        return found

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._system.isfile(self._path(name))

    def read(self, name: str) -> bytes:
        """The bytes of a small file.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        return cast("bytes", self._system.cat_file(self._path(name)))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The bytes of small files by name, fetched together where the file system can."""
        if self.is_local or not names:
            return {name: self.read(name) for name in names}
        found = self._system.cat([self._path(name) for name in names])
        parts = cast("dict[str, bytes]", found).items()
        return {path.removeprefix(self._root).lstrip("/"): data for path, data in parts}

    def sha256(self, name: str) -> str:
        """The digest of a file, which is read from beginning to end."""
        with self._open(name) as file:
            digest = hashlib.sha256()
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            return digest.hexdigest()

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """Open a shard: mapped into memory, or by requests for the ranges that are read."""
        if self.is_local:
            return pq.ParquetFile(self._path(name), memory_map=True)
        return pq.ParquetFile(self._open(name), pre_buffer=True)

    def put(self, name: str, write: Callable[[BinaryIO], object]) -> tuple[str, int]:
        """Write a file, replacing one of that name.

        Args:
            name: Name in the folder.
            write: Writes the content.

        Returns:
            Digest and size of the content.
        """
        path = self._path(name)
        if self.is_local:
            beside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}{_PART}")
            beside.parent.mkdir(parents=True, exist_ok=True)
            written = _write(beside, write)
            os.replace(beside, path)
            return written
        with tempfile.TemporaryDirectory(prefix="nurie-") as folder:
            beside = Path(folder) / "file"
            written = _write(beside, write)
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(beside), path)
        return written

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to a local path."""
        with self._open(name) as file, target.open("wb") as copy:
            shutil.copyfileobj(file, copy)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        if self.exists(name):
            self._system.rm_file(self._path(name))

    def remove_leftovers(self) -> None:
        """Remove what writers left behind that were killed."""
        if self.is_local:
            for file in Path(self._root).rglob(f".*{_PART}"):
                file.unlink()

    def _open(self, name: str) -> BinaryIO:
        # Row groups are fetched as they are: reading ahead would fetch their neighbours, too.
        return cast("BinaryIO", self._system.open(self._path(name), "rb", cache_type="none"))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _write(path: Path, write: Callable[[BinaryIO], object]) -> tuple[str, int]:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
