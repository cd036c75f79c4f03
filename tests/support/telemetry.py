"""Telemetry that a test can read: the real SDK over exporters in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from resilience.telemetry import Telemetry

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Recorder:
    """One process's telemetry, and all it told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(tracers, meters)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The spans that have ended, in the order of their ends."""
        return self._exporter.get_finished_spans()

    def runs(self) -> list[ReadableSpan]:
        """Those of handler entries."""
        return [span for span in self.spans if span.name.startswith("invoke_agent")]

    def points(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """Every metric's points: attributes and the point."""
        found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = [(dict(point.attributes or {}), point) for point in metric.data.data_points]
                    found.setdefault(metric.name, []).extend(points)
        return found

    def total(self, name: str, **wanted: Any) -> float:
        """The sum of a counter, or the number of a histogram's values, over the points with those attributes.

        Names of attributes are written with `_` in place of the dots of `responses.…`.
        """
        asked = {f"responses.{key.replace('_', '.')}": value for key, value in wanted.items()}
        matching = [p for attributes, p in self.points().get(name, []) if asked.items() <= attributes.items()]
        return float(sum(point.count if hasattr(point, "count") else point.value for point in matching))


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """A span's attributes."""
    return span.attributes or {}


def told_by(span: ReadableSpan) -> list[str]:
    """The names of a span's events, in order."""
    return [event.name for event in span.events]


def trace_of(span: ReadableSpan) -> str:
    """The id of a span's trace, in hexadecimal."""
    assert span.context is not None
    return format_trace_id(span.context.trace_id)


def parent_of(span: ReadableSpan) -> str:
    """The id of a span's parent, in hexadecimal, "" for a root."""
    return format_span_id(span.parent.span_id) if span.parent is not None else ""
