"""Tools of MCP servers: listing them and calling one."""

from collections.abc import Iterable, Mapping
from typing import Any

from protocol.builders.base import EventSink, SteppedBuilder, non_empty
from protocol.builders.script import Event, Events, Json, Text
from protocol.builders.text_run import TextRun, whole_run

type McpError = str | Mapping[str, Any]
"""What the tool said when it failed, or a whole error object (`mcp_protocol_error`, `http_error`, …)."""

_STEPS = (("in_progress",), ("completed", "failed"))


class OutputItemMcpCallBuilder[E = Events, S = Text](SteppedBuilder):
    """A call of an MCP server's tool.

    `emit_added()` → `emit_in_progress()` → `emit_arguments_delta()`… → `emit_arguments_done()` → `emit_completed()` or
    `emit_failed()` → `emit_done()`.

    Example:
        ```
        call = stream.add_output_item_mcp_call("maps", "route")
        yield call.emit_added()
        yield from call.arguments('{"to": "Turin"}')
        yield call.emit_completed()
        yield call.emit_done(output="2 hours")
        ```

    Raises:
        BuilderOrderError: a call out of order.
        ValueError: server label or name is blank.
    """

    _item_type = "mcp_call"
    _steps = _STEPS

    def __init__(self, stream: EventSink[E], output_index: int, item_id: str, server_label: str, name: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._play = stream.play
        self._server_label = non_empty(server_label, "server_label")
        self._name = non_empty(name, "name")
        self._run = TextRun(type(self).__name__, "response.mcp_call_arguments", "arguments", "emit_arguments_done")

    @property
    def server_label(self) -> str:
        """The server's label in the request's tools."""
        return self._server_label

    @property
    def name(self) -> str:
        """The tool's name."""
        return self._name

    def emit_added(self) -> Event:
        """`response.output_item.added` with no arguments yet."""
        return self._emit_added(self._call("in_progress", None, None))

    def emit_in_progress(self) -> Event:
        """`response.mcp_call.in_progress`."""
        return self._emit_step("in_progress")

    def emit_arguments_delta(self, delta: str) -> Event:
        """`response.mcp_call_arguments.delta`."""
        return self._emit_delta(self._run, delta, "emit_arguments_delta")

    def emit_arguments_done(self, arguments: str) -> Event:
        """`response.mcp_call_arguments.done`. `arguments`, JSON, counts only when there was no delta (W6)."""
        return self._emit_whole(self._run, arguments)

    def arguments(self, args: S) -> E:
        """The delta and done events of the arguments: one delta for a str, one per chunk for an iterable."""
        return self._play(whole_run(args, self.emit_arguments_delta, self.emit_arguments_done))

    def emit_completed(self) -> Event:
        """`response.mcp_call.completed`."""
        return self._emit_step("completed")

    def emit_failed(self) -> Event:
        """`response.mcp_call.failed`."""
        return self._emit_step("failed")

    def emit_done(self, *, output: str | None = None, error: McpError | None = None) -> Event:
        """`response.output_item.done` with what the tool gave; `failed` after `emit_failed()` or with an `error`."""
        self._run.require_settled("emit_done", unless_empty=True)
        status = "failed" if self._failed or error is not None else "completed"
        return self._emit_done(self._call(status, output, _error(error)))

    def _call(self, status: str, output: str | None, error: Json | None) -> Json:
        return {
            "id": self.item_id,
            "type": "mcp_call",
            "status": status,
            "server_label": self._server_label,
            "name": self._name,
            "arguments": self._run.text,
            "output": output,
            "error": error,
        }


class OutputItemMcpListToolsBuilder(SteppedBuilder):
    """The listing of an MCP server's tools.

    `emit_added()` → `emit_in_progress()` → `emit_completed()` or `emit_failed()` → `emit_done()`.

    Example:
        ```
        listing = stream.add_output_item_mcp_list_tools("maps")
        yield listing.emit_added()
        yield listing.emit_completed()
        yield listing.emit_done(tools=[{"name": "route", "input_schema": {"type": "object"}}])
        ```

    Raises:
        BuilderOrderError: a call out of order.
        ValueError: the server label is blank.
    """

    _item_type = "mcp_list_tools"
    _steps = _STEPS

    def __init__(self, stream: EventSink[Any], output_index: int, item_id: str, server_label: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._server_label = non_empty(server_label, "server_label")

    @property
    def server_label(self) -> str:
        """The server's label in the request's tools."""
        return self._server_label

    def emit_added(self) -> Event:
        """`response.output_item.added` without tools."""
        return self._emit_added(self._listing((), None))

    def emit_in_progress(self) -> Event:
        """`response.mcp_list_tools.in_progress`."""
        return self._emit_step("in_progress")

    def emit_completed(self) -> Event:
        """`response.mcp_list_tools.completed`."""
        return self._emit_step("completed")

    def emit_failed(self) -> Event:
        """`response.mcp_list_tools.failed`."""
        return self._emit_step("failed")

    def emit_done(self, *, tools: Iterable[Mapping[str, Any]] = (), error: str | None = None) -> Event:
        """`response.output_item.done` with the tools, or why there are none."""
        return self._emit_done(self._listing(tools, error))

    def _listing(self, tools: Iterable[Mapping[str, Any]], error: str | None) -> Json:
        return {
            "id": self.item_id,
            "type": "mcp_list_tools",
            "server_label": self._server_label,
            "tools": [dict(tool) for tool in tools],
            "error": error,
        }


def _error(error: McpError | None) -> Json | None:
    if isinstance(error, str):
        return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": error}]}
    return None if error is None else dict(error)
