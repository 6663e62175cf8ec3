"""A request's trace goes with its job: through the store, the log, and the spans of its stages."""

from __future__ import annotations

import logging
import sqlite3
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nurie.config.serve import JobsConfig
from nurie_serve import tracing
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.tables import SCHEMA_VERSION
from tests.serve.test_jobs import ended, submit

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing.trace, "get_tracer", provider.get_tracer)
    return exporter


def test_a_trace_goes_with_its_job(
    client: TestClient, files: dict, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    client.headers["traceparent"] = TRACEPARENT
    with caplog.at_level(logging.INFO, "ray.serve.nurie"):
        logging.getLogger("ray.serve").propagate = True
        job = ended(client, submit(client, files))
    assert job["traceparent"] == TRACEPARENT
    lines = [record for record in caplog.records if getattr(record, "job_id", None) == job["id"]]
    assert {record.event for record in lines} == {"accepted", "started", "ended"}
    assert {record.trace_id for record in lines} == {TRACE}
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {f"nurie.{n}" for n in ("job", "queue", "decode", "denoise", "encode")}
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
    whole = found.pop("nurie.job")
    assert f"{whole.parent.span_id:016x}" == SPAN
    assert whole.attributes["nurie.job_id"] == job["id"]
    for name, span in found.items():
        assert span.parent.span_id == whole.context.span_id
        seconds = job["timing"][name.removeprefix("nurie.") + "_s"]
        assert span.end_time - span.start_time == pytest.approx(seconds * 1e9, abs=2e3)
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time


@pytest.mark.parametrize("sent", [None, "", "00-0-0-01", f"00-{'0' * 32}-{SPAN}-01", "x" * 5000])
def test_what_is_no_trace_is_left_out(client: TestClient, files: dict, sent: str | None) -> None:
    headers = {} if sent is None else {"traceparent": sent}
    answer = client.post("/v1/jobs", files=files, headers=headers)
    assert (answer.status_code, answer.json()["traceparent"]) == (202, None)


def test_the_exporter_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"pip install 'nurie\[otlp\]'"):
        tracing.to_collector()


# What each version has that the one before had not.
NEW_IN = {
    2: ("ALTER TABLE jobs DROP COLUMN traceparent",),
    3: (
        "DROP INDEX jobs_webhook",
        *(
            f"ALTER TABLE jobs DROP COLUMN {name}"
            for name in ("webhook", "webhook_tries", "webhook_status", "webhook_due")
        ),
    ),
    4: (
        "DROP INDEX jobs_ended",
        "CREATE INDEX jobs_finished ON jobs (finished_at)",
        "CREATE INDEX pictures_digest ON pictures (owner, digest)",
    ),
}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_older_store_is_upgraded(tmp_path: Path, version: int) -> None:
    def layout() -> tuple[set, set]:
        with sqlite3.connect(tmp_path / "jobs.db") as connection:
            assert connection.execute("SELECT schema_version FROM meta").fetchone() == (
                SCHEMA_VERSION,
            )
            columns = connection.execute("SELECT name FROM pragma_table_info('jobs')").fetchall()
            indices = connection.execute("SELECT name FROM pragma_index_list('jobs')").fetchall()
        return set(columns), set(indices)

    config = JobsConfig(folder=str(tmp_path))
    JobStore(config, 10).close()
    newest = layout()
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        for newer in range(version + 1, SCHEMA_VERSION + 1):
            for statement in NEW_IN[newer]:
                connection.execute(statement)
        connection.execute("UPDATE meta SET schema_version = ?", (version,))
    for _ in range(2):
        store = JobStore(config, 10)
        assert store.list_jobs("anybody", None, 10, None) == []
        store.close()
    assert layout() == newest
