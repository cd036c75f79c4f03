"""The description of the API, as an OpenAPI 3.1 document.

The schemas come from `protocol.openapi_schemas`; which answers an operation has comes from the errors that it may
raise. An operation's name is that of its function in the function app, which has a second one of the name `…_bare`
for the path without `/v1`; tests hold the two together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from protocol import errors
from protocol.conversations import ConversationItemNotFound
from protocol.items import ListQuery
from protocol.openapi_schemas import RESPONSE_ID, Schema, components, reference
from protocol.requests import MAX_LIST_LIMIT

VERSION_PREFIX = "/v1"
BARE = "_bare"

type Errors = tuple[type[errors.ApiError], ...]

_ALWAYS: Errors = (errors.ServerError,)
_GUARDED: Errors = (errors.AuthenticationFailed, errors.Forbidden, errors.AccessNotConfigured)
_STORED: Errors = (*_GUARDED, errors.MalformedId, errors.ServiceUnavailable)
_ONE = "/responses/{response_id}"


@dataclass(frozen=True)
class Operation:
    """What can be asked of the server.

    Attributes:
        name: of its function.
        path: without the version.
        answer: Name of the schema of its JSON answer.
        errors: What it may be refused with, or fail with.
        parameters: of path, query and headers, as OpenAPI writes them.
        body: Name of the schema of its request body.
        streams: Whether it may answer with server-sent events.
        prefixes: What stands in front of the path; the first belongs to the function of just this name.
    """

    name: str
    method: str
    path: str
    summary: str
    answer: str | None
    errors: Errors = ()
    parameters: tuple[Schema, ...] = ()
    body: str | None = None
    streams: bool = False
    prefixes: tuple[str, ...] = (VERSION_PREFIX, "")

    def functions(self) -> Iterable[tuple[str, str]]:
        """The functions that answer it, each with its path."""
        for prefix, suffix in zip(self.prefixes, ("", BARE), strict=False):
            yield self.name + suffix, prefix + self.path


def _query(name: str, description: str, **schema: Any) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_RESPONSE_ID: Schema = {
    "name": "response_id",
    "in": "path",
    "required": True,
    "description": "Of the response.",
    "schema": {"type": "string", "pattern": RESPONSE_ID},
}

_IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body make one response, however often they are sent.",
    "schema": {"type": "string", "maxLength": 255},
}


def _path_id(name: str, description: str) -> Schema:
    schema = {"type": "string", "pattern": "^[0-9A-Za-z_-]{1,256}$"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _conversation(name: str, method: str, path: str, summary: str, answer: str, **more: Any) -> Operation:
    """An operation on one conversation, or on its items."""
    item = () if "item_id" not in path else (_path_id("item_id", "Of the item."),)
    refusals: Errors = (errors.ConversationNotFound, *more.pop("errors", ()), *_GUARDED, errors.ServiceUnavailable)
    if "body" in more:
        refusals = (errors.InvalidRequest, errors.PayloadTooLarge, *refusals)
    if item:
        refusals = (ConversationItemNotFound, *refusals)
    parameters = (_path_id("conversation_id", "Of the conversation."), *item, *more.pop("parameters", ()))
    return Operation(
        name, method, f"/conversations/{{conversation_id}}{path}", summary, answer, refusals, parameters, **more
    )


_CONVERSATIONS = (
    Operation(
        name="create_conversation",
        method="post",
        path="/conversations",
        summary="Create a conversation",
        answer="Conversation",
        errors=(
            errors.InvalidRequest,
            errors.PayloadTooLarge,
            ConversationItemNotFound,
            *_GUARDED,
            errors.ServiceUnavailable,
        ),
        body="CreateConversationParam",
    ),
    _conversation("get_conversation", "get", "", "Read a conversation", "Conversation"),
    _conversation(
        "update_conversation",
        "post",
        "",
        "Give a conversation other metadata",
        "Conversation",
        body="UpdateConversationParam",
    ),
    _conversation(
        "delete_conversation",
        "delete",
        "",
        "Delete a conversation, but not its responses",
        "DeletedConversation",
        errors=(errors.ConversationLocked,),
    ),
    _conversation(
        "create_conversation_items",
        "post",
        "/items",
        "Put items into a conversation",
        "ConversationItemList",
        errors=(ConversationItemNotFound,),
        body="CreateItemsParam",
    ),
    _conversation(
        "list_conversation_items",
        "get",
        "/items",
        "List the items of a conversation",
        "ConversationItemList",
        errors=(errors.InvalidRequest,),
        parameters=(
            _query(
                "limit", "At most so many.", type="integer", minimum=1, maximum=MAX_LIST_LIMIT, default=ListQuery.limit
            ),
            _query("order", "Oldest or newest first.", enum=["asc", "desc"], default=ListQuery.order),
            _query("after", "Only those after the item of this id.", type="string"),
        ),
    ),
    _conversation("get_conversation_item", "get", "/items/{item_id}", "Read an item", "ConversationItem"),
    _conversation(
        "delete_conversation_item", "delete", "/items/{item_id}", "Take an item out of a conversation", "Conversation"
    ),
)
_UNRUN = tuple(
    Operation(
        name=name,
        method="post",
        path=f"/responses/{path}",
        summary=summary,
        answer=answer,
        errors=(
            errors.InvalidRequest,
            errors.HandlerRefused,
            errors.UnsupportedParameter,
            errors.UnknownParameter,
            errors.PreviousResponseNotFound,
            errors.ConversationNotFound,
            errors.PayloadTooLarge,
            *_STORED,
        ),
        body="CreateResponseParam",
    )
    for name, path, summary, answer in (
        ("count_input_tokens", "input_tokens", "Count the input tokens of a request", "InputTokens"),
        ("compact_items", "compact", "Make few items of a request's history and input", "CompactedResponse"),
    )
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="create_response",
        method="post",
        path="/responses",
        summary="Create a response",
        answer="Response",
        errors=(
            errors.InvalidRequest,
            errors.HandlerRefused,
            errors.UnsupportedParameter,
            errors.UnknownParameter,
            errors.PreviousResponseNotFound,
            errors.ConversationNotFound,
            errors.ConversationLocked,
            errors.ConversationForkNotSupported,
            errors.ConversationQueueFull,
            errors.IdempotencyKeyReused,
            errors.PayloadTooLarge,
            errors.RateLimitExceeded,
            *_STORED,
        ),
        parameters=(_IDEMPOTENCY_KEY,),
        body="CreateResponseParam",
        streams=True,
    ),
    Operation(
        name="get_response",
        method="get",
        path=_ONE,
        summary="Read a response, or replay its events",
        answer="Response",
        errors=(
            errors.InvalidRequest,
            errors.StreamUnavailable,
            errors.ResponseDeleted,
            errors.ResponseNotFound,
            *_STORED,
        ),
        parameters=(
            _RESPONSE_ID,
            _query("stream", "Whether to replay the events.", type="boolean", default=False),
            _query(
                "starting_after",
                "Of a replay: only the events after this sequence number.",
                type="integer",
                minimum=-1,
                default=-1,
            ),
        ),
        streams=True,
    ),
    Operation(
        name="delete_response",
        method="delete",
        path=_ONE,
        summary="Delete a response that has ended",
        answer="DeletedResponse",
        errors=(errors.CannotDeleteInFlight, errors.ResponseNotFound, *_STORED),
        parameters=(_RESPONSE_ID,),
    ),
    Operation(
        name="cancel_response",
        method="post",
        path=f"{_ONE}/cancel",
        summary="Cancel a background response",
        answer="Response",
        errors=(errors.CannotCancel, errors.ResponseNotFound, *_STORED),
        parameters=(_RESPONSE_ID,),
    ),
    Operation(
        name="list_input_items",
        method="get",
        path=f"{_ONE}/input_items",
        summary="List the input items of a response",
        answer="InputItemList",
        errors=(errors.InvalidRequest, errors.ResponseDeleted, errors.ResponseNotFound, *_STORED),
        parameters=(
            _RESPONSE_ID,
            _query(
                "limit",
                "At most so many.",
                type="integer",
                minimum=1,
                maximum=MAX_LIST_LIMIT,
                default=ListQuery.limit,
            ),
            _query("order", "Oldest or newest first.", enum=["asc", "desc"], default=ListQuery.order),
            _query("after", "Only those after the item of this id.", type="string"),
            _query("before", "Only those before the item of this id.", type="string"),
        ),
    ),
    *_UNRUN,
    *_CONVERSATIONS,
    Operation(
        name="openapi_document",
        method="get",
        path="/openapi.json",
        summary="This document",
        answer=None,
        errors=_GUARDED,
        prefixes=(VERSION_PREFIX,),
    ),
    Operation(name="healthz", method="get", path="/healthz", summary="Is it alive?", answer="Health", prefixes=("",)),
    Operation(
        name="readyz",
        method="get",
        path="/readyz",
        summary="Does its storage answer?",
        answer="Health",
        errors=(*_GUARDED, errors.ServiceUnavailable),
        prefixes=("",),
    ),
)
"""Everything that is served."""


@cache
def document(version: str) -> dict[str, Any]:
    """The document; made once, and not to be changed.

    Args:
        version: of the server.
    """
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        for name, path in operation.functions():
            paths.setdefault(path, {})[operation.method] = _described(operation, name)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Resilient Responses",
            "version": version,
            "description": "The Responses API, over storage that outlives its server.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components(), "headers": _HEADERS},
    }


def _described(operation: Operation, name: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": name,
        "summary": operation.summary,
        "parameters": [*operation.parameters],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(reference(operation.body))}
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    content = _json({"type": "object"} if operation.answer is None else reference(operation.answer))
    if operation.streams:
        content["text/event-stream"] = {"schema": reference("ServerSentEvent")}
    answers = {"200": _answer("Done.", content)}
    by_status: dict[int, list[type[errors.ApiError]]] = {}
    for error in (*operation.errors, *_ALWAYS):
        by_status.setdefault(error.status, []).append(error)
    for status, kinds in sorted(by_status.items()):
        described = " ".join(dict.fromkeys(_sentence(kind) for kind in kinds))
        answers[str(status)] = _answer(described, _json(reference("Error")), _MORE_HEADERS.get(status, ()))
    return answers


def _sentence(error: type[errors.ApiError]) -> str:
    text = (error.__doc__ or "").strip().partition("\n")[0]
    return f"`{error.default_code}`: {text}" if error.default_code else text


def _answer(description: str, content: Mapping[str, Any], more: tuple[str, ...] = ()) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in (*_ON_EVERY_ANSWER, *more)}
    return {"description": description, "headers": headers, "content": dict(content)}


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_MORE_HEADERS: dict[int, tuple[str, ...]] = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_ON_EVERY_ANSWER = ("x-request-id", "x-platform-server")
_HEADERS: dict[str, Any] = {
    "x-request-id": {
        "description": "The client's own, if it sent a short token, else a new one.",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 64},
    },
    "x-platform-server": {"description": "Which server this is.", "required": True, "schema": {"type": "string"}},
    "WWW-Authenticate": {
        "description": "How to authenticate.",
        "required": True,
        "schema": {"const": "Bearer"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
}
