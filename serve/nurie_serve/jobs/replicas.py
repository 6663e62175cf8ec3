"""Which replicas live: each says so in the store every few seconds, with the model it holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import Replica, new_id
from nurie_serve.logs import logger
from nurie_serve.schema import ModelInfo

REPORT_EVERY_S = 2.0
ALIVE_FOR_S = 8.0
_FORGOTTEN_AFTER_S = 86_400.0


class ReplicaBoard:
    """The replicas of the store.

    Args:
        store: The job store.
        endpoint: Address of the application.
    """

    def __init__(self, store: JobStore, endpoint: str) -> None:
        self._store = store
        self._endpoint = endpoint

    def other_endpoint(self) -> str | None:
        """Another application whose replicas live on this store, if there is one."""
        query = select(Replica.endpoint).where(
            Replica.endpoint != self._endpoint, Replica.seen_at > time.time() - ALIVE_FOR_S
        )
        with self._store.reading.begin() as session:
            return session.scalar(query.limit(1))

    def report(self, replica_id: str, info: ModelInfo) -> None:
        """Say that a replica lives."""
        row = Replica(
            id=replica_id, endpoint=self._endpoint, info=asdict(info), seen_at=time.time()
        )
        with self._store.writing.begin() as session:
            session.merge(row)

    def leave(self, replica_id: str) -> None:
        """Say that a replica takes no more jobs; its model stays known."""
        with self._store.writing.begin() as session:
            replica = session.get(Replica, replica_id)
            if replica is not None:
                replica.seen_at -= ALIVE_FOR_S

    def alive(self) -> list[ModelInfo]:
        """The models of the replicas that live, the newest first."""
        query = select(Replica).where(Replica.seen_at > time.time() - ALIVE_FOR_S)
        with self._store.reading.begin() as session:
            rows = session.scalars(query.order_by(Replica.id.desc())).all()
        return [ModelInfo(**row.info) for row in rows]

    def newest(self) -> ModelInfo | None:
        """The model of the newest replica, whether it lives or not; None if there never was one."""
        with self._store.reading.begin() as session:
            row = session.scalar(select(Replica).order_by(Replica.id.desc()).limit(1))
        return None if row is None else ModelInfo(**row.info)

    def forget_old(self) -> None:
        """Delete what died long ago, but keep the newest."""
        newest = select(Replica.id).order_by(Replica.id.desc()).limit(1).scalar_subquery()
        old = delete(Replica).where(Replica.seen_at < time.time() - _FORGOTTEN_AFTER_S)
        with self._store.writing.begin() as session:
            session.execute(old.where(Replica.id != newest))


class Reporter:
    """A thread that reports a replica as long as it is healthy.

    Args:
        board: Where to.
        info: The replica's model.
        healthy: Whether it is.
    """

    def __init__(self, board: ReplicaBoard, info: ModelInfo, healthy: Callable[[], bool]) -> None:
        self._board = board
        self._id = new_id("replica")
        self._info = info
        self._healthy = healthy
        self._stopped = threading.Event()
        self._board.report(self._id, info)
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the replica off the board."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        try:
            self._board.leave(self._id)
        except SQLAlchemyError:
            logger.warning("the job store does not answer; the replica is forgotten in a moment")

    def _run(self) -> None:
        while not self._stopped.wait(REPORT_EVERY_S):
            try:
                if self._healthy():
                    self._board.report(self._id, self._info)
            except SQLAlchemyError:
                logger.exception("the job store does not answer")
