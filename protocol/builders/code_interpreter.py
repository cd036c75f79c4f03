"""Code that the server runs for the model."""

from collections.abc import Iterable, Mapping
from typing import Any

from protocol.builders.base import EventSink, SteppedBuilder
from protocol.builders.script import Event, Events, Json, Text
from protocol.builders.text_run import TextRun, whole_run


class OutputItemCodeInterpreterCallBuilder[E = Events, S = Text](SteppedBuilder):
    """A run of code.

    `emit_added()` → `emit_in_progress()` → `emit_interpreting()` → `emit_completed()` → `emit_done()`; the code,
    `emit_code_delta()`… → `emit_code_done()`, before `emit_completed()`.

    Example:
        ```
        run = stream.add_output_item_code_interpreter_call()
        yield run.emit_added()
        yield run.emit_in_progress()
        yield from run.code("print(1)")
        yield run.emit_interpreting()
        yield run.emit_completed()
        yield run.emit_done(outputs=[{"type": "logs", "logs": "1"}])
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    _item_type = "code_interpreter_call"
    _steps = (("in_progress",), ("interpreting",), ("completed",))

    def __init__(self, stream: EventSink[E], output_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._play = stream.play
        self._container_id = ""
        self._run = TextRun(type(self).__name__, "response.code_interpreter_call_code", "code", "emit_code_done")

    def emit_added(self, *, container_id: str = "") -> Event:
        """`response.output_item.added`. `container_id` names where the code runs."""
        self._container_id = container_id
        return self._emit_added(self._call([], "in_progress"))

    def emit_in_progress(self) -> Event:
        """`response.code_interpreter_call.in_progress`."""
        return self._emit_step("in_progress")

    def emit_interpreting(self) -> Event:
        """`response.code_interpreter_call.interpreting`."""
        return self._emit_step("interpreting")

    def emit_code_delta(self, delta: str) -> Event:
        """`response.code_interpreter_call_code.delta`."""
        return self._emit_delta(self._run, delta, "emit_code_delta")

    def emit_code_done(self, code: str) -> Event:
        """`response.code_interpreter_call_code.done`. `code` counts only when there was no delta (W6)."""
        return self._emit_whole(self._run, code)

    def code(self, code_text: S) -> E:
        """The delta and done events of the code: one delta for a str, one per chunk for an iterable."""
        return self._play(whole_run(code_text, self.emit_code_delta, self.emit_code_done))

    def emit_completed(self) -> Event:
        """`response.code_interpreter_call.completed`."""
        return self._emit_step("completed")

    def emit_done(self, *, outputs: Iterable[Mapping[str, Any]] = ()) -> Event:
        """`response.output_item.done` with the code and its outputs (`logs` and `image` objects)."""
        self._run.require_settled("emit_done", unless_empty=True)
        return self._emit_done(self._call([dict(output) for output in outputs], "completed"))

    def _call(self, outputs: list[Json], status: str) -> Json:
        return {
            "id": self.item_id,
            "type": "code_interpreter_call",
            "status": status,
            "container_id": self._container_id,
            "code": self._run.text,
            "outputs": outputs,
        }
