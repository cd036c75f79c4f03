"""What the clients of a run of chaos keep of the streams that they were given."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from aiohttp import web

from protocol import sse
from tests.chaos.hosts import ROLES
from tests.chaos.traffic import Client, Told, Traffic, client

PID = 77
RESPONSE: dict[str, Any] = {"id": "resp_1", "status": "in_progress"}
FRAMES = [
    sse.encode({"type": "response.created", "sequence_number": 0, "response": RESPONSE}),
    sse.encode({"type": "response.in_progress", "sequence_number": 1, "response": RESPONSE}),
    sse.encode({"type": "response.completed", "sequence_number": 2, "response": {**RESPONSE, "status": "completed"}}),
]


@dataclass
class FakeHost:
    base_url: str
    pid: int = PID


@dataclass
class FakeSlot:
    host: FakeHost
    role: Any = ROLES[0]
    up: bool = True


type Play = Callable[[Sequence[str]], Awaitable[Told]]


@pytest.fixture
async def told() -> AsyncIterator[Play]:
    """Plays a client of a stream whose connections end in these ways, the last one behind the last event."""
    ways: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if "stream" not in request.query and request.method == "GET":
            return web.json_response({**RESPONSE, "status": "completed"})
        frames = FRAMES[int(request.query.get("starting_after", -1)) + 1 :]
        stream = web.StreamResponse(headers=sse.HEADERS)
        stream.enable_chunked_encoding()
        await stream.prepare(request)
        way = ways.pop(0)
        for frame in frames if way == "whole" else frames[:1]:
            await stream.write(frame)
        if way == "broken":
            assert request.transport is not None
            request.transport.close()
        return stream

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    slot: Any = FakeSlot(FakeHost(f"http://127.0.0.1:{runner.addresses[0][1]}"))

    async def play(of: Sequence[str]) -> Told:
        ways[:] = of
        async with client() as http:
            one = Client("stream", [slot], http, Random(1))
            await one.play()
        assert not one.told.wrong
        return one.told

    yield play
    await runner.cleanup()


@pytest.mark.parametrize(
    ("ways", "cuts"),
    [
        (["whole"], []),
        (["broken", "whole"], []),
        (["in order", "whole"], [0]),
        (["in order", "in order", "whole"], [0, 1]),
    ],
)
async def test_a_stream_that_ends_in_order_before_its_last_event_is_told_from_one_that_breaks(
    told: Play, ways: list[str], cuts: list[int]
) -> None:
    seen = await told(ways)
    assert seen.views == [FRAMES]
    assert len(seen.connections) == len(ways)
    assert [(cut.pid, cut.last) for cut in seen.cuts] == [(PID, last) for last in cuts]
    assert all(seen.began <= cut.began <= cut.ended for cut in seen.cuts)


@pytest.mark.parametrize(("status", "wrong"), [(409, []), (503, ["V1: no end within 1 s"])])
async def test_only_a_client_that_a_full_conversation_refused_to_the_end_may_come_to_no_end(
    status: int, wrong: list[str]
) -> None:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"error": {"code": "conversation_queue_full"}}, status=status)

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    slots: Any = [FakeSlot(FakeHost(f"http://127.0.0.1:{runner.addresses[0][1]}"))]
    try:
        async with client() as http:
            traffic = Traffic(slots, http, Random(1))
            one = Client("stream", slots, http, Random(1), "conv_1")
            await traffic._play(one, 1)
    finally:
        await runner.cleanup()
    assert one.told.wrong == wrong
    assert traffic.crowded_out == (not wrong)
