"""How log records look: as the host has them, or as lines of JSON for a machine to read.

Setting `RESPONSES_LOG_FORMAT`: `text` (the default: the host's own format is left alone) or `json`.

A line is one object: `time` (ISO 8601, UTC), `level`, `logger`, `message`, and where they are known `request_id`,
`response_id`, `attempt_id` (generation and worker of one handler entry), `trace_id`, `span_id`, `exception`. The server
logs no request body, no output and no key; an exception of a handler is logged as it is, with whatever its author put
into its message.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from opentelemetry import trace

from resilience import log_context

SETTING = "RESPONSES_LOG_FORMAT"
FORMATS = ("text", "json")


class UnknownLogFormat(ValueError):
    """`RESPONSES_LOG_FORMAT` is neither `text` nor `json`."""

    def __init__(self, value: str) -> None:
        self.value = value
        super().__init__(f"{SETTING}={value!r} is neither of {', '.join(FORMATS)}")


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON of a record, in the context of the task that logs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **log_context.fields(),
            **_span(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(environment: Mapping[str, str], root: logging.Logger | None = None) -> None:
    """Give the handlers that are there the format that is set.

    Raises:
        UnknownLogFormat: There is none of that name.
    """
    wanted = environment.get(SETTING, "").strip().lower() or "text"
    if wanted not in FORMATS:
        raise UnknownLogFormat(wanted)
    if wanted == "json":
        _use(JsonFormatter(), root or logging.getLogger())


def _use(formatter: logging.Formatter, root: logging.Logger) -> None:
    for handler in root.handlers or [logging.StreamHandler(sys.stderr)]:
        plain = handler
        if type(handler).__module__.startswith("rich."):  # it paints around what the formatter made
            plain = logging.StreamHandler(sys.stderr)
            plain.setLevel(handler.level)
            root.removeHandler(handler)
        plain.setFormatter(formatter)
        root.addHandler(plain)  # once more does nothing


def _span() -> dict[str, str]:
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(span.trace_id), "span_id": trace.format_span_id(span.span_id)}
