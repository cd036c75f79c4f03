"""The response object: made from a request, completed from what a handler emits, ended.

No field is ever left out (W1): what has a default carries it, the rest is an explicit null. All functions return new
objects.
"""

from collections.abc import Mapping
from typing import Any

from protocol import jsonio
from protocol.errors import SERVER_ERROR, failure
from protocol.events import InvalidEvent
from protocol.items import INTERNAL_METADATA as INTERNAL_METADATA
from protocol.items import complete_item, merge_agent_reference

TERMINAL_STATUSES = frozenset({"completed", "failed", "incomplete", "cancelled"})
STATUSES = TERMINAL_STATUSES | {"queued", "in_progress"}
REDACTED = "<redacted>"

_DEFAULTS: dict[str, Any] = {
    "background": False,
    "frequency_penalty": 0,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": True,
    "temperature": 1,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1,
    "truncation": "disabled",
}
"""Fields that are never null: the request's value, or this."""

_NULLABLE = (
    "access_programs",
    "image",
    "input_transformations",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "moderation",
    "previous_response_id",
    "prompt",
    "prompt_cache_diagnostics",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "tool_usage",
    "user",
)
"""Fields that hold the request's value, or null."""

_ANSWER_ONLY = frozenset({"input_transformations", "prompt_cache_diagnostics", "tool_usage"})
# `moderation` and `image` in a request are settings, in a response results; their shapes differ.
_NOT_ECHOED = _ANSWER_ONLY | {"moderation", "image"}

_FIXED = frozenset(
    {"id", "object", "created_at", "store", "background", "conversation", "previous_response_id", "completed_at"}
)
"""Fields that a handler's snapshot does not change."""

_EMITTED_TYPES: dict[str, type] = {
    "agent_reference": dict,
    "error": dict,
    "incomplete_details": dict,
    "metadata": dict,
    "model": str,
    "output": list,
    "reasoning": dict,
    "status": str,
    "text": dict,
    "tools": list,
    "usage": dict,
}
"""What a handler's snapshot may hold where the package itself looks in, besides null."""

_NEVER_NULL = frozenset(_DEFAULTS) | {"model", "status", "output"}


