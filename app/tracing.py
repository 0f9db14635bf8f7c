"""OpenTelemetry spans of a request's way through the queues, so that a slow one explains itself.

FastAPI makes the request's own span, joins the caller's trace (`traceparent`) and exports both to
OTEL_EXPORTER_OTLP_ENDPOINT, where that is set and the extra `otel` is installed. The spans below it are made when the
request is over, from the times that its ticket has collected: no stage knows of tracing.
"""

import time
from collections.abc import Iterable

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

from app.batching import Run
from app.logs import PROBES

CONFIG: TelemetryConfig = {
    "auto_configure": True,
    "metrics": False,  # those are Prometheus's
    "logs": False,  # tracebacks stay in the service's own log
    "operation_spans": False,
    "exclude": lambda scope: scope["path"] in PROBES,
}


def record(runs: Iterable[Run]) -> None:
    """Spans of a request's waits and runs, below the current one. Nothing where the request is not traced."""
    if not trace.get_current_span().is_recording():
        return
    tracer = trace.get_tracer("dynpose", tracer_provider=CONFIG.get("tracer_provider"))
    epoch = time.time() - time.monotonic()

    def span(name: str, start: float, end: float, attributes: dict[str, int]) -> None:
        made = tracer.start_span(name, start_time=round((epoch + start) * 1e9), attributes=attributes)
        made.end(round((epoch + end) * 1e9))

    for run in runs:
        if run.queued < run.started:
            span(f"{run.stage} queue", run.queued, run.started, {})
        span(run.stage, run.started, run.ended, {"dynpose.batch_size": run.size})


def trace_id() -> str | None:
    """Of the request that is being worked on, where it is traced."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
