"""What every output-item builder has in common, and the builder for items without one of their own."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from protocol.builders.lifecycle import BuilderOrderError, Lifecycle
from protocol.builders.script import Event, Json, Script
from protocol.builders.text_run import TextRun


class EventSink[E](Protocol):
    """What a builder needs of its stream. `E` is what playing a script gives: an iterator or an async iterator."""

    def emit_event(self, event: Event) -> Event:
        """Take an event into the stream and return it as it will be sent."""

    def emit_item(self, step: Literal["added", "done"], output_index: int, item: Json, internal: Json) -> Event:
        """Take an `output_item.added` or `.done` into the stream. `internal` is the item's internal metadata, live."""

    def play(self, script: Script) -> E:
        """The events of a script."""


class BaseOutputItemBuilder:
    """One output item: `emit_added()` → … → `emit_done()`, each once.

    Args:
        stream: the stream that the item belongs to.
        output_index: zero-based place in the response's output.
        item_id: the item's id; stands in all of its events.
    """

    def __init__(self, stream: EventSink[Any], output_index: int, item_id: str) -> None:
        self._stream = stream
        self._output_index = output_index
        self._item_id = item_id
        self._internal_metadata: Json = {}
        self._lifecycle = Lifecycle(type(self).__name__)

    @property
    def item_id(self) -> str:
        """The item's id."""
        return self._item_id

    @property
    def output_index(self) -> int:
        """Zero-based place in the response's output."""
        return self._output_index

    @property
    def internal_metadata(self) -> Json:
        """Notes kept with the item for the handler's next attempt, never shown to a client (R12). JSON values; live."""
        return self._internal_metadata

    def _guard(self, call: str) -> None:
        self._lifecycle.during(call)

    def _emit(self, event: Event) -> Event:
        return self._stream.emit_event({**event, "item_id": self._item_id, "output_index": self._output_index})

    def _emit_delta(self, run: TextRun, text: str, call: str) -> Event:
        self._guard(call)
        return self._emit(run.delta(text, call))

    def _emit_whole(self, run: TextRun, final: str) -> Event:
        self._guard(run.settle_call)
        return self._emit(run.done(final))

    def _emit_added(self, item: Mapping[str, Any]) -> Event:
        self._lifecycle.before("emit_added")
        event = self._emit_item("added", item)
        self._lifecycle.add()
        return event

    def _emit_done(self, item: Mapping[str, Any]) -> Event:
        self._lifecycle.during("emit_done")
        event = self._emit_item("done", item)
        self._lifecycle.finish()
        return event

    def _emit_item(self, step: Literal["added", "done"], item: Mapping[str, Any]) -> Event:
        whole = {**item, "id": self._item_id}
        return self._stream.emit_item(step, self._output_index, whole, self._internal_metadata)


class OutputItemBuilder(BaseOutputItemBuilder):
    """An item of any type, given whole: `emit_added(item)` → `emit_done(item)`.

    The builder's id stands in the item whatever id it came with. `default_type` is the item's type when it names none.

    Example:
        ```
        call = stream.add_output_item_local_shell_call()
        yield call.emit_added({"call_id": "c1", "action": action, "status": "in_progress"})
        yield call.emit_done({"call_id": "c1", "action": action, "status": "completed"})
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    def __init__(
        self, stream: EventSink[Any], output_index: int, item_id: str, *, default_type: str | None = None
    ) -> None:
        super().__init__(stream, output_index, item_id)
        self._default_type = default_type

    def emit_added(self, item: Mapping[str, Any]) -> Event:
        """`response.output_item.added` with the item as it starts."""
        return self._emit_added(self._typed(item))

    def emit_done(self, item: Mapping[str, Any]) -> Event:
        """`response.output_item.done` with the item as it ends."""
        return self._emit_done(self._typed(item))

    def _typed(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        return item if self._default_type is None else {"type": self._default_type, **item}


class SteppedBuilder(BaseOutputItemBuilder):
    """A tool call that reports its steps, `response.TYPE.in_progress` … `.completed`: forwards only, all optional."""

    _item_type: str
    _steps: tuple[tuple[str, ...], ...]
    """The steps in their order; those of one group exclude each other, and the last group ends the call."""

    def __init__(self, stream: EventSink[Any], output_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._reached = -1
        self._step: str | None = None

    @property
    def _failed(self) -> bool:
        return self._step == "failed"

    def _emit_step(self, step: str) -> Event:
        call = f"emit_{step}"
        group = next(index for index, names in enumerate(self._steps) if step in names)
        self._guard(call)
        if group < self._reached:
            raise BuilderOrderError(type(self).__name__, call, f"it cannot follow emit_{self._step}()")
        self._reached, self._step = group, step
        return self._emit({"type": f"response.{self._item_type}.{step}"})

    def _guard(self, call: str) -> None:
        super()._guard(call)
        if self._reached == len(self._steps) - 1:
            raise BuilderOrderError(type(self).__name__, call, f"only emit_done() can follow emit_{self._step}()")


def non_empty(value: str, name: str) -> str:
    """The value.

    Raises:
        ValueError: it is not a str, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a non-empty string")
    return value
