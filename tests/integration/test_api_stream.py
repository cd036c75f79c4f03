"""The body of a streamed answer: chunks, silence, breakage, and a client that goes away (W5, B17, B26, B28)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api.event_stream import EventStreamResponse
from protocol import sse
from protocol.errors import InvalidRequest
from resilience import ResponseContext, ResponseEventStream, ResponsesServerOptions
from storage.errors import StorageUnavailable
from tests.support.api_server import events_in, serving, starlette_app, until

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}


def frame(number: int, name: str = "response.output_text.delta") -> bytes:
    return sse.encode({"type": name, "sequence_number": number})


class Exchange:
    """One ASGI exchange, seen from the server's side: what was sent, and when the client leaves."""

    def __init__(self, body: bytes = b"") -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        self._requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    @property
    def chunks(self) -> list[bytes]:
        return [sent["body"] for sent in self.sent if sent["type"] == "http.response.body" and sent["body"]]

    async def receive(self) -> Message:
        if self._requests:
            return self._requests.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


class Source:
    """Frames that come when a test wants them to."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self.reads = 0
        self.interrupted = False
        self.closed = False

    async def __call__(self) -> AsyncGenerator[bytes]:
        try:
            while True:
                self.reads += 1
                try:
                    item = await self.frames.get()
                except asyncio.CancelledError:
                    self.interrupted = True
                    raise
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            self.closed = True


def answer(source: AsyncIterator[bytes], **changes: Any) -> EventStreamResponse:
    return EventStreamResponse(source, **{"keep_alive": None, "request_id": "req_1", "headers": {}, **changes})


async def test_first_frame_goes_out_at_once_and_each_is_one_chunk() -> None:
    source, exchange = Source(), Exchange()
    task = asyncio.create_task(answer(source())(SCOPE, exchange.receive, exchange.send))
    source.frames.put_nowait(frame(0))
    await until(lambda: exchange.chunks == [frame(0)])
    source.frames.put_nowait(frame(1))
    source.frames.put_nowait(frame(2, "response.completed"))
    await task
    assert exchange.chunks == [frame(0), frame(1), frame(2, "response.completed")]
    assert source.closed


async def test_silence_is_filled_with_comments_and_the_read_goes_on() -> None:
    source, exchange = Source(), Exchange()
    task = asyncio.create_task(answer(source(), keep_alive=0.02)(SCOPE, exchange.receive, exchange.send))
    await until(lambda: exchange.chunks.count(sse.KEEP_ALIVE) >= 3)
    assert (source.reads, source.interrupted) == (1, False)
    source.frames.put_nowait(frame(0))
    source.frames.put_nowait(None)
    await task
    assert [chunk for chunk in exchange.chunks if chunk != sse.KEEP_ALIVE] == [frame(0)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("inner detail"), "server_error"),
        (StorageUnavailable(), "service_unavailable"),
        (InvalidRequest("Not like this.", code="odd"), "odd"),
        (asyncio.CancelledError(), "server_error"),
    ],
)
async def test_stream_that_breaks_ends_with_one_error_event(
    error: BaseException, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, exchange = Source(), Exchange()
    for item in (frame(7), error):
        source.frames.put_nowait(item)
    await answer(source(), after=6)(SCOPE, exchange.receive, exchange.send)
    event = sse.decode(exchange.chunks[-1])
    assert (event["type"], event["sequence_number"], event["code"]) == ("error", 8, code)
    assert event["error"]["additionalInfo"] == {"request_id": "req_1"}
    assert b"inner detail" not in exchange.chunks[-1]
    assert exchange.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert "req_1" in caplog.text


async def test_stream_that_breaks_before_its_first_frame_goes_on_with_the_wanted_number() -> None:
    source, exchange = Source(), Exchange()
    source.frames.put_nowait(RuntimeError())
    await answer(source(), after=4)(SCOPE, exchange.receive, exchange.send)
    assert [sse.decode(chunk)["sequence_number"] for chunk in exchange.chunks] == [5]


async def test_nothing_follows_a_terminal_event() -> None:
    source, exchange = Source(), Exchange()
    for item in (frame(0, "response.completed"), RuntimeError()):
        source.frames.put_nowait(item)
    await answer(source())(SCOPE, exchange.receive, exchange.send)
    assert exchange.chunks == [frame(0, "response.completed")]
    assert source.closed


async def test_source_is_closed_when_the_client_leaves_while_it_is_silent() -> None:
    source, exchange = Source(), Exchange()
    task = asyncio.create_task(answer(source())(SCOPE, exchange.receive, exchange.send))
    await until(lambda: source.reads == 1)
    exchange.left.set()
    await task
    assert source.closed


async def test_source_is_closed_when_the_client_leaves_while_it_is_written_to() -> None:
    source, exchange = Source(), Exchange()
    blocked = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            blocked.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(answer(source())(SCOPE, exchange.receive, send))
    source.frames.put_nowait(frame(0))
    await blocked.wait()
    exchange.left.set()
    await task
    assert source.closed


async def test_source_is_closed_when_the_client_had_left_before_the_first_byte() -> None:
    source, exchange = Source(), Exchange()
    exchange.left.set()
    exchange._requests.clear()
    await answer(source())(SCOPE, exchange.receive, exchange.send)
    assert source.reads == 1
    assert source.closed


async def test_source_is_closed_when_writing_fails() -> None:
    source, exchange = Source(), Exchange()

    async def send(message: Message) -> None:
        raise OSError("connection lost")

    source.frames.put_nowait(frame(0))
    scope = {**SCOPE, "asgi": {"version": "3.0", "spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        await answer(source())(scope, exchange.receive, send)
    assert source.closed


@pytest.mark.parametrize("flags", [{}, {"background": True}, {"store": False}])
async def test_served_stream_is_kept_alive_and_written_frame_by_frame(flags: dict[str, bool]) -> None:
    options = ResponsesServerOptions(sse_keep_alive_interval_seconds=0.05, resilient_background=True)
    body = b'{"input":"x","stream":true%b}' % b"".join(
        b',"%b":%b' % (name.encode(), str(value).lower().encode()) for name, value in flags.items()
    )
    exchange = Exchange(body)

    async def silent(
        stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncIterator[dict[str, Any]]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        await until(lambda: exchange.chunks.count(sse.KEEP_ALIVE) >= 2)
        for event in stream.output_item_message("Hello"):
            yield event
        yield stream.emit_completed()

    async with serving(silent, options=options) as server:
        scope = {
            **SCOPE,
            "method": "POST",
            "path": "/v1/responses",
            "raw_path": b"/v1/responses",
            "root_path": "",
            "query_string": b"",
            "headers": [],
        }
        await starlette_app(server.endpoints)(scope, exchange.receive, exchange.send)
        frames = [chunk for chunk in exchange.chunks if chunk != sse.KEEP_ALIVE]
        assert all(sse.split(chunk) == ([chunk], b"") for chunk in frames)
        assert events_in(b"".join(frames))[-1]["type"] == "response.completed"


async def test_served_stream_shows_its_first_frame_while_the_handler_works() -> None:
    go = asyncio.Event()

    async def waiting(
        stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncIterator[dict[str, Any]]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        await go.wait()
        yield stream.emit_completed()

    async with serving(waiting) as server:
        for flags in ({}, {"background": True}, {"store": False}):
            go.clear()
            body = {"input": "x", "stream": True, **flags}
            async with server.client.stream("POST", "/v1/responses", json=body) as response:
                received = b""
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if b"response.in_progress" in received:
                        go.set()
            assert events_in(received)[-1]["type"] == "response.completed"
