"""Calls of tools that take free text."""

from protocol.builders.base import BaseOutputItemBuilder, EventSink, non_empty
from protocol.builders.script import Event, Events, Json, Text
from protocol.builders.text_run import TextRun, whole_run


class OutputItemCustomToolCallBuilder[E = Events, S = Text](BaseOutputItemBuilder):
    """A custom tool call: `emit_added()` → `emit_input_delta()`… → `emit_input_done()` → `emit_done()`.

    Example:
        ```
        call = stream.add_output_item_custom_tool_call("call_1", "sql")
        yield call.emit_added()
        yield from call.input("select 1")
        yield call.emit_done()
        ```

    Raises:
        BuilderOrderError: a call out of order.
        ValueError: name or call id is blank.
    """

    def __init__(self, stream: EventSink[E], output_index: int, item_id: str, call_id: str, name: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._play = stream.play
        self._call_id = non_empty(call_id, "call_id")
        self._name = non_empty(name, "name")
        self._run = TextRun(type(self).__name__, "response.custom_tool_call_input", "input", "emit_input_done")

    @property
    def call_id(self) -> str:
        """The id that the tool's output will name."""
        return self._call_id

    @property
    def name(self) -> str:
        """The tool's name."""
        return self._name

    def emit_added(self) -> Event:
        """`response.output_item.added` with no input yet."""
        return self._emit_added(self._call("in_progress"))

    def emit_input_delta(self, delta: str) -> Event:
        """`response.custom_tool_call_input.delta`."""
        return self._emit_delta(self._run, delta, "emit_input_delta")

    def emit_input_done(self, input_text: str) -> Event:
        """`response.custom_tool_call_input.done`. `input_text` counts only when there was no delta (W6)."""
        return self._emit_whole(self._run, input_text)

    def input(self, input_text: S) -> E:
        """The delta and done events of the input: one delta for a str, one per chunk for an iterable."""
        return self._play(whole_run(input_text, self.emit_input_delta, self.emit_input_done))

    def emit_done(self) -> Event:
        """`response.output_item.done` with the input."""
        self._run.require_settled("emit_done", unless_empty=True)
        return self._emit_done(self._call("completed"))

    def _call(self, status: str) -> Json:
        return {
            "id": self.item_id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "input": self._run.text,
        }
