"""The catalogue of stream events: which there are, which fields each needs, which end a stream.

`check_event` looks at everything a handler yields (B30). Types of newer servers (`response.*`) pass as they are; a
known type needs its fields in their types. `sequence_number` is not among them: whoever writes the stream stamps it.
"""

import re
from typing import Any

LIFECYCLE_STATUS: dict[str, str | None] = {
    "response.created": None,
    "response.queued": "queued",
    "response.in_progress": "in_progress",
    "response.completed": "completed",
    "response.failed": "failed",
    "response.incomplete": "incomplete",
}
"""Events with a `response` → the status it then has; `response.created` may be `queued` or `in_progress`."""

TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete"})

# Short enough for the number behind it to be found in the first bytes of a frame.
_NEWER = re.compile(r"response\.[A-Za-z0-9_.\-]{1,70}", re.ASCII)

_ITEM: dict[str, type] = {"output_index": int, "item_id": str}
_PART: dict[str, type] = {**_ITEM, "content_index": int}
_SUMMARY: dict[str, type] = {**_ITEM, "summary_index": int}
_COMMAND: dict[str, type] = {"output_index": int, "command_index": int}

_STEPS: dict[str, tuple[str, ...]] = {
    "file_search_call": ("in_progress", "searching", "completed"),
    "web_search_call": ("in_progress", "searching", "completed"),
    "code_interpreter_call": ("in_progress", "interpreting", "completed"),
    "image_generation_call": ("in_progress", "generating", "completed"),
    "mcp_call": ("in_progress", "completed", "failed"),
    "mcp_list_tools": ("in_progress", "completed", "failed"),
}

ITEM_STEPS: dict[str, str] = {f"response.{item}.{step}": step for item, steps in _STEPS.items() for step in steps}
"""Events that only say how far an item is → the item's status from then on."""

REQUIRED: dict[str, dict[str, type]] = {
    "error": {"message": str},
    **{name: {"response": dict} for name in LIFECYCLE_STATUS},
    **dict.fromkeys(ITEM_STEPS, _ITEM),
    "response.output_item.added": {"output_index": int, "item": dict},
    "response.output_item.done": {"output_index": int, "item": dict},
    "response.content_part.added": {**_PART, "part": dict},
    "response.content_part.done": {**_PART, "part": dict},
    "response.output_text.delta": {**_PART, "delta": str, "logprobs": list},
    "response.output_text.done": {**_PART, "text": str, "logprobs": list},
    "response.output_text.annotation.added": {**_PART, "annotation_index": int, "annotation": dict},
    "response.refusal.delta": {**_PART, "delta": str},
    "response.refusal.done": {**_PART, "refusal": str},
    "response.reasoning_text.delta": {**_PART, "delta": str},
    "response.reasoning_text.done": {**_PART, "text": str},
    "response.reasoning.delta": {**_PART, "delta": str},
    "response.reasoning.done": {**_PART, "text": str},
    "response.reasoning_summary_part.added": {**_SUMMARY, "part": dict},
    "response.reasoning_summary_part.done": {**_SUMMARY, "part": dict},
    "response.reasoning_summary_text.delta": {**_SUMMARY, "delta": str},
    "response.reasoning_summary_text.done": {**_SUMMARY, "text": str},
    "response.function_call_arguments.delta": {**_ITEM, "delta": str},
    "response.function_call_arguments.done": {**_ITEM, "arguments": str},
    "response.mcp_call_arguments.delta": {**_ITEM, "delta": str},
    "response.mcp_call_arguments.done": {**_ITEM, "arguments": str},
    "response.custom_tool_call_input.delta": {**_ITEM, "delta": str},
    "response.custom_tool_call_input.done": {**_ITEM, "input": str},
    "response.code_interpreter_call_code.delta": {**_ITEM, "delta": str},
    "response.code_interpreter_call_code.done": {**_ITEM, "code": str},
    "response.image_generation_call.partial_image": {**_ITEM, "partial_image_index": int, "partial_image_b64": str},
    "response.compaction.compacting": _ITEM,
    "response.shell_call_command.added": {**_COMMAND, "command": str},
    "response.shell_call_command.delta": {**_COMMAND, "delta": str},
    "response.shell_call_command.done": {**_COMMAND, "command": str},
    "response.shell_call_output_content.delta": {**_COMMAND, "item_id": str, "delta": dict},
    "response.shell_call_output_content.done": {**_COMMAND, "item_id": str, "output": list},
    "response.audio.delta": {"delta": str},
    "response.audio.done": {},
    "response.audio.transcript.delta": {"delta": str},
    "response.audio.transcript.done": {},
}
"""Known type → its fields besides `type` and `sequence_number`."""

_LOGPROBS = frozenset(name for name, fields in REQUIRED.items() if "logprobs" in fields)


class InvalidEvent(Exception):
    """The handler yielded something that is not a stream event.

    For the log only; a client is told no more than `server_error` (B30).
    """


def check_event(event: object) -> dict[str, Any]:
    """The event, with `logprobs` filled in where a text event lacks it (W3). The argument is not changed.

    Raises:
        InvalidEvent: not a JSON object, no type, a type that is no `response.*`, or a known type without one of its
        fields.
    """
    if not isinstance(event, dict):
        raise InvalidEvent(f"not an event object but {type(event).__name__}")
    name = event.get("type")
    if not isinstance(name, str):
        raise InvalidEvent("an event without a type")
    fields = REQUIRED.get(name)
    if fields is None:
        if not _NEWER.fullmatch(name):
            raise InvalidEvent(f"unknown event type {name[:100]!r}")
        return dict(event)
    checked = dict(event)
    if name in _LOGPROBS and checked.get("logprobs") is None:
        checked["logprobs"] = []
    for field, kind in fields.items():
        _check_field(name, field, checked.get(field), kind)
    if "item" in fields and not isinstance(checked["item"].get("type"), str):
        raise InvalidEvent(f"{name}: the item has no type")
    return checked


def is_terminal(event: dict[str, Any]) -> bool:
    """Whether this event ends the stream (B26)."""
    return event.get("type") in TERMINAL


def status_after(name: str, status: object) -> str | None:
    """The status a response has in an event of this type, whatever its payload says; None when the type does not say.

    A cancelled response ends with `response.failed` and keeps its status (B7).
    """
    if name == "response.created":
        return "queued" if status == "queued" else "in_progress"
    if name == "response.failed" and status == "cancelled":
        return "cancelled"
    return LIFECYCLE_STATUS.get(name)


def _check_field(name: str, field: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidEvent(f"{name}: {field} is not {kind.__name__} but {type(value).__name__}")
    if kind is int and isinstance(value, int) and value < 0:
        raise InvalidEvent(f"{name}: {field} is negative")
