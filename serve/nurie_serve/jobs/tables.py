"""Tables of the job store, and how a connection to them behaves."""

from __future__ import annotations

import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    ForeignKey,
    Index,
    create_engine,
    event,
    inspect,
    text,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 4
UPGRADES = {
    1: ("ALTER TABLE jobs ADD COLUMN traceparent VARCHAR",),
    2: (
        "ALTER TABLE jobs ADD COLUMN webhook VARCHAR",
        "ALTER TABLE jobs ADD COLUMN webhook_tries INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN webhook_status INTEGER",
        "ALTER TABLE jobs ADD COLUMN webhook_due DOUBLE PRECISION",
        "CREATE INDEX jobs_webhook ON jobs (webhook_due)",
    ),
    3: (
        "DROP INDEX jobs_finished",
        "CREATE INDEX jobs_ended ON jobs (status, finished_at)",
        "DROP INDEX pictures_digest",
    ),
}
"""What makes the next version of each older one."""
BUSY_TIMEOUT_S = 10.0

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = (
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
)
STATUSES = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)
FINAL = (SUCCEEDED, FAILED, CANCELLED)


class StoreError(ValueError):
    """A job store that cannot be used; the message says why and what to do."""


class Table(DeclarativeBase):
    """Base of the tables; times are Unix seconds."""


class Meta(Table):
    """One row: which store this is."""

    __tablename__ = "meta"
    id: Mapped[str] = mapped_column(primary_key=True)
    schema_version: Mapped[int]


class Job(Table):
    """One picture to make."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    status: Mapped[str]
    priority: Mapped[int] = mapped_column(default=0)
    batch_key: Mapped[str]
    """Equal for jobs that may run in one batch."""
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Every control with its value, the seed included."""
    num_steps: Mapped[int | None]
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str]
    """SHA-256 of what was asked for."""
    preview_every: Mapped[int] = mapped_column(default=0)
    """Steps between two previews; 0: none."""
    batch_id: Mapped[str | None]
    created_at: Mapped[float]
    deadline: Mapped[float | None]
    """Nobody waits after this."""
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    lease: Mapped[str | None]
    """Who works on it; every write of a worker is for this lease only."""
    leased_until: Mapped[float | None]
    step: Mapped[int] = mapped_column(default=0)
    eta_s: Mapped[float | None]
    model: Mapped[str | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """A problem document (RFC 9457)."""
    timing: Mapped[dict[str, float]] = mapped_column(JSON, default=dict)
    last_event: Mapped[int] = mapped_column(default=0)
    """Number of the newest event."""
    traceparent: Mapped[str | None]
    """Trace that its request is part of (W3C Trace Context)."""
    webhook: Mapped[str | None]
    """Address that is told when it has ended."""
    webhook_tries: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often that was tried."""
    webhook_status: Mapped[int | None]
    """HTTP status of the newest answer."""
    webhook_due: Mapped[float | None]
    """When to tell it next; None: it has not ended, or there is nothing more to do."""
    __table_args__ = (
        Index("jobs_queue", "status", "priority", "id"),
        Index("jobs_idempotency", "owner", "idempotency_key", unique=True),
        Index("jobs_lease", "lease"),
        Index("jobs_batch", "batch_id"),
        Index("jobs_ended", "status", "finished_at"),
        Index("jobs_webhook", "webhook_due"),
    )


class Batch(Table):
    """Many pictures asked for at once."""

    __tablename__ = "batches"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str]
    created_at: Mapped[float]
    items: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """One per picture: sketch, reference, seed, and the job or the error."""
    __table_args__ = (Index("batches_idempotency", "owner", "idempotency_key", unique=True),)


class Picture(Table):
    """A picture that came in, decoded and checked; its file has nothing but pixels."""

    __tablename__ = "pictures"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    digest: Mapped[str]
    """SHA-256 of the file as kept."""
    num_bytes: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    """Of an upload; other pictures go with their last job."""


class JobInput(Table):
    """Which picture a job uses as what."""

    __tablename__ = "job_inputs"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    picture_id: Mapped[str] = mapped_column(ForeignKey("pictures.id"), index=True)


class Image(Table):
    """A finished picture of a job."""

    __tablename__ = "images"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str]
    seed: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    sha256: Mapped[str]
    num_bytes: Mapped[int]


class Replica(Table):
    """A replica and when it was last seen."""

    __tablename__ = "replicas"
    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint: Mapped[str]
    """Address of the application that it belongs to."""
    info: Mapped[dict[str, Any]] = mapped_column(JSON)
    seen_at: Mapped[float]


class Event(Table):
    """Something that happened to a job; numbers rise by job, previews leave gaps."""

    __tablename__ = "events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


def new_id(kind: str) -> str:
    """An identifier that sorts by time and cannot be guessed."""
    return f"{kind}_{int(time.time() * 1e6):014x}{secrets.token_hex(10)}"


def open_database(url: str) -> Engine:
    """Connect; make the tables in a new database.

    Raises:
        StoreError: If the database is damaged, does not answer or is of another version.
    """
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        engine = _sqlite(url, Path(address.database or ""))
    else:
        engine = create_engine(url, pool_pre_ping=True)
    shown = address.render_as_string(hide_password=True)
    try:
        _make_tables(engine)
    except DatabaseError as error:
        raise StoreError(
            f"jobs: the store {shown} cannot be used: {error.orig}; restore it from a copy, or "
            "move it away to begin with an empty one"
        ) from error
    _check_version(engine, shown)
    return engine


def _make_tables(engine: Engine) -> None:
    """Several processes may begin with an empty database at once: one makes the tables."""
    for last in (False, False, True):
        try:
            with engine.execution_options(writes=True).begin() as connection:
                if not inspect(connection).has_table(Meta.__tablename__):
                    Table.metadata.create_all(connection)
                    row = {"id": new_id("store"), "schema_version": SCHEMA_VERSION}
                    connection.execute(Meta.__table__.insert().values(row))  # type: ignore[attr-defined]
                _upgrade(connection)
            return
        except OperationalError:
            raise
        except DatabaseError:
            if last:
                raise
            time.sleep(0.2)


def _upgrade(connection: Connection) -> None:
    """Bring an older store to this version; of several processes, one does."""
    for version, statements in UPGRADES.items():
        outdated = update(Meta).where(Meta.schema_version == version)
        if connection.execute(outdated.values(schema_version=version + 1)).rowcount:
            for statement in statements:
                connection.execute(text(statement))


def _check_version(engine: Engine, shown: str) -> None:
    with engine.connect() as connection:
        (version,) = connection.execute(text("SELECT schema_version FROM meta")).one()
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"jobs: the store {shown} has version {version}, this program version "
            f"{SCHEMA_VERSION}; use another folder (jobs.folder) or the program that made it"
        )


def _sqlite(url: str, file: Path) -> Engine:
    """SQLite that several processes share: write-ahead log, commits that survive a power cut."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if _stays_empty(file):
        raise StoreError(
            f"jobs: {file} is empty, so its jobs are lost; restore it from a copy, or delete it to "
            "begin anew"
        )
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A transaction that reads first and writes then would be refused when another has
        # written in between, so those that write say so at once.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _stays_empty(file: Path) -> bool:
    """Whether a file is there but empty, and no other process is about to fill it."""
    for _ in range(20):
        if not file.exists() or file.stat().st_size > 0:
            return False
        time.sleep(0.05)
    return True
