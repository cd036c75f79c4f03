"""What the engine tells OpenTelemetry: the instruments of a process, and the trace that a response belongs to.

Only the API is used: as long as nobody installs an SDK (`api.exporting` does, if it is configured) every call here is a
no-op. Instruments are used once per handler entry, append or storage call, never per token.

*Trace*: the `trace_context` of a request's record holds `traceparent` and `tracestate` of the accepting request, and
`accepted_ms`, when that was, in milliseconds of the accepting process's clock. The span of every handler entry is a
child of that `traceparent`, whichever process has it. A request without one gets a span of its own as the root.

The names of spans, attributes and metrics are in docs/operations.md; those of the GenAI conventions begin with
`gen_ai`.
"""

import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, Meter, MeterProvider
from opentelemetry.trace import Span, SpanContext, SpanKind, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SCOPE = "resilience"
"""The instrumentation scope of everything that this project emits."""

PROVIDER = "resilient_responses"
"""`gen_ai.provider.name`, unless the app's `create_span_hook` knows better."""

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
ACCEPTED = "accepted_ms"

_MAX_TRACESTATE = 512
"""Characters of a `tracestate` that are kept; the standard asks for no more."""

_ATTEMPTS_REMEMBERED = 1024
"""Responses of whose last handler entry here the span is remembered, for the link of the next."""

_DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300, 900, 1800)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SIZES = tuple(256 * 4**power for power in range(9))
_PLACES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)

_traces = TraceContextTextMapPropagator()


class Telemetry:
    """Tracer and instruments.

    Args:
        tracer_provider: The global one by default.
        meter_provider: Likewise.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.now = clock
        self.tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._count_runs(meter)
        self._count_work(meter)
        self._last: OrderedDict[str, SpanContext] = OrderedDict()

    def _count_runs(self, meter: Meter) -> None:
        self.ended = meter.create_counter(
            "responses.ended", "{response}", "Responses whose outcome was decided by this process."
        )
        self.attempts = meter.create_counter("responses.attempts", "{attempt}", "Entries into the handler.")
        self.recoveries = meter.create_counter(
            "responses.recoveries", "{attempt}", "Entries into the handler after an earlier one was cut off."
        )
        self.lost = meter.create_counter(
            "responses.ownership.lost", "{attempt}", "Runs that storage refused, for they were another worker's."
        )
        self.open = meter.create_up_down_counter("responses.runs.open", "{run}", "Runs of this process.")
        self.delay = _seconds(meter, "responses.queue.delay", "From acceptance to the first entry into the handler.")
        self.first_event = _seconds(
            meter, "responses.time_to_first_event", "From acceptance to the first event of the handler."
        )
        self.duration = _seconds(
            meter, "gen_ai.client.operation.duration", "From acceptance, or from a later claim, to the outcome."
        )
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of a response, as its handler says.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )

    def _count_work(self, meter: Meter) -> None:
        self.append_frames = meter.create_histogram(
            "responses.append.frames", "{event}", "Events of one append.", explicit_bucket_boundaries_advisory=_COUNTS
        )
        self.append_bytes = meter.create_histogram(
            "responses.append.size", "By", "Bytes of one append.", explicit_bucket_boundaries_advisory=_SIZES
        )
        self.storage_operations = meter.create_counter(
            "responses.storage.operations", "{operation}", "Calls of the storage account."
        )
        self.waiting_turns = meter.create_histogram(
            "responses.chain.pending",
            "{turn}",
            "Turns that wait in a conversation's chain when one joins it, that one included.",
            explicit_bucket_boundaries_advisory=_PLACES,
        )
        self.adopted = meter.create_counter("responses.workers.adopted", "{worker}", "Dead workers that were found.")
        self.poisoned = meter.create_counter("responses.messages.poisoned", "{message}", "Messages given up.")

    # -- the trace of a response ------------------------------------------------------------------------------------

    def accept(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The `trace_context` of a request that is accepted now.

        `headers` are its `traceparent` and `tracestate`, as far as there are any; what is malformed counts as missing.
        """
        parent = trace.get_current_span(_traces.extract(headers, Context())).get_span_context()
        kept = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers} if parent.is_valid else {}
        if len(kept.get(TRACESTATE, "")) > _MAX_TRACESTATE:
            del kept[TRACESTATE]
        if not kept:
            span = self.tracer.start_span("accept_response", Context(), kind=SpanKind.SERVER)
            _traces.inject(kept, trace.set_span_in_context(span, Context()))
            span.end()
        return {**kept, ACCEPTED: str(int(self.now() * 1000))}

    def earlier_attempt(self, response_id: str) -> SpanContext | None:
        """The span of the last handler entry for that response, if it was in this process."""
        return self._last.get(response_id)

    def remember_attempt(self, response_id: str, span: SpanContext) -> None:
        """It may have to be linked to."""
        if not span.is_valid:
            return
        self._last[response_id] = span
        self._last.move_to_end(response_id)
        while len(self._last) > _ATTEMPTS_REMEMBERED:
            self._last.popitem(last=False)

    # -- numbers ----------------------------------------------------------------------------------------------------

    def count_outcome(self, snapshot: Mapping[str, Any], disposition: str) -> None:
        """A response ended like this; said by whoever decided it."""
        self.ended.add(1, {"responses.disposition": disposition, **outcome_of(snapshot)})

    def count_append(self, frames: int, size: int) -> None:
        """So many events, and bytes, went to a log at once."""
        self.append_frames.record(frames)
        self.append_bytes.record(size)


@functools.cache
def shared() -> Telemetry:
    """The telemetry of this process, by the global providers, whenever they are installed."""
    return Telemetry()


def parent_of(trace_context: Mapping[str, str]) -> Context:
    """The context whose child the spans of a response are."""
    return _traces.extract(trace_context, Context())


def accepted_at(trace_context: Mapping[str, str], created_at: int) -> float:
    """When a response was accepted, Unix time in seconds; records of older versions know whole seconds."""
    try:
        return int(trace_context[ACCEPTED]) / 1000
    except (KeyError, ValueError):
        return float(created_at)


def outcome_of(snapshot: Mapping[str, Any]) -> dict[str, str]:
    """How a response ended, as attributes: its status, and what it failed of."""
    found = {"responses.status": str(snapshot.get("status"))}
    error = snapshot.get("error")
    if isinstance(error, dict):
        found["error.type"] = str(error.get("code") or "server_error")
        more = error.get("additionalInfo")
        if isinstance(more, dict) and more.get("shutdown_reason"):
            found["responses.shutdown_reason"] = str(more["shutdown_reason"])
    return found


def inside(span: Span) -> AbstractContextManager[Span]:
    """Make a span the current one and end it on the way out, without a word of what was raised: that may quote a
    prompt.
    """
    return trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)


def _seconds(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_DURATIONS)
