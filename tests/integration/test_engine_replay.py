"""Reading streams again: live and finished, from every number, near and far, over segments (B2, B4, V3, W9)."""

import asyncio
import itertools
from typing import Any

import pytest

from protocol import sse
from protocol.errors import ResponseDeleted, ResponseNotFound
from resilience.options import ResponsesServerOptions
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Reader, background, deltas, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response, check_stream
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop


async def checked(hosts: Fleet, response_id: str, *readers: Reader, **expected: Any) -> list[bytes]:
    await hosts.finished(response_id)
    stored = await check_response(
        hosts.storage,
        PRINCIPAL,
        response_id,
        seen=[await reader.whole_view() for reader in readers],
        entries=hosts.entered(response_id),
        generation_of=hosts.generation_of(response_id),
        **expected,
    )
    return stored.frames


@pytest.mark.parametrize("where", ["the owner's process", "another process"])
@pytest.mark.parametrize("segment_blocks", [49_000, 3])
async def test_a_finished_stream_is_replayed_from_every_number(where: str, segment_blocks: int) -> None:
    async with fleet(Teller(25, pause=0.4)) as hosts:
        owner = hosts.host(segment_blocks=segment_blocks)
        first = await owner.stream(background())
        response_id = await first.response_id()
        full = await checked(hosts, response_id, first)
        assert first.frames == full
        if segment_blocks == 3:
            row = await hosts.row(response_id)
            assert row is not None
            assert len(row.segments) > 5
        reader = owner if where == "the owner's process" else hosts.host(queues=False)
        for after in range(-1, len(full) + 3):
            resumed = await reader.replay(response_id, after)
            assert await resumed.whole() == full[after + 1 :], f"starting_after={after}"


@pytest.mark.parametrize("where", ["the owner's process", "another process"])
@pytest.mark.parametrize("segment_blocks", [49_000, 3])
async def test_a_live_stream_is_joined_from_every_number(where: str, segment_blocks: int) -> None:
    """Past, present and future ones; V3 for each."""
    async with fleet(Teller(20, pause=0.4)) as hosts:
        owner = hosts.host(segment_blocks=segment_blocks)
        first = await owner.stream(background())
        response_id = await first.response_id()
        await first.until(10)
        host = owner if where == "the owner's process" else hosts.host(queues=False)
        joined = {after: await host.replay(response_id, after) for after in range(-1, 40)}
        await joined[-1].until(11)
        assert not joined[-1].ended
        full = await checked(hosts, response_id, first, *joined.values())
        assert len(full) < 40
        for after, reader in joined.items():
            assert reader.frames == full[after + 1 :], f"starting_after={after}"


async def test_a_reader_elsewhere_follows_a_live_stream_through_its_segments_without_delay() -> None:
    async with fleet(Teller(40, pause=0.5)) as hosts:
        api = hosts.host(queues=False, segment_blocks=3)
        hosts.host(segment_blocks=3)
        far = await api.stream(background())
        response_id = await far.response_id()
        arrivals: list[float] = []
        seen = 0
        while not far.ended:
            await asyncio.sleep(0.01)
            if len(far.frames) > seen:
                arrivals.append(asyncio.get_running_loop().time())
                seen = len(far.frames)
        full = await checked(hosts, response_id, far)
        assert far.frames == full
        row = await hosts.row(response_id)
        assert row is not None
        assert len(row.segments) > 8
        pauses = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
        assert max(pauses) < 1.6, "a segment's end held the reader up"


async def test_a_cursor_beyond_the_end_of_a_live_stream_ends_with_it_and_without_an_event() -> None:
    async with fleet(Teller(5, pause=0.5)) as hosts:
        owner, other = hosts.host(), hosts.host(queues=False)
        first = await owner.stream(background())
        response_id = await first.response_id()
        beyond = [await owner.replay(response_id, 10_000), await other.replay(response_id, 10_000)]
        await asyncio.sleep(1)
        assert not any(reader.ended for reader in beyond)
        await first.whole()
        for reader in beyond:
            assert await reader.whole() == []
            assert reader.ended


