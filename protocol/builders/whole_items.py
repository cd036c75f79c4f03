"""Output items in one call: every `output_item_*` method gives all events of one item, from added to done."""

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import Any

from protocol.builders.base import OutputItemBuilder
from protocol.builders.function_call import FunctionOutput
from protocol.builders.item_factory import ItemFactory
from protocol.builders.part import whole_part
from protocol.builders.script import Each, Json, Script
from protocol.builders.text_run import whole_run

_STARTS_IN_PROGRESS = frozenset(
    {
        "computer_call",
        "computer_call_output",
        "custom_tool_call_output",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
    }
)
"""Items that are announced as `in_progress`; `apply_patch_call_output` knows no such status, others have none."""


class WholeItems[E, S](ItemFactory[E, S]):
    """Whole items. Nothing is emitted, and no place in the output taken, before the first event is asked for.

    Example:
        ```
        yield from stream.output_item_message("Hello")  # async for event in … on the asynchronous stream
        ```
    """

    def output_item_message(self, text: S, *, annotations: Iterable[Mapping[str, Any]] | None = None) -> E:
        """A message with one text part: one delta for a str, one per chunk for an iterable."""
        return self.play(self._message(text, annotations))

    def output_item_reasoning_item(self, summary_text: S) -> E:
        """Reasoning with one summary part: one delta for a str, one per chunk for an iterable."""
        return self.play(self._reasoning(summary_text))

    def output_item_function_call(self, name: str, call_id: str, arguments: S) -> E:
        """A function call; `arguments` is JSON text, whole or in chunks."""
        return self.play(self._function_call(name, call_id, arguments))

    def output_item_function_call_output(self, call_id: str, output: FunctionOutput) -> E:
        """What a function gave, when the server itself ran it."""
        return self.play(self._function_call_output(call_id, output))

    def output_item_image_gen_call(
        self, result_base64: str, *, partials: Iterable[str] | AsyncIterable[str] | None = None
    ) -> E:
        """A picture, base64; `partials` are previews. On the synchronous stream they must be a plain iterable."""
        return self.play(self._image(result_base64, partials))

    def output_item_structured_outputs(self, output: Any) -> E:
        """Data of a shape agreed on; any JSON."""
        return self._item(self.add_output_item_structured_outputs, "structured_outputs", {"output": output})

    def output_item_computer_call(
        self,
        call_id: str,
        action: Mapping[str, Any],
        *,
        pending_safety_checks: Sequence[Mapping[str, Any]] | None = None,
        status: str = "completed",
    ) -> E:
        """An action on a computer (`click`, `type`, `screenshot`, …)."""
        item = {"call_id": call_id, "action": dict(action), "pending_safety_checks": _dicts(pending_safety_checks)}
        return self._item(self.add_output_item_computer_call, "computer_call", {**item, "status": status})

    def output_item_computer_call_output(
        self,
        call_id: str,
        output: Mapping[str, Any],
        *,
        acknowledged_safety_checks: Sequence[Mapping[str, Any]] | None = None,
    ) -> E:
        """What the computer showed, a `computer_screenshot`."""
        checks = _dicts(acknowledged_safety_checks)
        item = {"call_id": call_id, "output": dict(output), "acknowledged_safety_checks": checks, "status": "completed"}
        return self._item(self.add_output_item_computer_call_output, "computer_call_output", item)

    def output_item_local_shell_call(self, call_id: str, action: Mapping[str, Any], *, status: str = "completed") -> E:
        """A command for the caller's shell, an `exec` action."""
        item = {"call_id": call_id, "action": dict(action), "status": status}
        return self._item(self.add_output_item_local_shell_call, "local_shell_call", item)

    def output_item_local_shell_call_output(self, output: str) -> E:
        """What a local shell command gave, JSON text."""
        item = {"output": output, "status": "completed"}
        return self._item(self.add_output_item_local_shell_call_output, "local_shell_call_output", item)

    def output_item_function_shell_call(
        self,
        call_id: str,
        action: Mapping[str, Any],
        environment: Mapping[str, Any] | None,
        *,
        status: str = "completed",
    ) -> E:
        """Commands for a shell tool and where they run (`local` or a container)."""
        place = None if environment is None else dict(environment)
        item = {"call_id": call_id, "action": dict(action), "environment": place, "status": status}
        return self._item(self.add_output_item_function_shell_call, "shell_call", item)

    def output_item_function_shell_call_output(
        self,
        call_id: str,
        output: Sequence[Mapping[str, Any]],
        *,
        status: str = "completed",
        max_output_length: int | None = None,
    ) -> E:
        """What those commands gave, one object with `stdout`, `stderr` and `outcome` each; the length in characters."""
        item = {"call_id": call_id, "output": _dicts(output), "max_output_length": max_output_length, "status": status}
        return self._item(self.add_output_item_function_shell_call_output, "shell_call_output", item)

    def output_item_apply_patch_call(
        self, call_id: str, operation: Mapping[str, Any], *, status: str = "completed"
    ) -> E:
        """A patch: a `create_file`, `update_file` or `delete_file` operation."""
        item = {"call_id": call_id, "operation": dict(operation), "status": status}
        return self._item(self.add_output_item_apply_patch_call, "apply_patch_call", item)

    def output_item_apply_patch_call_output(
        self, call_id: str, *, status: str = "completed", output: str | None = None
    ) -> E:
        """How a patch went: `completed` or `failed`."""
        item = {"call_id": call_id, "status": status, "output": output}
        return self._item(self.add_output_item_apply_patch_call_output, "apply_patch_call_output", item)

    def output_item_custom_tool_call_output(self, call_id: str, output: FunctionOutput) -> E:
        """What a custom tool gave."""
        whole = output if isinstance(output, str) else list(output)
        item = {"call_id": call_id, "output": whole, "status": "completed"}
        return self._item(self.add_output_item_custom_tool_call_output, "custom_tool_call_output", item)

    def output_item_mcp_approval_request(self, server_label: str, name: str, arguments: str) -> E:
        """A request to approve an MCP call; `arguments` is JSON text."""
        item = {"server_label": server_label, "name": name, "arguments": arguments}
        return self._item(self.add_output_item_mcp_approval_request, "mcp_approval_request", item)

    def output_item_mcp_approval_response(
        self, approval_request_id: str, approve: bool, *, reason: str | None = None
    ) -> E:
        """The answer to such a request."""
        item = {"approval_request_id": approval_request_id, "approve": approve, "reason": reason}
        return self._item(self.add_output_item_mcp_approval_response, "mcp_approval_response", item)

    def output_item_compaction(self, encrypted_content: str) -> E:
        """A compacted conversation."""
        item = {"encrypted_content": encrypted_content}
        return self._item(self.add_output_item_compaction, "compaction", item)

    def _item(self, add: Callable[[], OutputItemBuilder], item_type: str, item: Json) -> E:
        return self.play(_whole_item(add, item_type, item))

    def _message(self, text: S, annotations: Iterable[Mapping[str, Any]] | None) -> Script:
        message = self.add_output_item_message()
        yield message.emit_added()
        part = message.add_text_content()
        yield part.emit_added()
        yield Each(text, part.emit_delta)
        yield part.emit_text_done()
        for annotation in annotations or ():
            yield part.emit_annotation_added(annotation)
        yield part.emit_done()
        yield message.emit_done()

    def _reasoning(self, summary_text: S) -> Script:
        item = self.add_output_item_reasoning_item()
        yield item.emit_added()
        part = item.add_summary_part()
        yield from whole_part(part, summary_text, part.emit_text_delta, lambda: part.emit_text_done(""))
        yield item.emit_done()

    def _function_call(self, name: str, call_id: str, arguments: S) -> Script:
        call = self.add_output_item_function_call(name, call_id)
        yield call.emit_added()
        yield from whole_run(arguments, call.emit_arguments_delta, call.emit_arguments_done)
        yield call.emit_done()

    def _function_call_output(self, call_id: str, output: FunctionOutput) -> Script:
        result = self.add_output_item_function_call_output(call_id)
        yield result.emit_added(output)
        yield result.emit_done(output)

    def _image(self, result_base64: str, partials: object | None) -> Script:
        picture = self.add_output_item_image_gen_call()
        yield picture.emit_added()
        yield picture.emit_in_progress()
        yield picture.emit_generating()
        if partials is not None:
            yield Each(partials, picture.emit_partial_image)
        yield picture.emit_completed()
        yield picture.emit_done(result_base64)


def _whole_item(add: Callable[[], OutputItemBuilder], item_type: str, item: Json) -> Script:
    builder = add()
    yield builder.emit_added({**item, "status": "in_progress"} if item_type in _STARTS_IN_PROGRESS else item)
    yield builder.emit_done(item)


def _dicts(values: Sequence[Mapping[str, Any]] | None) -> list[Json]:
    return [dict(value) for value in values or ()]
