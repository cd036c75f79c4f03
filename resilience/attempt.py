"""One handler entry as telemetry sees it: the span `invoke_agent`, its four events, its numbers.

The span begins when this process has the run, and ends when the run left it, after the end of its stream: not when the
handler function returns its generator. Its events are `accepted` (at its own time, which is before the span where the
run had to wait), `started`, `first event`, `terminal`. Nothing of what a client or a handler said is in it.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from resilience.dispatch import Disposition
from resilience.log_context import bound
from resilience.ownership import Ownership
from resilience.record import RequestRecord
from resilience.runtime import Runtime
from resilience.telemetry import PROVIDER, Telemetry, accepted_at, inside, outcome_of, parent_of

_log = logging.getLogger("resilience.telemetry")

_NANOSECONDS = 1_000_000_000

type SpanHook = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entering:
    """Which entry into the handler it is.

    Attributes:
        disposition: What happens to the response if its worker dies.
        generation: The claim, counted over all workers.
        attempt: The entry, graceful hand-overs not counted (R5).
        recovery: True if a handler may have been entered before.
        steered: True for a turn that was queued behind another (S3).
        worker_id: Who owns the run, "" if that is not known yet.
        model: The model that was asked for.
    """

    disposition: str
    generation: int = 1
    attempt: int = 1
    recovery: bool = False
    steered: bool = False
    worker_id: str = ""
    model: str = ""

    @property
    def id(self) -> str:
        """The generation and who has it; with the response's id it is unique."""
        return f"{self.generation}-{self.worker_id}" if self.worker_id else str(self.generation)


