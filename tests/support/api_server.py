"""The endpoints on a loopback port of this process, over storage in memory: everything real but Functions and Azure.

The app answers by the script that a test gives it; `runs` holds the contexts of the handler's entries. Every answer
that the client reads is judged (`tests.support.wire_judge`), so that each test of this server judges the wire too.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from api.endpoints import Endpoints
from api.settings import ApiSettings
from protocol import sse
from resilience import ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions, TextResponse
from resilience.engine import Engine
from resilience.options import EngineSettings
from storage.clock import SystemClock
from storage.connection import Storage, memory_storage
from storage.driver import WORK_QUEUE
from tests.support.wire_judge import WireJudge

START_SECONDS = 10.0
UNTIL_SECONDS = 10.0
POLL_SECONDS = 0.01

type Script = Callable[[ResponseEventStream, ResponseContext, asyncio.Event], AsyncIterator[dict[str, Any]]]

# What waits until nothing is left would wait for an idle ledger to be ended, however long that may rest.
SETTINGS = EngineSettings(eager_start=True, disconnect_poll_interval=0.05, cancel_grace=1.0, idle_end_after=3.0)


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = UNTIL_SECONDS) -> None:
    """Wait until `condition` holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(POLL_SECONDS)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The signals belong to pytest."""
        yield


@dataclass
class ApiServer:
    """A served engine; make one with `serving`, which raises at its end what the judge of its client found."""

    engine: Engine
    storage: Storage
    endpoints: Endpoints
    client: httpx.AsyncClient
    runs: list[ResponseContext]
    judge: WireJudge

    async def post(self, **body: Any) -> httpx.Response:
        """`POST /v1/responses`."""
        return await self.client.post("/v1/responses", json=body)

    async def events(self, **body: Any) -> list[dict[str, Any]]:
        """The events of a streamed response, to its end."""
        return events_in((await self.post(stream=True, **body)).content)

    async def get(self, response_id: str, **query: Any) -> httpx.Response:
        """`GET /v1/responses/{id}`."""
        return await self.client.get(f"/v1/responses/{response_id}", params=query)

    async def get_ended(self, response_id: str) -> dict[str, Any]:
        """The response once it has a terminal status."""
        found: dict[str, Any] = {}

        async def ended() -> bool:
            answer = await self.get(response_id)
            found.update(answer.json())
            return answer.status_code == 200 and found["status"] not in ("queued", "in_progress")

        await until(ended)
        return found

    async def run_messages(self) -> None:
        """Give the engine what lies in the work queue, as the queue function does."""
        while message := await self.storage.driver.receive_message(WORK_QUEUE, visibility=60):
            await self.engine.run_message(message.text)
            await self.storage.driver.delete_message(WORK_QUEUE, message.receipt)


def events_in(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream that was read to its end; its comments are passed over."""
    frames, rest = sse.split(body)
    assert rest == b""
    return [sse.decode(frame) for frame in frames if frame != sse.KEEP_ALIVE]


@contextlib.asynccontextmanager
async def serving(
    script: Script | None = None,
    *,
    options: ResponsesServerOptions | None = None,
    settings: EngineSettings = SETTINGS,
    api: ApiSettings | None = None,
    app: ResponsesApp | None = None,
) -> AsyncGenerator[ApiServer]:
    """Serve an app that plays `script`, or else says what it was told; or another app."""
    runs: list[ResponseContext] = []
    served = app or _scripted(script, options, runs)
    storage = memory_storage(SystemClock())
    engine = Engine(served, storage, settings)
    endpoints = Endpoints(lambda: engine, api)
    judge = WireJudge()
    async with _listening(endpoints) as url, httpx.AsyncClient(base_url=url, timeout=30, transport=judge) as client:
        try:
            yield ApiServer(engine, storage, endpoints, client, runs, judge)
        finally:
            await engine.close()
    judge.check()


def _scripted(
    script: Script | None, options: ResponsesServerOptions | None, runs: list[ResponseContext]
) -> ResponsesApp:
    app = ResponsesApp(options or ResponsesServerOptions(resilient_background=True))

    @app.response_handler
    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncGenerator[dict[str, Any]]:
        runs.append(context)
        if script is None:
            text = await context.get_input_text()
            async for event in TextResponse(context, request, text=[text[:2], text[2:]]):
                yield event
            return
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        async for event in script(stream, context, signal):
            yield event

    return app


@contextlib.asynccontextmanager
async def _listening(endpoints: Endpoints) -> AsyncGenerator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(starlette_app(endpoints), log_level="warning", lifespan="off", ws="none")
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            await until(lambda: server.started or task.done(), START_SECONDS)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await task


def starlette_app(endpoints: Endpoints) -> Starlette:
    """The endpoints under the same routes as the function app's."""
    routes = [Route("/healthz", endpoints.is_alive), Route("/readyz", endpoints.is_ready)]
    routes.append(Route("/v1/openapi.json", endpoints.describe))
    for prefix in ("/v1/responses", "/responses"):
        one = f"{prefix}/{{response_id}}"
        routes += [
            Route(prefix, endpoints.create_response, methods=["POST"]),
            Route(one, endpoints.get_response, methods=["GET"]),
            Route(one, endpoints.delete_response, methods=["DELETE"]),
            Route(f"{one}/cancel", endpoints.cancel_response, methods=["POST"]),
            Route(f"{one}/input_items", endpoints.list_input_items, methods=["GET"]),
            Route(f"{prefix}/input_tokens", endpoints.count_input_tokens, methods=["POST"]),
            Route(f"{prefix}/compact", endpoints.compact_items, methods=["POST"]),
        ]
    for prefix in ("/v1/conversations", "/conversations"):
        one = f"{prefix}/{{conversation_id}}"
        item = f"{one}/items/{{item_id}}"
        routes += [
            Route(prefix, endpoints.create_conversation, methods=["POST"]),
            Route(one, endpoints.get_conversation, methods=["GET"]),
            Route(one, endpoints.update_conversation, methods=["POST"]),
            Route(one, endpoints.delete_conversation, methods=["DELETE"]),
            Route(f"{one}/items", endpoints.create_conversation_items, methods=["POST"]),
            Route(f"{one}/items", endpoints.list_conversation_items, methods=["GET"]),
            Route(item, endpoints.get_conversation_item, methods=["GET"]),
            Route(item, endpoints.delete_conversation_item, methods=["DELETE"]),
        ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # a path with a slash too many is another path, as it is under the host
    return app


def queued(settings: EngineSettings = SETTINGS) -> EngineSettings:
    """Settings under which runs wait for the queue function."""
    return replace(settings, eager_start=False)
