"""Files of pictures, on any file system of fsspec; a name is written once and never changed."""

from __future__ import annotations

import contextlib
import os
import shutil

import fsspec


class PictureFiles:
    """Picture files below one folder.

    Args:
        folder: A path, or an address that fsspec knows.
    """

    def __init__(self, folder: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(folder)
        self._is_local = self._fs.protocol == ("file", "local")

    def free_bytes(self) -> int | None:
        """Free space of the disk; None for other file systems, which do not tell.

        Raises:
            OSError: If the folder cannot be reached.
        """
        if not self._is_local:
            return None
        self._fs.makedirs(self._root, exist_ok=True)
        return shutil.disk_usage(self._root).free

    def write(self, name: str, data: bytes) -> None:
        """Write a file that survives a power cut.

        Raises:
            OSError: If there is no space; nothing is left behind then.
        """
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            with self._fs.open(path, "wb") as file:
                file.write(data)
                file.flush()
                if self._is_local:
                    os.fsync(file.fileno())
        except OSError:
            self.delete(name)
            raise

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: If it is gone.
        """
        return self._fs.cat_file(f"{self._root}/{name}")

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")
