"""Foreground clients that do not read what they asked for: the end of the run never waits for them (B24, R13)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from tests.support.engines import Reader, fleet, until
from tests.support.handlers import Teller
from tests.support.stream_oracle import assert_whole
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

FOR_EVER = 100_000.0
"""Seconds until the next frame is read."""

LITTLE, MUCH, TOO_MUCH = 57, 500, 5_000
"""Words of an answer of which only the last events do not fit into the frames that a handler may be ahead; of one that
fits into those it may be ahead once it has to end; of one that does not.
"""

TIME_LIMIT = 1_800.0
"""Seconds after which the platform would end the whole process."""

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)


async def talk(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
    """As many words as the input says; fewer, if it is told to end."""
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()

    async def words() -> AsyncIterator[str]:
        for number in range(int(request["input"].split()[0])):
            if "heeds" in request["input"] and (signal.is_set() or context.shutdown.is_set()):
                return
            yield f"{number} "

    async for event in stream.output_item_message(words()):
        yield event
    yield stream.emit_completed()


async def assert_read_in_the_end(reader: Reader, last: str) -> None:
    """The stream is whole, though it was over long before it was read."""
    await reader.whole(seconds=FOR_EVER)
    assert assert_whole(reader.events)["status"] == last


@pytest.mark.parametrize("store", [True, False])
async def test_a_stalled_client_does_not_hold_up_the_outcome_of_a_handler_that_has_ended(store: bool) -> None:
    async with fleet(talk) as hosts:
        host = hosts.host()
        reader = await host.stream({"input": f"{LITTLE}", "store": store}, pause=20)
        response_id = await reader.response_id()
        if store:
            assert (await hosts.finished(response_id, seconds=10)).status == "completed"
        await assert_read_in_the_end(reader, "completed")


async def test_a_stalled_client_does_not_hold_up_the_time_limit() -> None:
    async with fleet(talk) as hosts:
        host = hosts.host()
        reader = await host.stream({"input": f"{TOO_MUCH}"}, pause=FOR_EVER)
        response_id = await reader.response_id()
        row = await hosts.finished(response_id, seconds=1_800)
        assert (row.status, row.error_code) == ("failed", "server_error")


async def test_a_stalled_client_does_not_hold_up_a_drain_and_is_told_when_it_reads_on() -> None:
    async with fleet(talk) as hosts:
        host = hosts.host()
        reader = await host.stream({"input": f"{TOO_MUCH}"}, pause=1)
        response_id = await reader.response_id()
        async with asyncio.timeout(30):
            await host.inside(host.engine.drain())
        assert (await hosts.finished(response_id, seconds=1)).status == "failed"
        await assert_read_in_the_end(reader, "failed")


async def test_a_handler_that_heeds_the_shutdown_ends_in_time_though_its_client_does_not_read() -> None:
    async with fleet(talk) as hosts:
        host = hosts.host()
        reader = await host.stream({"input": f"{MUCH} heeds"}, pause=20)
        response_id = await reader.response_id()
        await host.inside(host.engine.drain())
        assert (await hosts.finished(response_id, seconds=1)).status == "completed"
        await assert_read_in_the_end(reader, "completed")


async def test_a_turn_whose_client_does_not_read_makes_way_for_the_next_one() -> None:
    async with fleet(talk) as hosts:
        host = hosts.host(options=STEERABLE)
        reader = await host.stream({"input": f"{MUCH} heeds", "conversation": "c"}, pause=20)
        await reader.response_id()
        async with asyncio.timeout(10):
            second = await host.create({"input": "1", "conversation": "c"})
        assert second["status"] == "completed"
        await assert_read_in_the_end(reader, "completed")


async def test_a_handler_does_not_run_far_ahead_of_its_client() -> None:
    said = 0

    async def counting(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        nonlocal said
        async for event in talk(request, context, signal):
            said += 1
            yield event

    async with fleet(counting) as hosts:
        reader = await hosts.host().stream({"input": f"{MUCH}"}, pause=1)
        for frames in (1, 20):
            await reader.until(frames)
            assert frames < said < frames + 70
        await assert_read_in_the_end(reader, "completed")


@pytest.mark.parametrize("store", [True, False])
async def test_a_slow_foreground_reader_leaves_before_the_platform_ends_its_process(store: bool) -> None:
    async with fleet(Teller(400)) as hosts:
        loop_time = asyncio.get_running_loop().time
        began = loop_time()
        reader = await hosts.host().stream({"input": "hi", "store": store}, pause=25)
        response_id = await reader.response_id()
        await reader.whole(seconds=100_000)
        assert loop_time() - began < TIME_LIMIT
        if store:
            assert (await hosts.finished(response_id)).status == "completed"


async def test_the_time_limit_of_a_slow_reader_counts_from_its_request_though_that_waited_for_its_key() -> None:
    entries = 0

    async def refuse_late_once(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        nonlocal entries
        entries += 1
        if entries == 1:
            await asyncio.sleep(1_000)
            raise ValueError("no")
        async for event in Teller(400)(request, context, signal):
            yield event

    async with fleet(refuse_late_once) as hosts:
        host = hosts.host()
        loop_time = asyncio.get_running_loop().time
        await host.stream({"input": "hi"}, idempotency_key="k")
        await until(lambda: entries == 1)
        began = loop_time()
        second = await host.stream({"input": "hi"}, idempotency_key="k", pause=25)
        await second.whole(seconds=FOR_EVER)
        assert loop_time() - began < TIME_LIMIT


async def test_a_foreground_reader_that_keeps_up_is_told_the_end_at_the_time_limit() -> None:
    async with fleet(Teller(4_000, pause=1.0)) as hosts:
        reader = await hosts.host().stream({"input": "hi"})
        await reader.whole(seconds=TIME_LIMIT)
        assert assert_whole(reader.events)["status"] == "failed"
