"""The reasoning item and the parts of its summary."""

from typing import Any

from protocol.builders.base import EventSink
from protocol.builders.part import PartBuilder, PartedBuilder, whole_part
from protocol.builders.script import Event, Events, Json, Script, Text
from protocol.builders.text_run import TextRun


class ReasoningSummaryPartBuilder(PartBuilder):
    """One part of a reasoning summary: `emit_added()` → `emit_text_delta()`… → `emit_text_done()` → `emit_done()`.

    Example:
        ```
        part = reasoning.add_summary_part()
        yield part.emit_added()
        yield part.emit_text_done("Looked at the map.")
        yield part.emit_done()
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    _index_name = "summary_index"
    _event_kind = "response.reasoning_summary_part"

    def __init__(self, stream: EventSink[Any], output_index: int, summary_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, summary_index, item_id)
        self._run = TextRun(type(self).__name__, "response.reasoning_summary_text", "text", "emit_text_done")

    @property
    def summary_index(self) -> int:
        """Zero-based place in the summary."""
        return self._index

    @property
    def final_text(self) -> str | None:
        """The whole text, or None before `emit_text_done()`."""
        return self._run.settled

    def emit_text_delta(self, text: str) -> Event:
        """`response.reasoning_summary_text.delta`."""
        return self._emit_delta(text, "emit_text_delta")

    def emit_text_done(self, final_text: str) -> Event:
        """`response.reasoning_summary_text.done`. `final_text` counts only when there was no delta (W6)."""
        return self._emit_text_done(final_text)

    def part(self) -> Json:
        """The part as it stands now."""
        return {"type": "summary_text", "text": self._run.text}


class OutputItemReasoningItemBuilder[E = Events, S = Text](PartedBuilder):
    """Reasoning: `emit_added()` → parts of its summary, any number → `emit_done()`.

    Example:
        ```
        reasoning = stream.add_output_item_reasoning_item()
        yield reasoning.emit_added()
        yield from reasoning.summary_part("Looked at the map.")
        yield reasoning.emit_done()
        ```

    Raises:
        BuilderOrderError: a call out of order, or a part that is not done before the item is.
    """

    def __init__(self, stream: EventSink[E], output_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._play = stream.play

    def emit_added(self) -> Event:
        """`response.output_item.added` with an empty summary."""
        return self._emit_added(self._reasoning([], "in_progress"))

    def add_summary_part(self) -> ReasoningSummaryPartBuilder:
        """The builder of the summary's next part."""
        return self._join(ReasoningSummaryPartBuilder(self._stream, self.output_index, len(self._parts), self.item_id))

    def summary_part(self, text: S) -> E:
        """All events of a part of the summary: one delta for a str, one per chunk for an iterable."""
        return self._play(self._summary_script(text))

    def emit_done(self, *, encrypted_content: str | None = None) -> Event:
        """`response.output_item.done` with the whole summary."""
        item = self._reasoning(self._whole_parts(), "completed")
        if encrypted_content is not None:
            item["encrypted_content"] = encrypted_content
        return self._emit_done(item)

    def _summary_script(self, text: S) -> Script:
        part = self.add_summary_part()
        yield from whole_part(part, text, part.emit_text_delta, lambda: part.emit_text_done(""))

    def _reasoning(self, summary: list[Json], status: str) -> Json:
        return {"id": self.item_id, "type": "reasoning", "status": status, "summary": summary}
