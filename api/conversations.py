"""The endpoints of conversations, and of requests that no handler runs; `Endpoints` lets the requests in.

An id of a conversation or item is whatever the path says: one that leads nowhere is not found, in whatever way.
"""

from starlette.requests import Request
from starlette.responses import Response

from api.incoming import body_of, client_headers_of, principal_of, query_of
from api.limits import check_items
from api.reply import Reply
from api.settings import ApiSettings
from protocol.conversations import parse_metadata, parse_new_conversation, parse_new_items
from protocol.requests import parse_create, parse_list_query
from resilience import conversations
from resilience.compaction import compact
from resilience.engine import Call, Engine
from resilience.token_count import count_input_tokens


async def create(settings: ApiSettings, engine: Engine, request: Request, reply: Reply) -> Response:
    """`POST /conversations`."""
    new = parse_new_conversation(await body_of(request, settings.max_body_bytes))
    return reply.json(await conversations.create(engine.runtime, principal_of(request), new))


async def get(engine: Engine, request: Request, reply: Reply) -> Response:
    """`GET /conversations/{conversation_id}`."""
    return reply.json(await conversations.get(engine.runtime, principal_of(request), _conversation(request)))


async def update(settings: ApiSettings, engine: Engine, request: Request, reply: Reply) -> Response:
    """`POST /conversations/{conversation_id}`."""
    metadata = parse_metadata(await body_of(request, settings.max_body_bytes))
    principal, conversation_id = principal_of(request), _conversation(request)
    return reply.json(await conversations.update(engine.runtime, principal, conversation_id, metadata))


async def delete(engine: Engine, request: Request, reply: Reply) -> Response:
    """`DELETE /conversations/{conversation_id}`."""
    return reply.json(await conversations.delete(engine.runtime, principal_of(request), _conversation(request)))


async def create_items(settings: ApiSettings, engine: Engine, request: Request, reply: Reply) -> Response:
    """`POST /conversations/{conversation_id}/items`."""
    given = parse_new_items(await body_of(request, settings.max_body_bytes))
    principal, conversation_id = principal_of(request), _conversation(request)
    return reply.json(await conversations.add_items(engine.runtime, principal, conversation_id, given))


async def list_items(engine: Engine, request: Request, reply: Reply) -> Response:
    """`GET /conversations/{conversation_id}/items`, with `limit`, `order` and `after`."""
    asked = request.query_params
    query = parse_list_query(asked.get("limit"), asked.get("order"), asked.get("after"))
    principal, conversation_id = principal_of(request), _conversation(request)
    return reply.json(await conversations.list_items(engine.runtime, principal, conversation_id, query))


async def get_item(engine: Engine, request: Request, reply: Reply) -> Response:
    """`GET /conversations/{conversation_id}/items/{item_id}`."""
    principal, conversation_id = principal_of(request), _conversation(request)
    return reply.json(await conversations.get_item(engine.runtime, principal, conversation_id, _item(request)))


async def delete_item(engine: Engine, request: Request, reply: Reply) -> Response:
    """`DELETE /conversations/{conversation_id}/items/{item_id}`."""
    principal, conversation_id = principal_of(request), _conversation(request)
    return reply.json(await conversations.delete_item(engine.runtime, principal, conversation_id, _item(request)))


async def count_tokens(settings: ApiSettings, engine: Engine, request: Request, reply: Reply) -> Response:
    """`POST /responses/input_tokens`."""
    return reply.json(await count_input_tokens(engine.runtime, await _call(settings, request)))


async def compact_items(settings: ApiSettings, engine: Engine, request: Request, reply: Reply) -> Response:
    """`POST /responses/compact`."""
    return reply.json(await compact(engine.runtime, await _call(settings, request)))


def _conversation(request: Request) -> str:
    return str(request.path_params.get("conversation_id"))


def _item(request: Request) -> str:
    return str(request.path_params.get("item_id"))


async def _call(settings: ApiSettings, request: Request) -> Call:
    body = parse_create(await body_of(request, settings.max_body_bytes))
    check_items(body, settings.max_input_items)
    return Call(
        request=body,
        principal=principal_of(request),
        client_headers=client_headers_of(request),
        query_parameters=query_of(request),
    )
