"""What the local host does with requests and responses, over a real app on the real runtime."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.host import APPS, FunctionHost

WEB = APPS / "web"


class Trace:
    """What the app wrote about its requests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clear()

    def clear(self) -> None:
        self.path.write_text("")

    async def shows(self, host: FunctionHost, text: str, seconds: float = 20.0) -> None:
        await host.until(lambda: text in self.path.read_text(), seconds, f"to trace {text!r}")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return Trace(tmp_path_factory.mktemp("devhost") / "trace")


@pytest.fixture(scope="module")
def host(trace: Trace) -> Iterator[FunctionHost]:
    with FunctionHost.start_blocking(WEB, {"TRACE_FILE": str(trace.path)}, "--only", "http") as running:
        yield running


@pytest.fixture
async def client(host: FunctionHost) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=host.base_url, timeout=30) as each:
        yield each


async def test_path_and_query_parameters_reach_the_function(client: httpx.AsyncClient) -> None:
    answer = await client.put("/items/a%20b%2Fc/parts/42?x=1&y=a%26b")
    assert answer.json() == {
        "method": "PUT",
        "path": {"name": "a b/c", "number": "42"},
        "query": {"x": "1", "y": "a&b"},
    }


async def test_a_literal_route_wins_over_a_parameter(client: httpx.AsyncClient) -> None:
    assert (await client.get("/items/special")).json() == {"path": "special"}
    assert (await client.get("/items/other")).json() == {"path": {"name": "other"}}


async def test_an_unknown_path_is_404_in_json(client: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/items/a/parts/no-number", "/docs", "/openapi.json"):
        answer = await client.get(path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])


async def test_a_wrong_method_is_405_and_names_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/items/a/parts/1")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PUT")


async def test_a_small_body_comes_back_byte_for_byte(client: httpx.AsyncClient) -> None:
    body = bytes(range(256))
    answer = await client.post("/echo", content=body, headers={"content-type": "application/x-bytes"})
    assert (answer.content, answer.headers["content-type"]) == (body, "application/x-bytes")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_streams_through(client: httpx.AsyncClient, chunked: bool) -> None:
    block = bytes(range(256)) * 256

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield block

    answer = await client.post("/echo", content=blocks() if chunked else block * 64)
    assert answer.content == block * 64


def test_a_body_over_the_limit_is_413_before_it_is_sent(host: FunctionHost) -> None:
    with closing(socket.create_connection(("127.0.0.1", host.port), timeout=10)) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 104857601\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_waits_for_leave_to_send_gets_it(host: FunctionHost) -> None:
    with closing(socket.create_connection(("127.0.0.1", host.port), timeout=10)) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ok")
        answer = b""
        while not answer.endswith(b"\r\n\r\nok"):
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_the_invocation_id_is_the_hosts_own(client: httpx.AsyncClient) -> None:
    answer = await client.post("/echo", headers={"x-ms-invocation-id": "forged", "x-mine": "kept"})
    assert answer.headers["seen-x-mine"] == "kept"
    assert len(answer.headers["seen-x-ms-invocation-id"]) == 36


async def test_events_arrive_one_by_one_while_they_are_produced(client: httpx.AsyncClient) -> None:
    lags = []
    async with client.stream("GET", "/ticks/4/250") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["connection"] == "keep-alive"
        async for chunk in answer.aiter_raw():
            assert chunk.count(b"data:") == 1
            lags.append(time.time() - float(chunk.removeprefix(b"data: ")))
    assert len(lags) == 4
    # Behind a buffer each but the last would come after the next was produced; a busy machine delays one or another.
    assert min(lags[:-1]) < 0.25


async def test_a_client_that_leaves_a_stream_ends_its_generator(
    client: httpx.AsyncClient, host: FunctionHost, trace: Trace
) -> None:
    trace.clear()
    async with client.stream("GET", "/ticks/1000/50") as answer:
        await anext(answer.aiter_raw())
    await trace.shows(host, "stream cancelled after")


async def test_a_client_that_leaves_a_waiting_handler_is_noticed(
    client: httpx.AsyncClient, host: FunctionHost, trace: Trace
) -> None:
    trace.clear()
    request = asyncio.create_task(client.post("/wait", content=b"body"))
    await trace.shows(host, "waiting")
    request.cancel()
    await trace.shows(host, "client left")


async def test_a_stream_that_breaks_off_does_not_look_complete(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/broken") as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"data: first\n\n"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(chunks)


@pytest.mark.parametrize("kind", ["ordinary", "base"])
async def test_a_handler_that_raises_is_500_and_logged(
    client: httpx.AsyncClient, host: FunctionHost, kind: str
) -> None:
    assert (await client.get(f"/raise/{kind}")).status_code == 500
    await host.wait_for_log(f"{kind}")


async def test_many_requests_at_once_each_get_their_own_answer(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.get(f"/items/{n}") for n in range(100)))
    assert [answer.json()["path"]["name"] for answer in answers] == [str(n) for n in range(100)]


async def test_the_host_has_a_page_and_a_status(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).headers["content-type"].startswith("text/plain")
    assert (await client.get("/admin/host/status")).json()["state"] == "Running"


async def test_admin_runs_no_http_or_unknown_function(client: httpx.AsyncClient) -> None:
    for name in ("plain", "unused", "nothing"):
        assert (await client.post(f"/admin/functions/{name}", json={"input": ""})).status_code == 404


async def test_the_page_can_be_switched_off_and_silence_ends_responses(trace: Trace) -> None:
    environment = {"AzureWebJobsDisableHomepage": "true", "TRACE_FILE": str(trace.path)}
    # Long enough for the first byte of an answer on a busy machine.
    arguments = ("--only", "http", "--idle-timeout", "3", "--body-limit", "100000")
    async with (
        await FunctionHost.start(WEB, environment, *arguments) as host,
        httpx.AsyncClient(base_url=host.base_url, timeout=30) as client,
    ):
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/wait?seconds=20")).status_code == 504
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/ticks/2/20000")
        # More than the limit, of a length that nobody announced.
        answer = await client.post("/echo", content=_endless())
        assert answer.status_code == 413


async def _endless() -> AsyncIterator[bytes]:
    for _ in range(64):
        yield bytes(4096)