class Attempt:
    """Tells the story of one handler entry; a context manager around the whole of it."""

    def __init__(
        self, telemetry: Telemetry, record: RequestRecord, entering: Entering, hook: SpanHook | None = None
    ) -> None:
        self.has_begun = False
        """True once the handler has said something."""
        self._telemetry = telemetry
        self._record = record
        self._entering = entering
        self._hook = hook
        self._accepted = accepted_at(record.trace_context, record.created_at)
        self._since = self._accepted
        self._left = ExitStack()
        self._kind = {"responses.disposition": entering.disposition}

    def __enter__(self) -> "Attempt":
        if self._entering.recovery:
            self._since = self._telemetry.now()
        self._left.enter_context(bound(response_id=self._record.response_id, attempt_id=self._entering.id))
        self._span = self._telemetry.tracer.start_span(
            self._name(),
            parent_of(self._record.trace_context),
            kind=SpanKind.INTERNAL,
            attributes=self._hooked(self._attributes()),
            links=self._links(),
        )
        self._telemetry.remember_attempt(self._record.response_id, self._span.get_span_context())
        self._left.enter_context(inside(self._span))
        self._span.add_event("accepted", timestamp=int(self._accepted * _NANOSECONDS))
        self._telemetry.open.add(1, self._kind)
        self._left.callback(self._telemetry.open.add, -1, self._kind)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.broke(error)
        self._left.close()

    # -- what happens ----------------------------------------------------------------------------------------------

    def owned_by(self, worker_id: str) -> None:
        """It became known who answers for the run."""
        if worker_id:
            self._span.set_attribute("responses.worker.id", worker_id)

    def started(self) -> None:
        """The handler is entered."""
        entering = self._entering
        self._span.add_event("started")
        attributes: dict[str, str | bool] = {
            **self._kind,
            "responses.recovery": entering.recovery,
            "responses.steered": entering.steered,
        }
        self._telemetry.attempts.add(1, attributes)
        if entering.recovery:
            self._telemetry.recoveries.add(1, self._kind)
        else:
            self._telemetry.delay.record(self._elapsed(), self._kind)

    def begun(self) -> None:
        """The handler said something for the first time; `has_begun` tells whether it did."""
        self.has_begun = True
        self._span.add_event("first event")
        if not self._entering.recovery:
            self._telemetry.first_event.record(self._elapsed(), self._kind)

    def decided(self, snapshot: Mapping[str, Any]) -> None:
        """This process decided the outcome, and storage has it."""
        self._telemetry.count_outcome(snapshot, self._entering.disposition)
        about = {**self._operation(), **{name: v for name, v in outcome_of(snapshot).items() if name == "error.type"}}
        self._telemetry.duration.record(max(0.0, self._telemetry.now() - self._since), about)
        for kind, tokens in _usage(snapshot).items():
            self._telemetry.tokens.record(tokens, {**self._operation(), "gen_ai.token.type": kind})

    def terminal(self, snapshot: Mapping[str, Any]) -> None:
        """The outcome is there, whoever decided it."""
        outcome = outcome_of(snapshot)
        self._span.add_event("terminal", outcome)
        self._span.set_attributes(outcome)
        for kind, tokens in _usage(snapshot).items():
            self._span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
        if snapshot.get("model"):
            self._span.set_attribute("gen_ai.response.model", str(snapshot["model"]))
        if snapshot.get("status") == "failed":
            self._span.set_status(Status(StatusCode.ERROR, outcome.get("error.type")))

    def left(self, how: str) -> None:
        """How the run left this process: `ended`, `handed_over`, `reclaim` (it goes on here), `lost` to another."""
        self._span.set_attribute("responses.left", how)
        if how == "lost":
            self._telemetry.lost.add(1, self._kind)

    def broke(self, error: BaseException) -> None:
        """It ended with an error in place of an outcome."""
        self._span.set_attribute("error.type", type(error).__qualname__)
        self._span.set_status(Status(StatusCode.ERROR))

    # -- what it is ------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        agent = (self._record.agent_reference or {}).get("name") or self._entering.model
        return f"invoke_agent {agent}" if agent else "invoke_agent"

    def _operation(self) -> dict[str, str]:
        model = {"gen_ai.request.model": self._entering.model} if self._entering.model else {}
        return {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": PROVIDER, **model}

    def _attributes(self) -> dict[str, Any]:
        record, entering = self._record, self._entering
        agent = record.agent_reference or {}
        named = {
            "gen_ai.agent.name": agent.get("name"),
            "gen_ai.agent.version": agent.get("version"),
            "gen_ai.conversation.id": record.conversation,
            "responses.worker.id": entering.worker_id,
        }
        return {
            **self._operation(),
            "gen_ai.response.id": record.response_id,
            "gen_ai.request.stream": bool(record.request.get("stream")),
            **{name: str(value) for name, value in named.items() if value},
            "responses.disposition": entering.disposition,
            "responses.generation": entering.generation,
            "responses.attempt": entering.attempt,
            "responses.recovery": entering.recovery,
            "responses.steered": entering.steered,
        }

    def _hooked(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """The attributes as the app's hook leaves them; one that fails changes nothing."""
        if self._hook is None:
            return attributes
        given = dict(attributes)
        try:
            self._hook(given)
        except Exception:
            _log.exception("response %s: create_span_hook failed", self._record.response_id)
            return attributes
        return given

    def _links(self) -> list[Link]:
        earlier = self._telemetry.earlier_attempt(self._record.response_id)
        return [Link(earlier, {"responses.link": "earlier_attempt"})] if earlier is not None else []

    def _elapsed(self) -> float:
        return max(0.0, self._telemetry.now() - self._accepted)


def _usage(snapshot: Mapping[str, Any]) -> dict[str, int]:
    """Tokens by kind, as far as the handler said."""
    usage = snapshot.get("usage")
    if not isinstance(usage, dict):
        return {}
    return {kind: count for kind in ("input", "output") if isinstance(count := usage.get(f"{kind}_tokens"), int)}


def background_attempt(runtime: Runtime, ownership: Ownership, record: RequestRecord) -> Attempt:
    """The entry into the handler that a won claim leads to."""
    row = ownership.row
    entering = Entering(
        disposition=row.disposition,
        generation=row.generation,
        attempt=row.attempt,
        recovery=ownership.is_recovery,
        steered=row.steered,
        worker_id=row.owner,
        model=_model(runtime, record),
    )
    return Attempt(runtime.telemetry, record, entering, runtime.app.options.create_span_hook)


def foreground_attempt(
    runtime: Runtime, record: RequestRecord, disposition: Disposition, *, steered: bool, worker_id: str
) -> Attempt:
    """The one entry into the handler of a foreground run."""
    entering = Entering(disposition=disposition, steered=steered, worker_id=worker_id, model=_model(runtime, record))
    return Attempt(runtime.telemetry, record, entering, runtime.app.options.create_span_hook)


def _model(runtime: Runtime, record: RequestRecord) -> str:
    return str(record.request.get("model") or runtime.app.options.default_model or "")
