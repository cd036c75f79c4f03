"""The event stream a handler writes: lifecycle events, output items, checkpoints.

Events are plain JSON objects. The stream numbers them from zero; a host numbers them anew, for on a recovered response
they continue an older log. `stream.response` is the snapshot as of the last event, kept by the same fold that the log
is read with, so that what `response.completed` says is what the events said (W6, V6).

Order (B8): `emit_created()` → [`emit_queued()`] → `emit_in_progress()` → items → one of `emit_completed()`,
`emit_failed()`, `emit_incomplete()`. Not safe for several threads; one stream belongs to one run of one handler.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal

from protocol import jsonio
from protocol.builders.lifecycle import BuilderOrderError
from protocol.builders.script import Event, Events, Json, Script, Text, play
from protocol.builders.whole_items import WholeItems
from protocol.errors import failure
from protocol.events import LIFECYCLE_STATUS, TERMINAL
from protocol.fold import Fold
from protocol.items import complete_item, cut_short, merge_agent_reference
from protocol.response import INTERNAL_METADATA, TERMINAL_STATUSES, fill_response, new_response
from protocol.response import usage as whole_usage

CHECKPOINT = "resilience.checkpoint"
"""Type of the object that `checkpoint()` gives. The host takes it; it is never sent."""

_CREATED = "response.created"
_QUEUED = "response.queued"
_IN_PROGRESS = "response.in_progress"
_ITEM_ADDED = "response.output_item.added"
_ITEM_DONE = "response.output_item.done"


class EventStream[E, S](WholeItems[E, S]):
    """What the synchronous and the asynchronous stream have in common, which is all but how scripts are played.

    Args:
        response_id: the response's id; not needed with `response`.
        agent_reference: stands on the response and every item, over the request's (B21).
        model: over the request's.
        request: the create request; its values are echoed by the snapshots (W1).
        response: an earlier snapshot to go on from, on recovery `context.persisted_response`. `output_index` continues
            after its items, and `emit_in_progress()` is the reset that tells readers so (R7).
        created_at: Unix time in seconds; now, when left out. A host puts the time of acceptance in its place.

    Raises:
        ValueError: both `request` and `response`, or no response id.
    """

    def __init__(
        self,
        *,
        response_id: str | None = None,
        agent_reference: Mapping[str, Any] | None = None,
        model: str | None = None,
        request: Mapping[str, Any] | None = None,
        response: Mapping[str, Any] | None = None,
        created_at: int | None = None,
    ) -> None:
        if request is not None and response is not None:
            raise ValueError("request and response cannot both be given")
        identifier = response_id or (response or {}).get("id")
        if not isinstance(identifier, str) or not identifier:
            raise ValueError("response_id is required")
        self._response_id = identifier
        self._response = _envelope(identifier, request, response, created_at)
        reference = merge_agent_reference(self._response.get("agent_reference"), agent_reference)
        if reference is not None:
            self._response["agent_reference"] = reference
        if model is not None:
            self._response["model"] = model
        self._seeded = response is not None
        self._last: str | None = None
        self._fold: Fold | None = None
        self._claimed: int | None = None
        self._open: set[int] = set()
        self._item_metadata: dict[int, Json] = {}
        self._events: list[Event] = []

    @property
    def response(self) -> Json:
        """The response as of now. Live: a field set here stands in the next lifecycle event.

        The exception is `output`: before the first event it may be set too; from then on it follows from the events.
        """
        self._response["output"] = self._output()
        return self._response

    @property
    def internal_metadata(self) -> Json:
        """Notes kept with the response for the handler's next attempt, never shown to a client (R12). JSON; live."""
        notes = self._response.get(INTERNAL_METADATA)
        if not isinstance(notes, dict):
            notes = self._response[INTERNAL_METADATA] = {}
        return notes

    def events(self) -> list[Event]:
        """Copies of all events emitted so far. Checkpoints are not among them."""
        return [jsonio.copy(event) for event in self._events]

    def emit_created(self, *, status: str = "in_progress") -> Event:
        """`response.created`; `status` is `in_progress` or `queued`.

        Raises:
            BuilderOrderError: something was emitted before.
            ValueError: another status.
        """
        if status not in ("in_progress", "queued"):
            raise ValueError(f"a response is created in_progress or queued, not {status!r}")
        return self._emit_lifecycle(_CREATED, {"status": status})

    def emit_queued(self) -> Event:
        """`response.queued`.

        Raises:
            BuilderOrderError: not right after `emit_created()`.
        """
        return self._emit_lifecycle(_QUEUED, {"status": "queued"})

    def emit_in_progress(self) -> Event:
        """`response.in_progress`. Readers replace the output by its payload's: on a recovered stream, the reset (R7).

        Raises:
            BuilderOrderError: before `emit_created()` on a stream without `response`, or after the terminal event.
        """
        return self._emit_lifecycle(_IN_PROGRESS, {"status": "in_progress"})

    def emit_completed(self, *, usage: Mapping[str, Any] | None = None) -> Event:
        """`response.completed`, terminal. `usage` is token counts (B33); keys left out are zero (W2).

        Raises:
            BuilderOrderError: before `emit_created()`, with an item that is not done, or after the terminal event.
        """
        if self._open:
            raise BuilderOrderError(_NAME, "emit_completed", f"item {min(self._open)} must be done first")
        return self._emit_terminal("completed", usage, error=None, incomplete_details=None)

    def emit_failed(
        self,
        *,
        code: str = "server_error",
        message: str = "An internal server error occurred.",
        metadata: Mapping[str, str] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> Event:
        """`response.failed`, terminal. Clients see `code` and `message`; `metadata` is added to the response's own.

        Raises:
            BuilderOrderError: before `emit_created()`, or after the terminal event.
        """
        both = {**(self._response.get("metadata") or {}), **(metadata or {})}
        error = failure(str(code), message)
        return self._emit_terminal("failed", usage, error=error, incomplete_details=None, metadata=both)

    def emit_incomplete(self, *, reason: str | None = None, usage: Mapping[str, Any] | None = None) -> Event:
        """`response.incomplete`, terminal. `reason` is `max_output_tokens` or `content_filter`.

        Raises:
            BuilderOrderError: before `emit_created()`, or after the terminal event.
        """
        details = None if reason is None else {"reason": str(reason)}
        return self._emit_terminal("incomplete", usage, error=None, incomplete_details=details)

    def checkpoint(self) -> Event:
        """What to yield to have the snapshot of now persisted, so that a crash after it does not lose it (R11).

        When the `yield` comes back it is persisted; it is a no-op where responses are not resilient.

        Example:
            ```
            yield from stream.output_item_message("first half")
            yield stream.checkpoint()
            ```

        Raises:
            BuilderOrderError: before the first event.
        """
        if self._fold is None:
            raise BuilderOrderError(_NAME, "checkpoint", self._first())
        return {"type": CHECKPOINT, "response": self._snapshot()}

    def emit_event(self, event: Event) -> Event:
        """Takes an event of your own making into the stream, numbered; builders use this too.

        Raises:
            BuilderOrderError: before the first lifecycle event, or after the terminal one.
            InvalidEvent: it does not fit the events before it.
        """
        name = event["type"]
        self._check_order(name)
        if self._fold is None:
            self._fold = Fold(self._response)
        fields = {key: value for key, value in event.items() if key not in ("type", "sequence_number")}
        numbered = {"type": name, "sequence_number": len(self._events), **fields}
        self._fold.apply(numbered)
        self._last = name
        if name == _ITEM_ADDED:
            self._open.add(event["output_index"])
        elif name == _ITEM_DONE:
            self._open.discard(event["output_index"])
        self._events.append(numbered)
        return numbered

    def emit_item(self, step: Literal["added", "done"], output_index: int, item: Json, internal: Json) -> Event:
        """Takes an item into the stream, completed with what the response says about every item (B20, B21, W3).

        Raises:
            BuilderOrderError: an item with a smaller index was not added yet.
            InvalidItem: it lacks what its type cannot do without.
        """
        length = self._fold.output_length if self._fold is not None else 0
        if self._fold is not None and output_index > length:
            expected = f"item {length} must be added before item {output_index}"
            raise BuilderOrderError(_NAME, f"output_item.{step}", expected)
        reference = self._response.get("agent_reference")
        status = "in_progress" if step == "added" else "completed"
        whole = complete_item(item, self._response_id, reference, status=status)
        if internal:
            whole[INTERNAL_METADATA] = internal
        event = self.emit_event(
            {"type": f"response.output_item.{step}", "output_index": output_index, "item": jsonio.copy(whole)}
        )
        self._item_metadata[output_index] = internal
        return event

    def _next_index(self) -> int:
        index = len(self._output()) if self._claimed is None else self._claimed
        self._claimed = index + 1
        return index

    def _emit_terminal(self, status: str, usage: Mapping[str, Any] | None, **fields: Any) -> Event:
        if usage is not None:
            fields["usage"] = whole_usage(usage)
        return self._emit_lifecycle(f"response.{status}", {"status": status, **fields})

    def _emit_lifecycle(self, name: str, fields: Json) -> Event:
        self._check_order(name)
        self._response.update(fields)
        return self.emit_event({"type": name, "response": self._snapshot()})

    def _check_order(self, name: str) -> None:
        expected = self._expected(name)
        if expected is not None:
            call = f"emit_{name.removeprefix('response.')}" if name in LIFECYCLE_STATUS else "emit_event"
            raise BuilderOrderError(_NAME, call, f"{name} cannot come now, {expected}")

    def _expected(self, name: str) -> str | None:
        if self._last is None:
            starts = name == _CREATED or (self._seeded and name == _IN_PROGRESS)
            return None if starts else self._first()
        if self._last in TERMINAL:
            return f"nothing can follow {self._last}"
        if name == _CREATED:
            return "it can only be the first event"
        if name == _QUEUED and self._last != _CREATED:
            return f"it can only follow {_CREATED}"
        return None

    def _first(self) -> str:
        return f"{'emit_in_progress() or ' if self._seeded else ''}emit_created() must come first"

    def _output(self) -> list[Json]:
        if self._fold is None:
            output: list[Json] = self._response["output"]
            return output
        output = self._fold.items()
        for index, internal in self._item_metadata.items():
            if internal and index < len(output):
                output[index][INTERNAL_METADATA] = internal
        return output

    def _snapshot(self) -> Json:
        snapshot: Json = jsonio.copy({**self._response, "output": self._output()})
        if not snapshot.get(INTERNAL_METADATA):
            snapshot.pop(INTERNAL_METADATA, None)
        if snapshot["status"] in TERMINAL_STATUSES:
            snapshot["output"] = [cut_short(item) for item in snapshot["output"]]
        return snapshot


class ResponseEventStream(EventStream[Events, Text]):
    """The stream for handlers that write `yield from`; its twin for `async for` is `protocol.aio.ResponseEventStream`.

    Both emit the same events. Synchronous texts are a str or an iterable of str.

    Example:
        ```
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        yield from stream.output_item_message("Hello")
        yield stream.emit_completed(usage={"input_tokens": 3, "output_tokens": 1})
        ```
    """

    def play(self, script: Script) -> Events:
        """The events of a script, as an iterator."""
        return play(script)


_NAME = ResponseEventStream.__name__


def _envelope(
    response_id: str, request: Mapping[str, Any] | None, response: Mapping[str, Any] | None, created_at: int | None
) -> Json:
    fresh = new_response(
        request or {},
        response_id=response_id,
        created_at=int(time.time()) if created_at is None else created_at,
    )
    if response is None:
        return fresh
    # The seed is this very response, so even what a handler cannot change is taken from it.
    seed = {key: value for key, value in response.items() if value is not None}
    return fill_response(response, {**fresh, **seed, "id": response_id}, status="in_progress")
