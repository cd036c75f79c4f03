"""Items: what goes into a response and what comes out of it.

Every item has `id`, `type` and, where its kind has one, `status`. Ids of input items follow from the response's id
and the item's place, so that a recovered handler sees the ids of the first attempt (R3).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from protocol import ids, jsonio
from protocol.events import InvalidEvent

INTERNAL_METADATA = "internal_metadata"
"""A handler's own notes on a response or item; stored, never sent (R12)."""

WITH_STATUS = frozenset(
    {
        "message",
        "function_call",
        "function_call_output",
        "file_search_call",
        "web_search_call",
        "computer_call",
        "computer_call_output",
        "code_interpreter_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "mcp_call",
        "custom_tool_call",
        "custom_tool_call_output",
        "program_output",
        "tool_search_call",
        "tool_search_output",
    }
)
"""Item types that carry a `status`."""

_NEVER_IN_PROGRESS = frozenset({"apply_patch_call_output"})

_DEFAULTS: dict[str, dict[str, Any]] = {
    "message": {"role": "assistant", "content": []},
    "reasoning": {"summary": []},
    "file_search_call": {"queries": [], "results": None},
    "web_search_call": {"action": {"type": "search", "query": ""}},
    "computer_call": {"pending_safety_checks": []},
    "code_interpreter_call": {"container_id": "", "code": None, "outputs": None},
    "image_generation_call": {"result": None},
    "mcp_call": {"arguments": ""},
    "mcp_list_tools": {"tools": []},
    "function_call": {"arguments": ""},
    "custom_tool_call": {"input": ""},
}
"""Output item type → fields without which typed clients cannot read it, and which a handler may leave out."""

