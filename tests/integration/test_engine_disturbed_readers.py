"""Readers whom storage, their process or their own pace disturbs: none is told an end that is none (V2, V3, R13)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from protocol import sse
from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from storage.errors import StorageRejected, StorageUnavailable
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, Reader, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response, read_stored
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LITTLE_MEMORY = 2_000
"""Bytes of a feed that hold but the last few frames."""

TIME_LIMIT = 1_800.0
"""Seconds after which the platform would end the whole process."""


async def unowned(hosts: Fleet) -> str:
    """A stream that nobody runs yet."""
    api = hosts.host(queues=False)
    return str((await api.create(background(stream=True)))["id"])


async def finished(hosts: Fleet) -> str:
    """A stream that is over."""
    hosts.host()
    response_id = await unowned(hosts)
    await hosts.finished(response_id)
    return response_id


async def assert_told_all(hosts: Fleet, reader: Reader, response_id: str) -> None:
    """It saw every byte behind its cursor."""
    seen = [await reader.whole_view(seconds=3_600)]
    await check_response(hosts.storage, PRINCIPAL, response_id, entries=1, seen=seen)
    stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
    assert reader.frames == stored.frames[reader.after + 1 :]


async def lingering(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
    """Cleans up for a while behind its last event."""
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    async for event in stream.output_item_message("hello"):
        yield event
    yield stream.emit_completed()
    await asyncio.sleep(9)


@pytest.mark.parametrize("operation", ["log.info", "log.read"])
@pytest.mark.parametrize("after", [-1, 3])
async def test_a_hiccup_does_not_look_like_the_end_of_a_finished_stream(operation: str, after: int) -> None:
    async with fleet(Teller(5)) as hosts:
        response_id = await finished(hosts)
        other = hosts.host(queues=False)
        other.seam.inject(Fault(operation=operation, kind="before", times=2))
        await assert_told_all(hosts, await other.replay(response_id, after), response_id)


@pytest.mark.parametrize("operation", ["row.read", "log.read"])
async def test_a_hiccup_while_a_slow_reader_catches_up_does_not_end_it(operation: str) -> None:
    async with fleet(Teller(40, pause=0.01, checkpoints=True)) as hosts:
        host = hosts.host(feed_bytes=LITTLE_MEMORY)
        reader = await host.stream(background(), pause=1.0)
        response_id = await reader.response_id()
        host.seam.inject(Fault(operation=operation, kind="before", times=2))
        await hosts.finished(response_id)
        await assert_told_all(hosts, reader, response_id)


async def held_up(host: Host, response_id: str, after: int, pause: float = 2.0) -> Reader:
    """A slow reader whose poller gets its first answer only after the process has begun to run the response itself."""
    host.seam.inject(Fault(operation="log.info", kind="delay", delay=5.0, times=1))
    reader = await host.replay(response_id, after, pause=pause)
    await until(lambda: host.seam.counts["log.info"])
    host.serve_queues()
    return reader


async def test_a_poller_that_was_held_up_does_not_take_frames_away_from_readers_of_a_run_here() -> None:
    gate = asyncio.Event()
    async with fleet(Teller(5, hold=(3, gate))) as hosts:
        response_id = await unowned(hosts)
        reader = await held_up(hosts.host(queues=False), response_id, 0)
        await until(lambda: len(reader.frames) == 6)  # all that was said before the handler fell silent
        gate.set()
        await assert_told_all(hosts, reader, response_id)


async def test_a_poller_that_was_held_up_does_not_end_readers_before_the_terminal_frame() -> None:
    async with fleet(lingering) as hosts:
        response_id = await unowned(hosts)
        reader = await held_up(hosts.host(queues=False), response_id, 0)
        await assert_told_all(hosts, reader, response_id)


def fail_late(host: Host, error: Callable[[], Exception], seconds: float) -> asyncio.Event:
    """The next read of the log fails, after so many seconds; the event tells that it began."""
    began = asyncio.Event()

    async def hook(name: str, moment: Moment) -> None:
        if (name, moment) == ("log.read", "before") and not began.is_set():
            began.set()
            await asyncio.sleep(seconds)
            raise error()

    host.seam.hooks.append(hook)
    return began


async def test_a_poller_that_fails_late_does_not_end_the_readers_of_a_run_here() -> None:
    gate = asyncio.Event()
    async with fleet(Teller(5, hold=(3, gate))) as hosts:
        response_id = await unowned(hosts)
        host = hosts.host(queues=False)
        reader = await host.replay(response_id)
        await fail_late(host, lambda: StorageRejected(400), 5.0).wait()
        host.serve_queues()
        await asyncio.sleep(10)
        gate.set()
        await assert_told_all(hosts, reader, response_id)


async def test_one_stalled_reader_of_a_stream_that_broke_off_does_not_keep_others_from_reading_it() -> None:
    gate = asyncio.Event()
    async with fleet(Teller(30, checkpoints=True, hold=(25, gate))) as hosts:
        hosts.host()
        host = hosts.host(queues=False)
        response_id = await unowned(hosts)
        stalled = await host.replay(response_id, pause=600)
        await stalled.until(1)
        outage = host.seam.inject(Fault(operation="log.read", kind="before", error=lambda: StorageRejected(400)))
        await until(lambda: outage.hits)
        outage.remove()
        reader = await host.replay(response_id)
        gate.set()
        await assert_told_all(hosts, reader, response_id)
        await stalled.leave()
        assert not host.engine.runtime.tails._feeds
        assert not host.engine.runtime.tails._pollers


@pytest.mark.parametrize("live", [False, True])
async def test_a_slow_reader_leaves_before_the_platform_ends_its_process(live: bool) -> None:
    async with fleet(Teller(400, pause=3.0 if live else 0.0)) as hosts:
        loop_time = asyncio.get_running_loop().time
        if live:
            host = hosts.host(handover_after=1_740.0)
            began = loop_time()
            reader = await host.stream(background(), pause=10)
            response_id = await reader.response_id()
        else:
            response_id = await finished(hosts)
            began = loop_time()
            reader = await hosts.host(queues=False).replay(response_id, pause=10)
        await reader.whole(seconds=3_600)
        assert loop_time() - began < TIME_LIMIT
        rest = await hosts.host(queues=False).replay(response_id, after=sse.sequence_of(reader.frames[-1]))
        await rest.whole(seconds=3_600)
        stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
        assert reader.frames + rest.frames == stored.frames


async def test_a_reader_far_behind_a_stream_that_is_deleted_ends_without_an_error() -> None:
    async with fleet(Teller(40, checkpoints=True)) as hosts:
        host, other = hosts.host(feed_bytes=LITTLE_MEMORY), hosts.host(queues=False)
        reader = await host.stream(background(), pause=1.0)
        response_id = await reader.response_id()
        await hosts.finished(response_id)
        await other.delete(response_id)
        await reader.whole()
        assert [sse.sequence_of(frame) for frame in reader.frames] == list(range(len(reader.frames)))


async def test_an_outage_of_the_log_longer_than_patience_breaks_a_copy_off_without_an_event() -> None:
    async with fleet(Teller(5)) as hosts:
        response_id = await finished(hosts)
        other = hosts.host(queues=False, finish_patience=3.0)
        outage = other.seam.inject(Fault(operation="log.read", kind="before", error=StorageUnavailable))
        reader = await other.replay(response_id)
        assert await reader.whole() == []
        outage.remove()
        await assert_told_all(hosts, await other.replay(response_id), response_id)
