"""Requests: from bytes and query strings to values the engine can rely on, or to a 400 that says what is wrong.

Known fields, items and tools are checked; everything unknown is kept and passed on (W10). Nothing is filled in: a
handler sees what the client sent. The only changes: `agent_reference` becomes an object (B21), `internal_metadata` is
dropped (R12), and 20.0 becomes 20 where an integer is meant.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import Field, Tag, TypeAdapter, ValidationError

from protocol import jsonio, references
from protocol.errors import InvalidRequest, UnknownParameter, UnsupportedParameter
from protocol.ids import check_response_id
from protocol.items import INTERNAL_METADATA, ListQuery
from protocol.jsonio import MAX_VALUES
from protocol.request_faults import MAX_INTEGER, WHOLE, by_json_type, fault, faults_of, refusal
from protocol.request_items import Input
from protocol.request_tools import MAX_TOOLS, Text, Tool, ToolChoice

MAX_LIST_LIMIT = 100

_Object = dict[str, Any]
_Filled = Annotated[str, Field(min_length=1)]
_ConversationId = Annotated[str, Field(min_length=1, max_length=512)]
"""A client may choose it freely; it is part of every row of the conversation."""

_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Summary = Literal["auto", "concise", "detailed"]
_Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class _ReasoningOptions(TypedDict, total=False):
    effort: _Effort | None
    summary: _Summary | None
    generate_summary: _Summary | None
    context: Literal["auto", "current_turn", "all_turns"] | None
    mode: str | None


class _StreamOptions(TypedDict, total=False):
    include_obfuscation: bool | None


class _Identified(TypedDict):
    id: _Filled


class _ConversationObject(TypedDict):
    id: _ConversationId


class _Agent(TypedDict):
    name: _Filled
    type: NotRequired[Literal["agent_reference"] | None]
    version: NotRequired[str | None]


_Conversation = Annotated[
    Annotated[_ConversationId, Tag("<string>")]
    | Annotated[_ConversationObject, Tag("<object>")]
    | Annotated[None, Tag("<null>")],
    by_json_type(string=str, object=dict, null=type(None)),
]
_AgentReference = Annotated[
    Annotated[_Filled, Tag("<string>")] | Annotated[_Agent, Tag("<object>")] | Annotated[None, Tag("<null>")],
    by_json_type(string=str, object=dict, null=type(None)),
]
_Input = Annotated[
    Annotated[Input, Tag("<given>")] | Annotated[None, Tag("<null>")],
    by_json_type(null=type(None), given=object),
]


class _CreateResponse(TypedDict, total=False):
    access_programs: _Object | None
    agent_reference: _AgentReference
    background: bool | None
    background_options: _Object | None
    context_management: list[_Object] | None
    conversation: _Conversation
    frequency_penalty: _Penalty | None
    image: _Object | None
    include: list[_Include] | None
    input: _Input
    instructions: str | None
    max_output_tokens: Annotated[int, Field(ge=16, le=MAX_INTEGER), WHOLE] | None
    max_tool_calls: Annotated[int, Field(ge=0, le=MAX_INTEGER), WHOLE] | None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)] | None
    model: str | None
    moderation: _Object | None
    parallel_tool_calls: bool | None
    presence_penalty: _Penalty | None
    previous_response_id: str | None
    prompt: _Identified | None
    prompt_cache_key: str | None
    prompt_cache_options: _Object | None
    prompt_cache_retention: Literal["in_memory", "24h"] | None
    reasoning: _ReasoningOptions | None
    safety_identifier: Annotated[str, Field(max_length=64)] | None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None
    store: bool | None
    stream: bool | None
    stream_options: _StreamOptions | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    text: Text | None
    tool_choice: ToolChoice
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    truncation: Literal["auto", "disabled"] | None
    user: str | None


VALIDATOR: TypeAdapter[_CreateResponse] = TypeAdapter(_CreateResponse)
"""Checks each field of a request by itself; what fields may not do together is checked by `parse_create`."""

_INTEGERS = frozenset({"max_output_tokens", "max_tool_calls", "top_logprobs"})
_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
# Past any sequence number and limit; int() itself refuses texts of some thousand digits.
_HUGE = 10**18
_MOST_DIGITS = 18


@dataclass(frozen=True)
class Flags:
    """The three flags that decide a request's row, with their defaults."""

    store: bool = True
    background: bool = False
    stream: bool = False


