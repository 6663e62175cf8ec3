"""Traces (OpenTelemetry), where the operator collects them.

Ray Serve makes spans of proxies, replicas and calls once it has an exporter. They end at the job
store, because calls carry no jobs; so a job keeps the W3C ``traceparent`` of its request, and the
replica that makes its picture writes the spans of the stages below it.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nurie_serve.jobs.work import Work

HEADER = "traceparent"
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
EXPORTER_VARIABLE = "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"
EXPORTER = "nurie_serve.tracing:to_collector"

_FORMAT = TraceContextTextMapPropagator()


def trace_of(headers: Mapping[str, str]) -> str | None:
    """The ``traceparent`` that a job of this request keeps.

    Args:
        headers: Of the request.

    Returns:
        That of Ray Serve's own span if there is one, else the visitor's; None without a valid one.
    """
    context = None
    if not trace.get_current_span().get_span_context().is_valid:
        context = _FORMAT.extract({HEADER: headers.get(HEADER, "")})
    found: dict[str, str] = {}
    _FORMAT.inject(found, context)
    return found.get(HEADER)


def write_spans(
    work: Work, timing: Mapping[str, float], ended_at: float, tracer: trace.Tracer | None = None
) -> None:
    """Write the spans of a finished job; without an exporter nothing happens.

    Args:
        work: The job.
        timing: Seconds by stage, e.g. ``denoise_s``.
        ended_at: Unix time of its end.
        tracer: Ray Serve's, unless given.
    """
    tracer = tracer or trace.get_tracer("nurie")
    context = _FORMAT.extract({HEADER: work.traceparent or ""})
    started_at = ended_at - timing["encode_s"]
    beginnings = {
        "queue": work.accepted_at,
        "decode": work.accepted_at + work.waited_s,
        "denoise": work.accepted_at + work.waited_s + timing["decode_s"],
        "encode": started_at,
    }
    job = tracer.start_span(
        "nurie.job",
        context,
        start_time=_nanoseconds(work.accepted_at),
        attributes={"nurie.job_id": work.job_id, "nurie.attempt": work.attempt},
    )
    inside = trace.set_span_in_context(job)
    for name, began in beginnings.items():
        span = tracer.start_span(f"nurie.{name}", inside, start_time=_nanoseconds(began))
        span.end(_nanoseconds(began + timing[f"{name}_s"]))
    job.end(_nanoseconds(ended_at))


def to_collector() -> list[BatchSpanProcessor]:
    """Called by Ray Serve: spans go to the collector of ``OTEL_EXPORTER_OTLP_ENDPOINT``.

    Raises:
        ValueError: If the exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # pyright: ignore[reportMissingImports]
            OTLPSpanExporter,
        )
    except ImportError as error:
        raise ValueError(
            f"{ENDPOINT_VARIABLE} is set and the exporter is missing: pip install 'nurie[otlp]', "
            f"or unset {ENDPOINT_VARIABLE}"
        ) from error
    return [BatchSpanProcessor(OTLPSpanExporter())]


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
