"""Pictures that came in: as parts of a job, or as uploads that several jobs use."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from nurie.config.serve import JobsConfig
from nurie_serve.jobs.files import PictureFiles
from nurie_serve.jobs.rows import input_file
from nurie_serve.jobs.sessions import WritingSessions
from nurie_serve.jobs.tables import JobInput, Picture, new_id

SUM_EVERY_S = 1.0
"""Bytes of all pictures are summed anew after this time."""


class StorageFull(Exception):
    """The pictures that came in alone fill the store."""


class PictureStore:
    """Rows and files of the pictures that came in.

    Args:
        config: How many bytes may be kept.
        files: The files.
        reading: Makes sessions that read.
        writing: Makes sessions that write.
    """

    def __init__(
        self,
        config: JobsConfig,
        files: PictureFiles,
        reading: sessionmaker[Session],
        writing: WritingSessions,
    ) -> None:
        self._config = config
        self._files = files
        self._reading = reading
        self._writing = writing
        self._summing = threading.Lock()
        self._used = 0
        self._summed_at = float("-inf")

    def add(
        self, owner: str, data: bytes, size: tuple[int, int], expires_at: float | None = None
    ) -> Picture:
        """Keep a checked picture; see ``add_all``."""
        return self.add_all(owner, [(data, size)], expires_at)[0]

    def add_all(
        self,
        owner: str,
        checked: Sequence[tuple[bytes, tuple[int, int]]],
        expires_at: float | None = None,
    ) -> list[Picture]:
        """Keep checked pictures, all or none.

        Args:
            owner: Whose.
            checked: Packed pixels, width and height of each.
            expires_at: Of an upload; other pictures go with their last job.

        Raises:
            StorageFull: If there is no room for them.
        """
        self._check_room(sum(len(data) for data, _ in checked))
        now = time.time()
        pictures = [
            Picture(
                id=new_id("upl"),
                owner=owner,
                digest=hashlib.sha256(data).hexdigest(),
                num_bytes=len(data),
                width=width,
                height=height,
                created_at=now,
                expires_at=expires_at,
            )
            for data, (width, height) in checked
        ]
        names = [input_file(picture.id) for picture in pictures]
        try:
            for name, (data, _) in zip(names, checked, strict=True):
                self._files.write(name, data)
            with self._writing.begin() as session:
                session.add_all(pictures)
        except (OSError, SQLAlchemyError):
            for name in names:
                self._files.delete(name)
            raise
        return pictures

    def find(self, owner: str, picture_id: str) -> Picture | None:
        """An owner's own picture."""
        with self._reading.begin() as session:
            picture = session.get(Picture, picture_id)
        return picture if picture is not None and picture.owner == owner else None

    def read(self, picture_id: str) -> bytes:
        """A picture, packed.

        Raises:
            FileNotFoundError: If it is gone.
        """
        return self._files.read(input_file(picture_id))

    def forget(self, owner: str, picture_id: str) -> bool:
        """Delete an upload; one that jobs still use goes with the last of them."""
        with self._writing.begin() as session:
            picture = session.get(Picture, picture_id, with_for_update=True)
            if picture is None or picture.owner != owner or picture.expires_at is None:
                return False
            used = session.scalar(
                select(JobInput.job_id).where(JobInput.picture_id == picture_id).limit(1)
            )
            if used is not None:
                picture.expires_at = None
                return True
            session.delete(picture)
        self._files.delete(input_file(picture_id))
        return True

    def _check_room(self, num_bytes: int) -> None:
        """Results make room when jobs are cleaned up, so that these pictures alone count.

        Many are slow to sum: that is done once in a while, and before anything is refused.
        """
        with self._summing:
            self._used += num_bytes
            too_much = self._used > self._config.max_bytes
            if too_much or time.monotonic() - self._summed_at > SUM_EVERY_S:
                with self._reading.begin() as session:
                    found = session.scalar(select(func.sum(Picture.num_bytes))) or 0
                self._used, self._summed_at = found + num_bytes, time.monotonic()
            if self._used > self._config.max_bytes:
                self._used -= num_bytes
                raise StorageFull
