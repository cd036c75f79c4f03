"""Parts of an item: what text, refusal and summary parts share, and the items that hold them."""

from collections.abc import Callable
from typing import Any

from protocol.builders.base import BaseOutputItemBuilder, EventSink
from protocol.builders.lifecycle import BuilderLifecycleState, BuilderOrderError, Lifecycle
from protocol.builders.script import Each, Event, Json, Script
from protocol.builders.text_run import TextRun


class PartBuilder:
    """One part: `emit_added()` → deltas → the text's done event → `emit_done()`."""

    _index_name: str
    _event_kind: str
    _run: TextRun

    def __init__(self, stream: EventSink[Any], output_index: int, index: int, item_id: str) -> None:
        self._stream = stream
        self._index = index
        self._address = {"item_id": item_id, "output_index": output_index, self._index_name: index}
        self._lifecycle = Lifecycle(type(self).__name__)
        self._owner: PartedBuilder | None = None

    @property
    def state(self) -> BuilderLifecycleState:
        """How far the part is."""
        return self._lifecycle.state

    def part(self) -> Json:
        """The part as it stands now."""
        raise NotImplementedError

    def emit_added(self) -> Event:
        """`….added` with the empty part.

        Raises:
            BuilderOrderError: it was added before, its item is not open, or an earlier part of the item was left out.
        """
        if self._owner is not None:
            self._owner.admit(self._index, type(self).__name__)
        self._lifecycle.before("emit_added")
        event = self._emit({"type": f"{self._event_kind}.added", "part": self.part()})
        self._lifecycle.add()
        return event

    def emit_done(self) -> Event:
        """`….done` with the whole part.

        Raises:
            BuilderOrderError: the text is not settled yet, or the part is done.
        """
        self._lifecycle.during("emit_done")
        self._run.require_settled("emit_done")
        event = self._emit({"type": f"{self._event_kind}.done", "part": self.part()})
        self._lifecycle.finish()
        return event

    def belong_to(self, owner: "PartedBuilder") -> None:
        """Let `owner` have a say in the order of its parts."""
        self._owner = owner

    def _emit_delta(self, text: str, call: str) -> Event:
        self._lifecycle.during(call)
        return self._emit(self._run.delta(text, call))

    def _emit_text_done(self, final: str) -> Event:
        self._lifecycle.during(self._run.settle_call)
        return self._emit(self._run.done(final))

    def _emit(self, event: Event) -> Event:
        return self._stream.emit_event({**event, **self._address})


class PartedBuilder(BaseOutputItemBuilder):
    """An item made of parts, added in the order of their index. All that were added must be done before the item is."""

    def __init__(self, stream: EventSink[Any], output_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._parts: list[PartBuilder] = []

    def admit(self, index: int, builder: str) -> None:
        """Check that a part may be added now.

        Raises:
            BuilderOrderError: the item is not open, or a part with a smaller index was not added yet.
        """
        self._lifecycle.during(f"{builder}.emit_added")
        missing = next((i for i in range(index) if self._parts[i].state is BuilderLifecycleState.NOT_STARTED), None)
        if missing is not None:
            raise BuilderOrderError(builder, "emit_added", f"part {missing} must be added before part {index}")

    def _join[P: PartBuilder](self, part: P) -> P:
        part.belong_to(self)
        self._parts.append(part)
        return part

    def _whole_parts(self) -> list[Json]:
        self._lifecycle.during("emit_done")
        for index, part in enumerate(self._parts):
            if part.state is BuilderLifecycleState.ADDED:
                raise BuilderOrderError(type(self).__name__, "emit_done", f"part {index} must be done first")
        return [part.part() for part in self._parts if part.state is BuilderLifecycleState.DONE]


def whole_part(
    part: PartBuilder, source: object, emit_delta: Callable[[str], Event], emit_text_done: Callable[[], Event]
) -> Script:
    """The whole life of a part whose text comes from `source`."""
    yield part.emit_added()
    yield Each(source, emit_delta)
    yield emit_text_done()
    yield part.emit_done()
