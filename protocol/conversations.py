"""The conversations resource on the wire: what its requests may hold, and the objects that answer them.

A conversation is `{id, object, created_at, metadata}`; its items look as in a response.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from pydantic import Field, TypeAdapter, ValidationError

from protocol import ids
from protocol.errors import INVALID_REQUEST, ApiError
from protocol.items import INTERNAL_METADATA, input_items, type_of_input
from protocol.request_faults import faults_of, refusal
from protocol.request_items import Item
from protocol.requests import json_object

MAX_ITEMS_AT_ONCE = 20
"""Items that one request may put into a conversation."""

_Key = Annotated[str, Field(max_length=64)]
_Value = Annotated[str, Field(max_length=512)]
_Metadata = Annotated[dict[_Key, _Value], Field(max_length=16)]


class _CreateConversation(TypedDict, total=False):
    items: Annotated[list[Item], Field(max_length=MAX_ITEMS_AT_ONCE)] | None
    metadata: _Metadata | None


class _UpdateConversation(TypedDict):
    metadata: _Metadata | None


class _CreateItems(TypedDict):
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS_AT_ONCE)]


CREATE: TypeAdapter[_CreateConversation] = TypeAdapter(_CreateConversation)
UPDATE: TypeAdapter[_UpdateConversation] = TypeAdapter(_UpdateConversation)
CREATE_ITEMS: TypeAdapter[_CreateItems] = TypeAdapter(_CreateItems)


class ConversationItemNotFound(ApiError):
    """The conversation has no such item."""

    status = 404
    type = INVALID_REQUEST
    default_param = "item_id"

    def __init__(self, item_id: str | None = None, *, param: str | None = None) -> None:
        super().__init__(None if item_id is None else f"Item with id '{item_id}' not found.", param=param)


@dataclass(frozen=True, slots=True)
class NewConversation:
    """What a conversation begins with."""

    items: list[dict[str, Any]]
    metadata: dict[str, str]


def parse_new_conversation(body: bytes) -> NewConversation:
    """The body of `POST /conversations`.

    Raises:
        InvalidRequest: every fault found, in `details` (B29).
    """
    request = _validated(CREATE, body)
    return NewConversation(request.get("items") or [], request.get("metadata") or {})


def parse_metadata(body: bytes) -> dict[str, str]:
    """The body of `POST /conversations/{id}`: the metadata that take the place of those before.

    Raises:
        InvalidRequest: every fault found, in `details` (B29).
    """
    metadata: dict[str, str] = _validated(UPDATE, body)["metadata"] or {}
    return metadata


def parse_new_items(body: bytes) -> list[dict[str, Any]]:
    """The body of `POST /conversations/{id}/items`.

    Raises:
        InvalidRequest: every fault found, in `details` (B29).
    """
    items: list[dict[str, Any]] = _validated(CREATE_ITEMS, body)["items"]
    return items


def conversation_object(conversation_id: str, created_at: int, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The answer that shows a conversation; `created_at` is Unix time in seconds."""
    return {
        "id": conversation_id,
        "object": "conversation",
        "created_at": created_at,
        "metadata": dict(metadata),
    }


def deleted_object(conversation_id: str) -> dict[str, Any]:
    """The answer to a deletion."""
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


def list_object(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of these items as one page, in this order."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": False,
    }


def numbered(items: Sequence[Mapping[str, Any]], partition: str) -> list[dict[str, Any]]:
    """Items as a conversation keeps them: each with a new id in that partition, whatever id it came with.

    So every id stands for one item of a conversation, and says where it lies.
    """
    without_ids = [
        {**{name: part for name, part in item.items() if name not in ("id", INTERNAL_METADATA)}, "type": kind}
        for item in items
        for kind in (type_of_input(item),)
    ]
    return input_items({"input": without_ids}, ids.new_response_id(partition))


def _validated[T](adapter: TypeAdapter[T], body: bytes) -> dict[str, Any]:
    request = json_object(body)
    try:
        adapter.validate_python(request, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise refusal(faults_of(found)) from error
    return request
