"""Calls of the caller's own functions, and what they gave."""

from collections.abc import Sequence
from typing import Any

from protocol.builders.base import BaseOutputItemBuilder, EventSink, non_empty
from protocol.builders.script import Event, Events, Json, Text
from protocol.builders.text_run import TextRun, whole_run

type FunctionOutput = str | Sequence[Json]
"""What a function gave: a text, or a list of input parts (`input_text`, `input_image`, `input_file`)."""


class OutputItemFunctionCallBuilder[E = Events, S = Text](BaseOutputItemBuilder):
    """A function call: `emit_added()` → `emit_arguments_delta()`… → `emit_arguments_done()` → `emit_done()`.

    Example:
        ```
        call = stream.add_output_item_function_call("get_weather", "call_1")
        yield call.emit_added()
        yield from call.arguments('{"city": "Turin"}')
        yield call.emit_done()
        ```

    Raises:
        BuilderOrderError: a call out of order.
        ValueError: name or call id is blank.
    """

    def __init__(self, stream: EventSink[E], output_index: int, item_id: str, name: str, call_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._play = stream.play
        self._name = non_empty(name, "name")
        self._call_id = non_empty(call_id, "call_id")
        kind = "response.function_call_arguments"
        self._run = TextRun(type(self).__name__, kind, "arguments", "emit_arguments_done", {"name": name})

    @property
    def name(self) -> str:
        """The function's name."""
        return self._name

    @property
    def call_id(self) -> str:
        """The id that the function's output will name."""
        return self._call_id

    def emit_added(self) -> Event:
        """`response.output_item.added` with no arguments yet."""
        return self._emit_added(self._call("in_progress"))

    def emit_arguments_delta(self, delta: str) -> Event:
        """`response.function_call_arguments.delta`."""
        return self._emit_delta(self._run, delta, "emit_arguments_delta")

    def emit_arguments_done(self, arguments: str) -> Event:
        """`response.function_call_arguments.done`. `arguments`, JSON, counts only when there was no delta (W6)."""
        return self._emit_whole(self._run, arguments)

    def arguments(self, args: S) -> E:
        """The delta and done events of the arguments: one delta for a str, one per chunk for an iterable."""
        return self._play(whole_run(args, self.emit_arguments_delta, self.emit_arguments_done))

    def emit_done(self) -> Event:
        """`response.output_item.done` with the arguments."""
        self._run.require_settled("emit_done", unless_empty=True)
        return self._emit_done(self._call("completed"))

    def _call(self, status: str) -> Json:
        return {
            "id": self.item_id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self._run.text,
        }


class OutputItemFunctionCallOutputBuilder(BaseOutputItemBuilder):
    """What a function gave, when the server itself ran it: `emit_added(output)` → `emit_done(output)`.

    Example:
        ```
        result = stream.add_output_item_function_call_output("call_1")
        yield result.emit_added()
        yield result.emit_done('{"celsius": 21}')
        ```

    Raises:
        BuilderOrderError: a call out of order.
        ValueError: the call id is blank.
    """

    def __init__(self, stream: EventSink[Any], output_index: int, item_id: str, call_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._call_id = non_empty(call_id, "call_id")
        self._output: FunctionOutput = ""

    @property
    def call_id(self) -> str:
        """The id of the call that this is the output of."""
        return self._call_id

    def emit_added(self, output: FunctionOutput | None = None) -> Event:
        """`response.output_item.added`; without `output` it is empty so far."""
        return self._emit_added(self._result(output, "in_progress"))

    def emit_done(self, output: FunctionOutput | None = None) -> Event:
        """`response.output_item.done`; without `output` it is that of `emit_added()`."""
        return self._emit_done(self._result(output, "completed"))

    def _result(self, output: FunctionOutput | None, status: str) -> Json:
        if output is not None:
            self._output = output if isinstance(output, str) else list(output)
        return {
            "id": self.item_id,
            "type": "function_call_output",
            "status": status,
            "call_id": self._call_id,
            "output": self._output,
        }
