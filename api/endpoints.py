"""The endpoints: each takes an HTTP request, makes one call of the engine, and gives the answer.

Every endpoint but `is_alive` and the preflight lets its request in through `_admitted`, and without that nobody sends
it: `principal_of` has no answer then. An id in the path is checked before anything else (B40), a body is read before
anything is started. Every answer has `x-request-id` and `x-platform-server`; every error body has the request's id too.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api import conversations
from api.access import announce
from api.incoming import (
    admit,
    body_of,
    client_headers_of,
    idempotency_key_of,
    principal_of,
    query_of,
    request_id_of,
    response_id_of,
    trace_headers_of,
    wants_stream,
)
from api.limits import RunLimits, check_items
from api.reply import Reply
from api.settings import ApiSettings
from api.version import VERSION
from protocol.errors import Forbidden, InvalidRequest, ServiceUnavailable
from protocol.openapi import document
from protocol.requests import flags, parse_create, parse_list_query, parse_starting_after
from resilience.engine import Call, Engine
from resilience.log_context import bound
from resilience.timeline import timeline_of

_log = logging.getLogger("api")

type Answer = Callable[[Engine, Request, Reply], Awaitable[Response]]


class Endpoints:
    """The HTTP endpoints over an engine.

    Args:
        engine: Gives this process's engine; called on the event loop, for each request.
        settings: of the HTTP side.
    """

    def __init__(self, engine: Callable[[], Engine], settings: ApiSettings | None = None) -> None:
        self._engine = engine
        self._settings = settings or ApiSettings()
        self._limits = RunLimits(self._settings)

    @property
    def answers_preflights(self) -> bool:
        """Whether web pages of other origins may read the answers, and their browsers have to be told so."""
        return self._settings.cors.is_on

    def announce(self) -> None:
        """Say in the log what an operator should know of who may come in."""
        announce(self._settings.access)

    async def create_response(self, request: Request) -> Response:
        """`POST /responses` (C1–C8)."""
        return await self._answer(request, self._create)

    async def get_response(self, request: Request) -> Response:
        """`GET /responses/{response_id}`: JSON, or events with `?stream=true[&starting_after=N]` (B2, B4, B5)."""
        return await self._answer(request, _get)

    async def cancel_response(self, request: Request) -> Response:
        """`POST /responses/{response_id}/cancel` (B1, B3, B12)."""
        return await self._answer(request, _cancel)

    async def delete_response(self, request: Request) -> Response:
        """`DELETE /responses/{response_id}`."""
        return await self._answer(request, _delete)

    async def list_input_items(self, request: Request) -> Response:
        """`GET /responses/{response_id}/input_items`, with `limit`, `order`, `after` and `before`."""
        return await self._answer(request, _input_items)

    async def get_timeline(self, request: Request) -> Response:
        """`GET /responses/{response_id}/timeline`: what the page draws; served only together with it."""
        return await self._answer(request, _timeline)

    async def count_input_tokens(self, request: Request) -> Response:
        """`POST /responses/input_tokens`: how long a request is, without running it."""
        return await self._answer(request, partial(conversations.count_tokens, self._settings))

    async def compact_items(self, request: Request) -> Response:
        """`POST /responses/compact`: few items in place of many."""
        return await self._answer(request, partial(conversations.compact_items, self._settings))

    async def create_conversation(self, request: Request) -> Response:
        """`POST /conversations`."""
        return await self._answer(request, partial(conversations.create, self._settings))

    async def get_conversation(self, request: Request) -> Response:
        """`GET /conversations/{conversation_id}`."""
        return await self._answer(request, conversations.get)

    async def update_conversation(self, request: Request) -> Response:
        """`POST /conversations/{conversation_id}`: other metadata."""
        return await self._answer(request, partial(conversations.update, self._settings))

    async def delete_conversation(self, request: Request) -> Response:
        """`DELETE /conversations/{conversation_id}`."""
        return await self._answer(request, conversations.delete)

    async def create_conversation_items(self, request: Request) -> Response:
        """`POST /conversations/{conversation_id}/items`."""
        return await self._answer(request, partial(conversations.create_items, self._settings))

    async def list_conversation_items(self, request: Request) -> Response:
        """`GET /conversations/{conversation_id}/items`, with `limit`, `order` and `after`."""
        return await self._answer(request, conversations.list_items)

    async def get_conversation_item(self, request: Request) -> Response:
        """`GET /conversations/{conversation_id}/items/{item_id}`."""
        return await self._answer(request, conversations.get_item)

    async def delete_conversation_item(self, request: Request) -> Response:
        """`DELETE /conversations/{conversation_id}/items/{item_id}`."""
        return await self._answer(request, conversations.delete_item)

    async def describe(self, request: Request) -> Response:
        """`GET /openapi.json`: the description of this API; touches nothing else."""
        return await self._admitted(request, _describe)

    async def is_ready(self, request: Request) -> Response:
        """`GET /readyz`: 200 if storage answers, else 503."""
        return await self._admitted(request, self._ready)

    async def is_alive(self, request: Request) -> Response:
        """`GET /healthz`: 200 as long as this process answers; touches nothing else, and is open to everybody."""
        return self._reply(request).json({"status": "ok"})

    async def preflight(self, request: Request) -> Response:
        """`OPTIONS` on any path: whether a web page may ask. Browsers send it without a key."""
        reply = self._reply(request)
        try:
            return reply.empty(self._settings.cors.preflight_headers(request))
        except Forbidden as error:
            return reply.error(error)

    def _reply(self, request: Request) -> Reply:
        return Reply(request_id_of(request), headers=self._settings.cors.headers(request))

    async def _admitted(self, request: Request, answer: Callable[[Request, Reply], Awaitable[Response]]) -> Response:
        """The entrance: the answer to a request that may come in, and whatever becomes of it as an answer."""
        reply = self._reply(request)
        try:
            with bound(request_id=reply.request_id):
                admit(request, self._settings.access)
                return await answer(request, reply)
        except ClientDisconnect:
            # Nobody reads this; the function has to answer all the same.
            return reply.error(InvalidRequest("The client went away before the end of its request."))
        except Exception as error:
            return reply.error(error)

    async def _answer(self, request: Request, answer: Answer) -> Response:
        async def ask(request: Request, reply: Reply) -> Response:
            engine = self._engine()
            reply.options = engine.runtime.app.options
            return await answer(engine, request, reply)

        return await self._admitted(request, ask)

    async def _ready(self, request: Request, reply: Reply) -> Response:
        try:
            await self._engine().ready()
        except Exception:
            _log.warning("this process is not ready", exc_info=True)
            return reply.error(ServiceUnavailable())
        return reply.json({"status": "ready"})

    async def _create(self, engine: Engine, request: Request, reply: Reply) -> Response:
        body = parse_create(await body_of(request, self._settings.max_body_bytes))
        check_items(body, self._settings.max_input_items)
        call = Call(
            request=body,
            principal=principal_of(request),
            client_headers=client_headers_of(request),
            query_parameters=query_of(request),
            idempotency_key=idempotency_key_of(request),
            trace_headers=trace_headers_of(request),
        )
        asked = flags(body)
        place = await self._limits.admit(engine, call.principal, background=asked.background)
        try:
            if asked.stream:
                return reply.stream(place.kept_by(await engine.create_stream(call)))
            made = await engine.create(call, request.is_disconnected)
        except BaseException:
            place.free()
            raise
        place.give_to(made["id"])
        return reply.json(made)


async def _describe(_request: Request, reply: Reply) -> Response:
    return reply.json(document(VERSION))


async def _get(engine: Engine, request: Request, reply: Reply) -> Response:
    response_id = response_id_of(request)
    if not wants_stream(request):
        return reply.json(await engine.get(principal_of(request), response_id))
    after = parse_starting_after(request.query_params.get("starting_after"))
    return reply.stream(await engine.replay(principal_of(request), response_id, after), after)


async def _cancel(engine: Engine, request: Request, reply: Reply) -> Response:
    return reply.json(await engine.cancel(principal_of(request), response_id_of(request)))


async def _delete(engine: Engine, request: Request, reply: Reply) -> Response:
    response_id = response_id_of(request)
    await engine.delete(principal_of(request), response_id)
    return reply.json({"id": response_id, "object": "response.deleted", "deleted": True})


async def _input_items(engine: Engine, request: Request, reply: Reply) -> Response:
    response_id = response_id_of(request)
    asked = request.query_params
    query = parse_list_query(asked.get("limit"), asked.get("order"), asked.get("after"), asked.get("before"))
    return reply.json(await engine.input_items(principal_of(request), response_id, query))


async def _timeline(engine: Engine, request: Request, reply: Reply) -> Response:
    return reply.json(await timeline_of(engine.runtime, principal_of(request), response_id_of(request)))
