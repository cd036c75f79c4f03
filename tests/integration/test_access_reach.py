"""Nothing in a request makes the server connect to anywhere but its storage."""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest

from api.endpoints import Endpoints
from api.process import load_app
from protocol import ids
from resilience.engine import Engine
from resilience.options import EngineSettings
from storage.connection import StorageSettings, open_storage
from tests.support import hostile
from tests.support.api_server import starlette_app, until
from tests.support.azurite import AzuriteServer

PLACES = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_watched: list[tuple[str, Any]] | None = None
_hooked = threading.Event()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event in PLACES:
        _watched.append((event, arguments[:2] if event == "socket.getaddrinfo" else arguments[1]))


@contextmanager
def watching() -> Iterator[list[tuple[str, Any]]]:
    """Every address that this process connects to, or looks up, in whatever way and thread."""
    global _watched
    if not _hooked.is_set():
        sys.addaudithook(_note)  # there is no way to take one back
        _hooked.set()
    seen: list[tuple[str, Any]] = []
    _watched = seen
    try:
        yield seen
    finally:
        _watched = None


def elsewhere(seen: list[tuple[str, Any]], azurite: AzuriteServer) -> list[tuple[str, Any]]:
    """What was not the storage emulator."""
    ports = {azurite.blob_port, azurite.queue_port, azurite.table_port}
    return [(event, address) for event, address in seen if address[0] != "127.0.0.1" or address[1] not in ports]


@asynccontextmanager
async def shipped_in_process(environment: Mapping[str, str]) -> AsyncGenerator[tuple[Engine, httpx.AsyncClient]]:
    """The shipped agent over the emulator; the client reaches it without a connection."""
    engine = Engine(
        load_app("agent:app"),
        open_storage(StorageSettings.from_environment(environment)),
        EngineSettings(eager_start=True),
    )
    transport = httpx.ASGITransport(starlette_app(Endpoints(lambda: engine)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        try:
            yield engine, client
        finally:
            await engine.close()


@pytest.fixture
def bait() -> Iterator[tuple[str, list[object]]]:
    """A server's address, and who came."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, peer = listening.accept()
                except TimeoutError:
                    continue
                came.append(peer)
                connection.close()

        thread = threading.Thread(target=serve, name="bait")
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", came
        finally:
            stop.set()
            thread.join()


def baited(value: Any, url: str) -> Any:
    """The value with the address in place of every text that says nothing of its own."""
    if isinstance(value, dict):
        return {key: baited(part, url) for key, part in value.items()}
    if isinstance(value, list):
        return [baited(part, url) for part in value]
    return url if value in ("x", "") else value


def requests_for(address: str) -> Iterator[dict[str, Any]]:
    """Bodies with the address wherever a request may name one."""
    for number, url in enumerate(
        (f"http://{address}/x", f"https://{address}/x", f"//{address}/x", "file:///etc/passwd")
    ):
        parts = [part for part in baited(hostile.PARTS, url) if "input_" in part.get("type", "")]
        parts += [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_file", "file_url": url}]
        tools = [*baited(hostile.TOOLS, url), {"type": "mcp", "server_label": "s", "server_url": url}]
        items = [item for item in baited(hostile.ITEMS, url) if item.get("type") != "compaction"]
        yield {"input": [{"role": "user", "content": parts}], "tools": tools, "model": url, "instructions": url}
        yield {"input": [*items, {"type": "item_reference", "id": url}], "metadata": {"url": url}, "conversation": url}
        yield {"input": url, "agent_reference": {"type": "agent_reference", "name": url}, "url": url, "number": number}


MODES: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"store": False},
    {"background": True},
    {"background": True, "stream": True},
]


async def test_no_request_makes_the_server_connect_to_anywhere_but_its_storage(
    azurite: AzuriteServer,
    azurite_environment: Mapping[str, str],
    bait: tuple[str, list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    address, came = bait
    headers = dict.fromkeys(("x-forwarded-host", "referer", "x-client-callback", "forwarded"), f"http://{address}/x")
    headers |= {"traceparent": f"http://{address}", "webhook-url": f"http://{address}"}
    answered = set()
    async with shipped_in_process(azurite_environment) as (engine, client):
        with watching() as seen:
            for number, body in enumerate(requests_for(address)):
                flags = MODES[number % len(MODES)]
                query = {"callback": f"http://{address}/x"}
                answer = await client.post("/v1/responses", json={**body, **flags}, headers=headers, params=query)
                answered.add(answer.status_code)
                assert answer.status_code in (200, 400), answer.text
            for path in (f"http:%2F%2F{address}", ids.new_response_id(ids.new_partition())):
                for more in ("", "?stream=true", "/input_items"):
                    await client.get(f"/v1/responses/{path}{more}", headers=headers)
            await until(lambda: not engine.runtime.running, 60)
    assert 200 in answered
    assert seen, "the storage was reached without being seen: nothing is proven"
    assert elsewhere(seen, azurite) == []
    assert came == []


async def test_a_connection_elsewhere_is_noticed(azurite: AzuriteServer, bait: tuple[str, list[object]]) -> None:
    address, came = bait
    host, _, port = address.partition(":")
    for fetch in (
        lambda: asyncio.to_thread(socket.create_connection, (host, int(port))),
        lambda: asyncio.open_connection(host, int(port)),
    ):
        with watching() as seen:
            made: Any = await fetch()
            (made if isinstance(made, socket.socket) else made[1]).close()
        assert (("socket.connect", (host, int(port)))) in elsewhere(seen, azurite)
    await until(lambda: len(came) == 2)
    assert json.dumps(baited({"a": ["x", "y"]}, "u")) == '{"a": ["u", "y"]}'