async def test_a_cursor_beyond_the_end_of_a_finished_stream_ends_at_once() -> None:
    async with fleet(Teller(5)) as hosts:
        owner, other = hosts.host(), hosts.host(queues=False)
        first = await owner.stream(background())
        response_id = await first.response_id()
        full = await checked(hosts, response_id, first)
        began = asyncio.get_running_loop().time()
        for host in (owner, other):
            for after in (len(full) - 1, len(full), 10**9):
                reader = await host.replay(response_id, after)
                assert await reader.whole() == []
        assert asyncio.get_running_loop().time() - began < 1


async def test_a_terminal_frame_that_comes_right_behind_the_copy_is_not_left_out() -> None:
    """The outcome is stored, so the log is copied; its last frame is appended after the copy, before the look at it."""
    held, released = asyncio.Event(), asyncio.Event()
    async with fleet(Teller(3, pause=0.2)) as hosts:
        owner, other = hosts.host(), hosts.host(queues=False)
        first = await owner.stream(background())
        response_id = await first.response_id()

        async def hold(name: str, moment: Moment) -> None:
            row = await hosts.row(response_id)
            if (name, moment) == ("log.append", "before") and row is not None and row.status == "completed":
                held.set()
                await released.wait()

        async def let_go(name: str, moment: Moment) -> None:
            if (name, moment) == ("log.info", "before"):
                released.set()
                await first.whole()

        owner.seam.hooks.append(hold)
        await until(held.is_set)
        other.seam.hooks.append(let_go)
        late = await other.replay(response_id)
        assert await late.whole() == first.frames
        assert released.is_set()
        assert sse.is_terminal(late.frames[-1])
        at_the_end = await other.replay(response_id, len(late.frames) - 1)
        assert await at_the_end.whole() == []


async def test_a_hundred_readers_cost_one_poller() -> None:
    async with fleet(Teller(10, pause=0.5)) as hosts:
        owner, other = hosts.host(), hosts.host(queues=False)
        first = await owner.stream(background())
        response_id = await first.response_id()
        await first.until(5)
        before = len(other.calls)
        one = await other.replay(response_id)
        await asyncio.sleep(2)
        cost_of_one = len(other.calls) - before
        before = len(other.calls)
        many = [await other.replay(response_id, index % 7 - 1) for index in range(100)]
        reads_of_rows = 100
        await asyncio.sleep(2)
        polls = len(other.calls) - before - reads_of_rows
        assert polls < 2 * cost_of_one + 10
        await checked(hosts, response_id, first, one, *many)
        assert not other.engine.runtime.tails._feeds
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "log-tail"]


@pytest.mark.parametrize("where", ["the owner's process", "another process"])
async def test_a_reader_too_slow_for_memory_reads_the_log(where: str) -> None:
    async with fleet(Teller(300, pause=0.01)) as hosts:
        owner = hosts.host(feed_bytes=2_000)
        host = owner if where == "the owner's process" else hosts.host(queues=False, feed_bytes=2_000)
        first = await owner.stream(background())
        response_id = await first.response_id()
        slow = await host.replay(response_id, pause=0.05)
        slower = await host.replay(response_id, 3, pause=0.2)
        await asyncio.sleep(2)
        host.calls.clear()
        full = await checked(hosts, response_id, first, slow, slower)
        assert slow.frames == full
        assert slower.frames == full[4:]
        assert host.calls.count("log.read") > 1


async def test_a_reader_that_comes_and_goes_misses_nothing() -> None:
    async with fleet(Teller(40, pause=0.3)) as hosts:
        owner, other = hosts.host(segment_blocks=5), hosts.host(queues=False)
        first = await owner.stream(background())
        response_id = await first.response_id()
        pieces: list[list[bytes]] = []
        last = -1
        while True:
            host = (owner, other)[len(pieces) % 2]
            reader = await host.replay(response_id, last)
            await asyncio.sleep(0.7)
            await reader.leave()
            if reader.frames:
                pieces.append(reader.frames)
                last = sse.sequence_of(reader.frames[-1])
                if sse.is_terminal(reader.frames[-1]):
                    break
        full = await checked(hosts, response_id, first)
        assert [frame for piece in pieces for frame in piece] == full
        assert len(pieces) > 5