def parse_create(body: bytes) -> dict[str, Any]:
    """The body of `POST /responses`: a JSON object, typed as `protocol.models.CreateResponse`.

    Raises:
        InvalidRequest: every fault found, in `details` (B29, W11).
        UnknownParameter: `conversation_id`.
        UnsupportedParameter: `background` without `store` (C7).
        MalformedId: `previous_response_id` is none (B40).
    """
    request = json_object(body)
    if "conversation_id" in request:
        raise UnknownParameter("Unknown parameter: 'conversation_id'. Use 'conversation'.", param="conversation_id")
    try:
        VALIDATOR.validate_python(request, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise refusal(faults_of(found)) from error
    _check_together(request)
    _check_reach(request)
    for field in _INTEGERS & request.keys():
        if request[field] is not None:
            request[field] = int(request[field])
    reference = request.get("agent_reference")
    if isinstance(reference, str):
        reference = {"name": reference}
    if reference is not None:
        given = {name: value for name, value in reference.items() if value is not None}
        request["agent_reference"] = {**given, "type": "agent_reference"}
    _drop_internal(request)
    return request


def flags(request: Mapping[str, Any]) -> Flags:
    """The flags of a request; a null is the default."""
    given = {name: request.get(name) for name in ("store", "background", "stream")}
    return Flags(**{name: value for name, value in given.items() if value is not None})


def conversation_id(request: Mapping[str, Any]) -> str | None:
    """The id of the request's conversation, however it was given."""
    conversation = request.get("conversation")
    if isinstance(conversation, Mapping):
        conversation = conversation.get("id")
    return conversation if isinstance(conversation, str) else None


def parse_starting_after(value: str | None) -> int:
    """The query parameter `starting_after`: events after this sequence number are wanted; -1 is all (B4).

    Raises:
        InvalidRequest: not an integer, or below -1.
    """
    if value is None:
        return -1
    number = _integer(value)
    if number is None or number < -1:
        raise _bad_query("starting_after", "an integer of at least -1")
    return number


def parse_list_query(
    limit: str | None = None,
    order: str | None = None,
    after: str | None = None,
    before: str | None = None,
) -> ListQuery:
    """The query parameters of a list.

    Raises:
        InvalidRequest: `limit` is not within 1–100, or `order` neither `asc` nor `desc`.
    """
    number = ListQuery.limit if limit is None else _integer(limit)
    if number is None or not 1 <= number <= MAX_LIST_LIMIT:
        raise _bad_query("limit", f"an integer from 1 to {MAX_LIST_LIMIT}")
    if order is not None and order not in ("asc", "desc"):
        raise _bad_query("order", "'asc' or 'desc'")
    return ListQuery(number, "asc" if order == "asc" else "desc", after, before)


def json_object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise refusal([fault("The request body is empty; it must be a JSON object.")])
    try:
        value = jsonio.loads(body)
    except jsonio.NotJson as error:
        raise refusal([fault("The request body is not valid JSON.")]) from error
    if not isinstance(value, dict):
        raise refusal([fault("The request body must be a JSON object.")])
    if not jsonio.fits(value):
        raise refusal([fault("The request body is nested too deeply.")])
    # Each value but the first stands behind one of these.
    if sum(map(body.count, (b",", b"[", b"{"))) >= MAX_VALUES and _count(value) > MAX_VALUES:
        raise refusal([fault(f"The request body holds more than {MAX_VALUES} values.")])
    return value


def _count(value: Any) -> int:
    found, waiting = 1, [value]
    while waiting and found <= MAX_VALUES:
        inner = waiting.pop()
        parts = inner.values() if isinstance(inner, dict) else inner
        found += len(parts)
        waiting += [part for part in parts if isinstance(part, dict | list)]
    return found


def _check_together(request: Mapping[str, Any]) -> None:
    asked = flags(request)
    if asked.background and not asked.store:
        raise UnsupportedParameter("'background' requires 'store' to be true.", param="background")
    previous = request.get("previous_response_id")
    if previous is None:
        return
    check_response_id(previous, "previous_response_id")
    if request.get("conversation") is not None:
        raise InvalidRequest(
            "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Only one may be given.",
            param="previous_response_id",
            code="mutually_exclusive_parameters",
            details=[fault("Mutually exclusive with 'conversation'.", "$.previous_response_id")],
        )


def _check_reach(request: Mapping[str, Any]) -> None:
    items = request.get("input")
    reach = len(references.partitions(items)) if isinstance(items, list) else 0
    if reach > references.MAX_PARTITIONS:
        most = references.MAX_PARTITIONS
        message = f"The item references lead to {reach} chains of responses; at most {most} are allowed."
        raise refusal([fault(message, "$.input")])


def _drop_internal(request: dict[str, Any]) -> None:
    # R12: it is the handler's; a client can neither read nor plant it.
    request.pop(INTERNAL_METADATA, None)
    items = request.get("input")
    for item in items if isinstance(items, list) else ():
        item.pop(INTERNAL_METADATA, None)


def _integer(value: str) -> int | None:
    if not _INTEGER.fullmatch(value):
        return None
    digits = value.lstrip("-0") or "0"
    number = _HUGE if len(digits) > _MOST_DIGITS else int(digits)
    return -number if value.startswith("-") else number


def _bad_query(name: str, expected: str) -> InvalidRequest:
    message = f"Invalid value for '{name}': expected {expected}."
    return InvalidRequest(message, param=name, details=[fault(message, f"$.{name}")])