_REQUIRED: dict[str, tuple[str, ...]] = {
    "function_call": ("call_id", "name"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name"),
    "custom_tool_call_output": ("call_id", "output"),
    "mcp_call": ("name", "server_label"),
    "mcp_list_tools": ("server_label",),
    "mcp_approval_request": ("arguments", "name", "server_label"),
    "mcp_approval_response": ("approval_request_id", "approve"),
    "computer_call": ("call_id",),
    "computer_call_output": ("call_id", "output"),
    "local_shell_call": ("call_id", "action"),
    "local_shell_call_output": ("output",),
    "shell_call": ("call_id", "action"),
    "shell_call_output": ("call_id", "output"),
    "apply_patch_call": ("call_id", "operation"),
    "apply_patch_call_output": ("call_id",),
    "compaction": ("encrypted_content",),
}


_NEVER_INCOMPLETE = frozenset({"image_generation_call", "apply_patch_call", "apply_patch_call_output"})
"""Items whose status cannot be `incomplete`."""


class InvalidItem(InvalidEvent):
    """An output item lacks what its type cannot do without."""


@dataclass(frozen=True)
class ListQuery:
    """Which page of a list: at most `limit` items, in `order`, after or before the item of that id."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


def input_items(request: Mapping[str, Any], response_id: str) -> list[dict[str, Any]]:
    """The request's input as items, oldest first, each with an id; references are left as they are.

    The result shares nothing with the request, and is the same for every call with the same arguments.
    """
    value = request.get("input")
    if value is None:
        return []
    if isinstance(value, str):
        value = [{"type": "message", "role": "user", "content": value}]
    return [_input_item(item, response_id, index) for index, item in enumerate(jsonio.copy(value))]


def type_of_input(item: Mapping[str, Any]) -> Any:
    """The type of an input item; it may be left out of messages and references."""
    item_type = item.get("type")
    if item_type is not None:
        return item_type
    return "item_reference" if set(item) - {"type"} == {"id"} else "message"


def input_text(items: Iterable[Mapping[str, Any]]) -> str:
    """The text of the messages among the items, part by part, joined by line ends."""
    texts = []
    for item in items:
        if item.get("type", "message") != "message":
            continue
        content = item.get("content")
        if isinstance(content, str):
            texts.append(content)
        for part in content if isinstance(content, list) else ():
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                texts.append(text)
    return "\n".join(texts)


def page(items: Sequence[dict[str, Any]], query: ListQuery) -> dict[str, Any]:
    """One page of items given oldest first.

    An id in `after` or `before` that is not in the list bounds nothing.
    """
    ordered = list(items) if query.order == "asc" else list(reversed(items))
    places = {item.get("id"): index for index, item in enumerate(ordered)}
    start = places.get(query.after, -1) + 1 if query.after is not None else 0
    stop = places.get(query.before, len(ordered)) if query.before is not None else len(ordered)
    window = ordered[start:stop]
    # `before` alone asks for the items next to it, not for the first ones of the list.
    backwards = query.before is not None and query.after is None
    data = window[-query.limit :] if backwards else window[: query.limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0].get("id") if data else None,
        "last_id": data[-1].get("id") if data else None,
        "has_more": len(window) > len(data),
    }


def complete_item(
    item: Mapping[str, Any],
    response_id: str,
    agent_reference: Mapping[str, Any] | None = None,
    *,
    status: str = "completed",
) -> dict[str, Any]:
    """An output item with every field its readers need (B20, B21, W3).

    Args:
        item: what the handler made; not changed.
        response_id: becomes the item's `response_id`.
        agent_reference: the request's; a partial one on the item does not erase its name or version.
        status: for an item whose kind has one and that brought none.

    Raises:
        InvalidItem: it has no type, or lacks a field that cannot be made up.
    """
    item_type = item.get("type")
    if not isinstance(item_type, str):
        raise InvalidItem("an item without a type")
    whole: dict[str, Any] = dict(item)
    for field, default in _DEFAULTS.get(item_type, {}).items():
        if whole.get(field) is None:
            whole[field] = jsonio.copy(default)
    for field in _REQUIRED.get(item_type, ()):
        if whole.get(field) is None:
            raise InvalidItem(f"{item_type}: {field} is missing")
    if not isinstance(whole.get("id"), str) or not whole["id"]:
        whole["id"] = ids.new_item_id(ids.item_prefix(item_type), response_id)
    if item_type in WITH_STATUS and whole.get("status") is None:
        whole["status"] = "completed" if item_type in _NEVER_IN_PROGRESS else status
    if item_type == "message":
        whole["content"] = _content(whole["content"], str(whole["role"]))
    whole["response_id"] = response_id
    merged = merge_agent_reference(agent_reference, whole.get("agent_reference"))
    if merged is not None:
        whole["agent_reference"] = merged
    return whole


def cut_short(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as it is when its response ends before it did."""
    whole = dict(item)
    if whole.get("type") in WITH_STATUS - _NEVER_INCOMPLETE and whole.get("status") == "in_progress":
        whole["status"] = "incomplete"
    return whole


def complete_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A content part with every field its readers need (W3)."""
    whole = dict(part)
    if whole.get("type") == "output_text":
        for field, default in (("text", ""), ("annotations", []), ("logprobs", [])):
            if whole.get(field) is None:
                whole[field] = default
    return whole


def merge_agent_reference(base: Mapping[str, Any] | None, emitted: object) -> dict[str, Any] | None:
    """The request's agent reference with what a handler put over it; empty values put nothing (B21)."""
    over = emitted if isinstance(emitted, Mapping) else {}
    merged = {**(base or {}), **{key: value for key, value in over.items() if value not in (None, "")}}
    return {"type": "agent_reference", **merged} if merged else None


def _input_item(item: dict[str, Any], response_id: str, index: int) -> dict[str, Any]:
    item_type = item["type"] = type_of_input(item)
    if item_type == "item_reference":
        return item
    if not isinstance(item.get("id"), str) or not item["id"]:
        item["id"] = ids.derived_item_id(ids.item_prefix(item_type), response_id, f"input/{index}")
    if item_type in WITH_STATUS and item.get("status") is None:
        item["status"] = "completed"
    if item_type == "message":
        item["content"] = _content(item.get("content"), item.get("role"))
    return item


def _content(content: object, role: object) -> list[Any]:
    if content is None:
        return []
    if isinstance(content, str):
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    if not isinstance(content, list):
        raise InvalidItem("message: content is not a list of parts")
    return [_part(part) for part in content]


def _part(part: object) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise InvalidItem("message: a content part is not an object")
    whole = complete_part(part)
    if whole.get("type") == "input_image" and whole.get("detail") is None:
        whole["detail"] = "auto"
    return whole
