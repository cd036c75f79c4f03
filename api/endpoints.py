"""The endpoints: each takes an HTTP request, makes one call of the engine, and gives the answer.

An id in the path is checked before anything else (B40), a body is read before anything is started. Every answer has
`x-request-id` and `x-platform-server`; every error body has the request's id too.
"""

import logging
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.incoming import (
    body_of,
    client_headers_of,
    idempotency_key_of,
    principal_of,
    query_of,
    request_id_of,
    response_id_of,
    wants_stream,
)
from api.reply import Reply
from api.settings import ApiSettings
from api.version import VERSION
from protocol.errors import InvalidRequest, ServiceUnavailable
from protocol.openapi import document
from protocol.requests import flags, parse_create, parse_list_query, parse_starting_after
from resilience.engine import Call, Engine

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

    async def describe(self, request: Request) -> Response:
        """`GET /openapi.json`: the description of this API; touches nothing else."""
        return Reply(request_id_of(request)).json(document(VERSION))

    async def is_ready(self, request: Request) -> Response:
        """`GET /readyz`: 200 if storage answers, else 503."""
        reply = Reply(request_id_of(request))
        try:
            await self._engine().ready()
        except Exception:
            _log.warning("this process is not ready", exc_info=True)
            return reply.error(ServiceUnavailable())
        return reply.json({"status": "ready"})

    async def is_alive(self, request: Request) -> Response:
        """`GET /healthz`: 200 as long as this process answers; touches nothing else."""
        return Reply(request_id_of(request)).json({"status": "ok"})

    async def _answer(self, request: Request, answer: Answer) -> Response:
        request_id = request_id_of(request)
        reply = Reply(request_id)
        try:
            engine = self._engine()
            reply = Reply(request_id, engine.runtime.app.options)
            return await answer(engine, request, reply)
        except ClientDisconnect:
            # Nobody reads this; the function has to answer all the same.
            return reply.error(InvalidRequest("The client went away before the end of its request."))
        except Exception as error:
            return reply.error(error)

    async def _create(self, engine: Engine, request: Request, reply: Reply) -> Response:
        body = parse_create(await body_of(request, self._settings.max_body_bytes))
        call = Call(
            request=body,
            principal=principal_of(request),
            client_headers=client_headers_of(request),
            query_parameters=query_of(request),
            idempotency_key=idempotency_key_of(request),
        )
        if flags(body).stream:
            return reply.stream(await engine.create_stream(call))
        return reply.json(await engine.create(call, request.is_disconnected))


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
