"""The log on standard error: for machines, one JSON object a line; for people at a terminal, text.

A client is free to send anything, so nothing of it stands in the log but its request's id, which is checked: paths are
those of the routes, and there are no queries, headers, file names, pictures or keypoints.
"""

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPMethod
from typing import Any, Literal, TextIO

from starlette.types import Scope

log = logging.getLogger("dynpose.request")

LogFormat = Literal["auto", "json", "text"]

REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""Of the request that is being worked on, for whatever is logged meanwhile."""

PROBES = {"/healthz", "/readyz", "/metrics"}
"""Asked every few seconds by orchestrators and Prometheus; a line only where the answer is an error."""


class JsonFormatter(logging.Formatter):
    """One line, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get(None):
            line["request_id"] = request_id
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(id)s")

    def format(self, record: logging.LogRecord) -> str:
        request_id = REQUEST_ID.get(None)
        record.id = f" [{request_id}]" if request_id else ""
        return super().format(record)


def handler(form: LogFormat, stream: TextIO) -> logging.Handler:
    """What writes to `stream`. auto: text where it is a terminal, else JSON."""
    text = form == "text" or (form == "auto" and stream.isatty())
    made = logging.StreamHandler(stream)
    made.setFormatter(TextFormatter() if text else JsonFormatter())
    return made


def request(scope: Scope, status: int, seconds: float, facts: Mapping[str, Any]) -> None:
    """The line of a finished request. facts: what else is known of it, such as `code` of an error."""
    path = getattr(scope.get("route"), "path", None)
    quiet = path in PROBES and status < 400
    method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
    milliseconds = round(1000 * seconds, 2)
    said = {"method": method, "path": path, "status": status, "ms": milliseconds} | dict(facts)
    text = "%s %s %s in %s ms"
    shown = (method, path or "(no such path)", f"{status} {facts.get('code', '')}".rstrip(), milliseconds)
    log.log(logging.DEBUG if quiet else logging.INFO, text, *shown, extra={"facts": said})
