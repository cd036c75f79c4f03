"""The message item."""

from protocol.builders.base import EventSink
from protocol.builders.content import RefusalContentBuilder, TextContentBuilder
from protocol.builders.part import PartedBuilder, whole_part
from protocol.builders.script import Event, Events, Json, Script, Text


class OutputItemMessageBuilder[E = Events, S = Text](PartedBuilder):
    """A message of the assistant: `emit_added()` → its parts, one or several → `emit_done()`.

    Example:
        ```
        message = stream.add_output_item_message()
        yield message.emit_added()
        yield from message.text_content(["Hel", "lo"])
        yield message.emit_done()
        ```

    Raises:
        BuilderOrderError: a call out of order, or a part that is not done before the message is.
    """

    def __init__(self, stream: EventSink[E], output_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._play = stream.play

    def emit_added(self) -> Event:
        """`response.output_item.added` with the empty message."""
        return self._emit_added(self._message([], "in_progress"))

    def add_text_content(self) -> TextContentBuilder:
        """The builder of the message's next part, a text."""
        return self._join(TextContentBuilder(self._stream, self.output_index, len(self._parts), self.item_id))

    def add_refusal_content(self) -> RefusalContentBuilder:
        """The builder of the message's next part, a refusal."""
        return self._join(RefusalContentBuilder(self._stream, self.output_index, len(self._parts), self.item_id))

    def text_content(self, text: S) -> E:
        """All events of a text part: one delta for a str, one per chunk for an iterable."""
        return self._play(self._text_script(text))

    def refusal_content(self, text: S) -> E:
        """All events of a refusal part: one delta for a str, one per chunk for an iterable."""
        return self._play(self._refusal_script(text))

    def emit_done(self) -> Event:
        """`response.output_item.done` with the whole message."""
        return self._emit_done(self._message(self._whole_parts(), "completed"))

    def _text_script(self, text: S) -> Script:
        part = self.add_text_content()
        yield from whole_part(part, text, part.emit_delta, part.emit_text_done)

    def _refusal_script(self, text: S) -> Script:
        part = self.add_refusal_content()
        yield from whole_part(part, text, part.emit_delta, lambda: part.emit_refusal_done(""))

    def _message(self, content: list[Json], status: str) -> Json:
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}
