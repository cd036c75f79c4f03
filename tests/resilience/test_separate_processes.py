"""HTTP and queue functions in processes of their own: everything a client sees has gone through storage."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from protocol import sse
from tests.support import stream_oracle
from tests.support.azurite import AzuriteServer
from tests.support.servers import Deployment, body, deployment, frames_from, frames_of

END_SECONDS = 60.0
CANCEL_SECONDS = 2.0
"""To the handler within one; then its end goes through storage to the client."""


@pytest.fixture(scope="module")
def split(azurite: AzuriteServer) -> Iterator[Deployment]:
    """One process that serves HTTP, one that runs handlers."""
    with deployment(azurite) as made:
        made.start_blocking("--only", "http")
        made.start_blocking("--only", "queue")
        yield made


@pytest.fixture
async def http(split: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=split.hosts[0].base_url, timeout=60) as client:
        yield client


async def collect(http: httpx.AsyncClient, response_id: str, after: int = -1) -> list[bytes]:
    """A replay's frames."""
    answer = await http.get(f"/responses/{response_id}", params={"stream": "true", "starting_after": after})
    assert answer.status_code == 200, answer.text
    return frames_of(answer.content)


async def test_the_first_delta_arrives_long_before_the_last_is_made(http: httpx.AsyncClient) -> None:
    arrived: list[float] = []
    frames: list[bytes] = []
    request = body({"count": 40, "delay": 0.1}, background=True, stream=True)
    async with http.stream("POST", "/responses", json=request) as answer:
        async for frame in frames_from(answer):
            frames.append(frame)
            if sse.event_type(frame) == "response.output_text.delta":
                arrived.append(time.monotonic())
    stream_oracle.assert_whole([sse.decode(frame) for frame in frames])
    assert len(arrived) == 40
    assert arrived[-1] - arrived[0] > 2.0, "the deltas came in one piece"


async def test_two_readers_with_different_cursors_see_the_same_bytes_live_and_afterwards(
    http: httpx.AsyncClient,
) -> None:
    request = body({"count": 15, "delay": 0.05}, background=True, stream=True)
    live: list[bytes] = []
    others: list[asyncio.Task[list[bytes]]] = []
    async with http.stream("POST", "/responses", json=request) as answer:
        async for frame in frames_from(answer):
            live.append(frame)
            if len(live) == 6:
                response_id = sse.decode(live[0])["response"]["id"]
                others = [asyncio.create_task(collect(http, response_id, after)) for after in (-1, 2, 9)]
    seen = [await other for other in others]
    assert seen == [live, live[3:], live[10:]]
    for after in (-1, 0, 7, len(live) - 2, len(live) - 1, len(live) + 100):
        assert await collect(http, response_id, after) == live[after + 1 :]


async def test_polling_sees_the_run_of_the_other_process(http: httpx.AsyncClient) -> None:
    accepted = (await http.post("/responses", json=body({"count": 5, "delay": 0.1}, background=True))).json()
    assert accepted["status"] == "queued"
    statuses: list[str] = []
    deadline = time.monotonic() + END_SECONDS
    while not statuses or statuses[-1] in ("queued", "in_progress"):
        assert time.monotonic() < deadline, f"{statuses}"
        ended = (await http.get(f"/responses/{accepted['id']}")).json()
        statuses.append(ended["status"])
        await asyncio.sleep(0.05)
    assert statuses[-1] == "completed"
    assert ended["output"][0]["content"][0]["text"] == "0 1 2 3 4 "


async def test_a_cancel_reaches_the_other_process_within_a_second_and_ends_the_stream(http: httpx.AsyncClient) -> None:
    # A busy machine may be late, but not every time.
    took = [await cancel_in_the_middle(http) for _ in range(3)]
    assert min(took) < CANCEL_SECONDS, took


async def cancel_in_the_middle(http: httpx.AsyncClient) -> float:
    """Seconds from the cancel to the end of the stream, which is as it has to be."""
    request = body({"count": 1000, "delay": 0.05}, background=True, stream=True)
    frames: list[bytes] = []
    async with http.stream("POST", "/responses", json=request) as answer:
        async for frame in frames_from(answer):
            frames.append(frame)
            if len(frames) == 8:
                response_id = sse.decode(frames[0])["response"]["id"]
                cancelled_at = time.monotonic()
                cancelled = await http.post(f"/responses/{response_id}/cancel")
                assert cancelled.json()["status"] == "cancelled"
    took = time.monotonic() - cancelled_at
    last = sse.decode(frames[-1])
    assert last["type"] == "response.failed"
    assert last["response"] == (await http.get(f"/responses/{response_id}")).json()
    assert [sse.sequence_of(frame) for frame in frames] == list(range(len(frames)))
    return took


async def test_a_queued_response_is_cancelled_before_anybody_runs_it(azurite: AzuriteServer) -> None:
    with deployment(azurite) as alone:
        host = await alone.start("--only", "http")
        async with httpx.AsyncClient(base_url=host.base_url, timeout=60) as http:
            accepted = (await http.post("/responses", json=body(background=True))).json()
            assert (await http.post(f"/responses/{accepted['id']}/cancel")).json()["status"] == "cancelled"
            assert (await http.get(f"/responses/{accepted['id']}")).json()["status"] == "cancelled"
            async with http.stream("POST", "/responses", json=body(background=True, stream=True)) as answer:
                # Nobody runs it: its id is in the start message only, and in the row.
                assert answer.is_success, await answer.aread()
                async with alone.storage() as storage:
                    message = await storage.driver.receive_message("responses-work", visibility=1)
                    while message is None or json.loads(message.text)["id"] == accepted["id"]:
                        message = await storage.driver.receive_message("responses-work", visibility=1)
                streamed = json.loads(message.text)["id"]
                await http.post(f"/responses/{streamed}/cancel")
                frames = [frame async for frame in frames_from(answer)]
            assert [sse.event_type(frame) for frame in frames] == ["response.created", "response.failed"]
            assert await collect(http, streamed) == frames
