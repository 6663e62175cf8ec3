"""Sessions that write: one at a time in a process, where the database takes one writer."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from nurie_serve.jobs.tables import BUSY_TIMEOUT_S


class WritingSessions(sessionmaker[Session]):
    """Makes sessions that write.

    SQLite lets a second writer sleep up to a tenth of a second between two looks. The threads of
    one process wait for each other here instead, where the next begins at once.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.execution_options(writes=True), expire_on_commit=False)
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else None

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A session in a transaction; not to be nested.

        Raises:
            sqlalchemy.exc.OperationalError: If the database stays locked.
        """
        if self._turn is None:
            with super().begin() as session:
                yield session
            return
        if not self._turn.acquire(timeout=BUSY_TIMEOUT_S):
            reason = sqlite3.OperationalError("database is locked")
            raise OperationalError("BEGIN IMMEDIATE", None, reason)
        try:
            with super().begin() as session:
                yield session
        finally:
            self._turn.release()