def new_response(
    request: Mapping[str, Any],
    *,
    response_id: str,
    created_at: int,
    default_model: str | None = None,
    status: str = "in_progress",
    agent_reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The response to a request before its handler said anything.

    Args:
        request: as `parse_create` gave it.
        created_at: Unix time in seconds.
        default_model: for a request without `model` (B22).
        status: `queued` or `in_progress`.
        agent_reference: instead of the request's own.
    """
    source = jsonio.copy(dict(request))
    response: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": status,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": source.get("model") or default_model or "",
        "output": [],
        "usage": None,
        "conversation": _conversation(source.get("conversation")),
    }
    for field, default in _DEFAULTS.items():
        value = source.get(field)
        response[field] = jsonio.copy(default) if value is None else value
    for field in _NULLABLE:
        response[field] = None if field in _NOT_ECHOED else source.get(field)
    _normalise(response)
    reference = merge_agent_reference(agent_reference, source.get("agent_reference"))
    if reference is not None:
        response["agent_reference"] = reference
    return response


def fill_response(
    response: Mapping[str, Any],
    base: Mapping[str, Any],
    *,
    status: str | None = None,
    completed_at: int | None = None,
) -> dict[str, Any]:
    """A handler's snapshot, completed from the snapshot before it (W1, B21).

    The handler's values win, except for identity and flags; a null for a field that is never null is taken as absent.
    Items are completed, and what does not go with the status (B6) is taken out.

    Args:
        response: the handler's, of any completeness; not changed.
        base: a whole snapshot of the same response.
        status: the status that the event implies, over the handler's.
        completed_at: Unix time in seconds, for a completed response.

    Raises:
        InvalidEvent: a field of the wrong type, a broken output item, or something that is not JSON.
    """
    emitted = _checked(response)
    filled: dict[str, Any] = jsonio.copy(dict(base))
    for field, value in emitted.items():
        if field in _FIXED or (value is None and field in _NEVER_NULL) or field == "agent_reference":
            continue
        if field == "model" and not value:  # B22: a stream made of a request without one knows no default
            continue
        filled[field] = value
    if status is not None:
        filled["status"] = status
    reference = merge_agent_reference(base.get("agent_reference"), emitted.get("agent_reference"))
    if reference is not None:
        filled["agent_reference"] = reference
    _normalise(filled)
    filled["usage"] = usage(filled.get("usage"))
    filled["output"] = _output(filled, reference)
    return _settle(filled, completed_at)


def completed(snapshot: Mapping[str, Any], completed_at: int) -> dict[str, Any]:
    """The snapshot as a completed response."""
    return _settle({**jsonio.copy(dict(snapshot)), "status": "completed"}, completed_at)


def failed(
    snapshot: Mapping[str, Any],
    code: str = SERVER_ERROR,
    message: str = "The server had an error while processing your request.",
    shutdown_reason: str | None = None,
) -> dict[str, Any]:
    """The snapshot as a failed response; its output stays (§2).

    Args:
        shutdown_reason: `grace_exhausted`, `crash_recovery` or `attempts_exhausted`, when one of these is the cause.
    """
    information = {"shutdown_reason": shutdown_reason} if shutdown_reason else None
    whole = {**jsonio.copy(dict(snapshot)), "status": "failed", "error": failure(code, message, information)}
    return _settle(whole, None)


def cancelled(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """The snapshot as a cancelled response: no output (B6, B7)."""
    return _settle({**jsonio.copy(dict(snapshot)), "status": "cancelled"}, None)


def is_terminal(response: Mapping[str, Any]) -> bool:
    """Whether the response has ended."""
    return response.get("status") in TERMINAL_STATUSES


def usage(value: object) -> dict[str, Any] | None:
    """Token counts with all their keys (W2); None for none. A missing total is the sum."""
    if not isinstance(value, Mapping):
        return None
    whole: dict[str, Any] = dict(value)
    whole["input_tokens"] = _count(whole.get("input_tokens"))
    whole["output_tokens"] = _count(whole.get("output_tokens"))
    if whole.get("total_tokens") is None:
        whole["total_tokens"] = whole["input_tokens"] + whole["output_tokens"]
    whole["input_tokens_details"] = _counts(whole.get("input_tokens_details"), ("cached_tokens", "cache_write_tokens"))
    whole["output_tokens_details"] = _counts(whole.get("output_tokens_details"), ("reasoning_tokens",))
    order = (
        "input_tokens",
        "input_tokens_details",
        "output_tokens",
        "output_tokens_details",
        "total_tokens",
    )
    return {**{key: whole.pop(key) for key in order}, **whole}


def strip_internal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A response, item or event without `internal_metadata` on the response and its items (R12)."""
    kept = {key: part for key, part in value.items() if key != INTERNAL_METADATA}
    if isinstance(kept.get("output"), list):
        kept["output"] = [strip_internal(item) if isinstance(item, dict) else item for item in kept["output"]]
    for field in ("response", "item"):
        if isinstance(kept.get(field), dict):
            kept[field] = strip_internal(kept[field])
    return kept


def _checked(emitted: Mapping[str, Any]) -> dict[str, Any]:
    try:
        whole: dict[str, Any] = jsonio.copy(dict(emitted))
    except jsonio.NotJson as error:
        raise InvalidEvent(f"response: not JSON: {error}") from error
    for field, kind in _EMITTED_TYPES.items():
        value = whole.get(field)
        if value is not None and not isinstance(value, kind):
            raise InvalidEvent(f"response: {field} is not {kind.__name__} but {type(value).__name__}")
    if whole.get("status") not in STATUSES | {None}:
        raise InvalidEvent(f"response: unknown status {whole['status']!r}")
    if not all(isinstance(item, dict) for item in whole.get("output") or ()):
        raise InvalidEvent("response: an output item is not an object")
    return whole


def _settle(response: dict[str, Any], completed_at: int | None) -> dict[str, Any]:
    status = response["status"]
    response["completed_at"] = (
        (completed_at if completed_at is not None else response.get("completed_at")) if status == "completed" else None
    )
    if status != "failed":
        response["error"] = None
    elif not isinstance(response.get("error"), Mapping):
        response["error"] = failure(SERVER_ERROR, "The server had an error while processing your request.")
    else:
        response["error"] = {"code": SERVER_ERROR, "message": "", **response["error"]}
    if status != "incomplete":
        response["incomplete_details"] = None
    if status == "cancelled":
        response["output"] = []
    return response


def _output(response: Mapping[str, Any], agent_reference: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    status = "completed" if response["status"] == "completed" else "in_progress"
    return [complete_item(item, response["id"], agent_reference, status=status) for item in response["output"]]


def _normalise(response: dict[str, Any]) -> None:
    response["tools"] = [_echoed_tool(tool) for tool in response["tools"]]
    response["text"] = _text(response["text"])
    if isinstance(response["reasoning"], Mapping):
        response["reasoning"] = {"effort": None, "summary": None, **response["reasoning"]}


def _text(text: Any) -> dict[str, Any]:
    whole = dict(text) if isinstance(text, Mapping) else {}
    form = whole.get("format")
    if not isinstance(form, Mapping):
        whole["format"] = {"type": "text"}
    elif form.get("type") == "json_schema":
        whole["format"] = {"description": None, "strict": None, **form}
    return whole


def _echoed_tool(tool: Any) -> Any:
    if not isinstance(tool, Mapping):
        return tool
    if tool.get("type") == "function":
        return {**tool, **{key: tool.get(key) for key in ("description", "parameters", "strict")}}
    if tool.get("type") == "mcp":
        return _without_secrets(tool)
    return dict(tool)


def _without_secrets(tool: Mapping[str, Any]) -> dict[str, Any]:
    # The echo is stored and readable for as long as the response is; credentials are for the handler only.
    echoed = {key: value for key, value in tool.items() if key != "authorization"}
    if isinstance(echoed.get("headers"), Mapping):
        echoed["headers"] = dict.fromkeys(echoed["headers"], REDACTED)
    return echoed


def _conversation(value: object) -> dict[str, Any] | None:
    if isinstance(value, str):
        return {"id": value}
    if isinstance(value, Mapping):
        return {"id": value.get("id")}
    return None


def _counts(value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    given = dict(value) if isinstance(value, Mapping) else {}
    return {**given, **{key: _count(given.get(key)) for key in keys}}


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