async def test_a_reader_survives_the_change_of_owner_in_its_own_process() -> None:
    """Its feed is fed by the run, then by a poller, then by a run again."""
    async with fleet(Teller(12, pause=0.5)) as hosts:
        host = hosts.host(options=ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=1))
        first = await host.stream(background())
        response_id = await first.response_id()
        await first.until(5)
        host.engine.runtime.running[response_id].hand_over()
        other = hosts.host(queues=False)
        far = await other.replay(response_id)
        full = await checked(hosts, response_id, first, far, crashes=1)
        assert first.frames == full == far.frames
        assert len(hosts.entries[response_id]) == 2


async def test_an_old_stream_is_replayed_to_the_byte_by_a_process_that_never_ran_it() -> None:
    """B35."""
    async with fleet(Teller(5)) as hosts:
        owner = hosts.host()
        first = await owner.stream(background())
        response_id = await first.response_id()
        full = await checked(hosts, response_id, first)
        await asyncio.sleep(3_600)
        await owner.crash()
        other = hosts.host(queues=False)
        reader = await other.replay(response_id)
        assert await reader.whole() == full
        check_stream(full)


async def test_a_long_log_is_searched_and_not_read_from_its_start() -> None:
    """B4: O(log n) range reads."""
    async with fleet(Teller(20_000)) as hosts:
        owner, other = hosts.host(), hosts.host(queues=False)
        first = await owner.stream(background())
        response_id = await first.response_id()
        await first.whole()
        await hosts.finished(response_id)
        full = first.frames
        size = sum(map(len, full))
        assert size > 3_000_000
        for after in (0, len(full) // 2, len(full) - 3):
            before = len(other.calls)
            reader = await other.replay(response_id, after)
            await reader.until(1)
            await reader.leave()
            assert reader.frames[0] == full[after + 1]
            assert len(other.calls) - before < 20
        reader = await other.replay(response_id, len(full) - 3)
        assert await reader.whole() == full[-2:]


async def test_a_stream_deleted_while_it_is_read_ends() -> None:
    async with fleet(Teller(300)) as hosts:
        owner, other = hosts.host(), hosts.host(queues=False)
        first = await owner.stream(background())
        response_id = await first.response_id()
        await first.whole()
        await hosts.finished(response_id)
        slow = await other.replay(response_id, pause=0.05)
        await slow.until(3)
        await owner.delete(response_id)
        await slow.whole()
        assert slow.frames == first.frames[: len(slow.frames)]
        for call in (other.replay, other.get):
            with pytest.raises(ResponseDeleted):
                await call(response_id)
        with pytest.raises(ResponseNotFound):
            await other.replay(response_id[:-3] + "abc")


async def test_deltas_as_fast_as_possible_are_appended_in_groups() -> None:
    """Never an append per event: some for what must be seen at once, else one a linger."""
    async with fleet(Teller(2_000)) as hosts:
        host = hosts.host()
        first = await host.stream(background())
        response_id = await first.response_id()
        full = await checked(hosts, response_id, first)
        assert len(deltas(first.events)) == 2_000
        assert first.frames == full
        assert host.calls.count("log.append") < 20


async def test_slow_deltas_are_appended_once_each_linger_however_long_it_takes() -> None:
    async with fleet(Teller(3_000, pause=0.02)) as hosts:
        host = hosts.host()
        first = await host.stream(background())
        response_id = await first.response_id()
        began = asyncio.get_running_loop().time()
        await until(lambda: first.ended, seconds=200)
        duration = asyncio.get_running_loop().time() - began
        await checked(hosts, response_id, first)
        # The linger grows by 10 ms a second up to 250 ms: 4 a second once it is old, some hundreds in its youth.
        assert host.calls.count("log.append") < 4 * duration + 300


async def test_the_first_deltas_do_not_linger() -> None:
    async with fleet(Teller(10, pause=0.2)) as hosts:
        host = hosts.host()
        first = await host.stream(background())
        await first.until(4)
        for number in range(4, 10):
            began = asyncio.get_running_loop().time()
            await first.until(number)
            assert asyncio.get_running_loop().time() - began < 0.27
