"""The journal: group commit, linger, back-pressure, and nobody told before storage was (R8, V4)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from protocol import sse
from resilience.feed import Feed
from resilience.journal import Journal
from resilience.log_end import EMPTY
from resilience.options import EngineSettings
from resilience.ownership import CONTINUED, Ownership
from resilience.response_row import OwnershipLost
from storage.connection import Storage, memory_storage
from storage.errors import StorageUnavailable
from storage.log import segment_name
from storage.payloads import StoredPayload
from storage.rows import ResponseRow, Segment
from storage.seam import Fault
from tests.support.virtual_time import LoopClock, VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

KEY, RESPONSE_ID, LEASE = "tenant-partition", "resp_x", "11111111-1111-1111-1111-111111111111"


def frame(number: int, size: int = 0) -> bytes:
    return sse.encode({"type": "response.x", "sequence_number": number, "fill": "x" * size})


@dataclass
class Desk:
    """A journal over a log in memory."""

    storage: Storage
    ownership: Ownership
    feed: Feed
    journal: Journal
    runs: int = 1

    async def write(self, *numbers: int, at_once: bool = False, size: int = 0) -> None:
        for number in numbers:
            await self.journal.write(number, frame(number, size), at_once=at_once)

    @property
    def appends(self) -> int:
        return self.storage.seam.counts["log.append"]

    async def log(self) -> bytes:
        row = await self.storage.rows.read(KEY, RESPONSE_ID)
        return b"".join([await self.storage.log.read(segment.name, 0, 1 << 20) for segment in row.segments])


async def desk_with(**settings: Any) -> Desk:
    storage = memory_storage(LoopClock())
    chosen = EngineSettings(**settings)
    name = segment_name(KEY, RESPONSE_ID, 0, 1)
    await storage.log.create(name)
    await storage.log.acquire(name, LEASE)
    row = await storage.rows.insert(
        ResponseRow(
            partition_key=KEY,
            id=RESPONSE_ID,
            status="in_progress",
            disposition="resilient",
            background=True,
            stream=True,
            generation=1,
            created_at=1,
            owner="w",
            lease_id=LEASE,
            segments=(Segment(name=name, first_sequence=0),),
            request=StoredPayload(inline=b"{}"),
        )
    )
    feed = Feed(1 << 20)
    feed.begin(0)
    ownership = Ownership(storage, chosen, row, EMPTY, recovery=False)
    made = Desk(storage, ownership, feed, Journal(ownership, feed, chosen, lambda: made.runs))
    return made


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    made = await desk_with()
    yield made
    await made.journal.close()


async def test_flushed_frames_are_in_the_log_in_order_and_then_in_the_feed(desk: Desk) -> None:
    await desk.write(*range(50))
    await desk.journal.flush()
    assert await desk.log() == b"".join(map(frame, range(50)))
    assert (desk.feed.first, desk.feed.next) == (0, 50)
    assert desk.ownership.last_sequence == 49


async def test_what_arrives_during_an_append_goes_into_the_next_one(desk: Desk) -> None:
    desk.storage.seam.inject(Fault(operation="log.append", kind="delay", delay=1.0))
    await desk.write(0, at_once=True)
    await asyncio.sleep(0.5)
    await desk.write(*range(1, 100), at_once=True)
    await desk.journal.flush()
    assert desk.appends == 2


async def test_no_frame_is_in_the_feed_before_storage_acknowledged_it(desk: Desk) -> None:
    hang = desk.storage.seam.inject(Fault(operation="log.append", kind="hang"))
    await desk.write(0, at_once=True)
    await asyncio.sleep(60)
    assert desk.feed.next == 0
    hang.remove()
    await desk.journal.flush()
    assert desk.feed.next == 1


async def test_a_lost_reply_does_not_double_a_frame(desk: Desk) -> None:
    desk.storage.seam.inject(Fault(operation="log.append", kind="after", times=2))
    await desk.write(0, 1, at_once=True)
    await desk.write(2, at_once=True)
    await desk.journal.flush()
    assert await desk.log() == b"".join(map(frame, range(3)))


async def test_a_frame_that_somebody_waits_for_takes_along_what_lingers() -> None:
    desk = await desk_with(linger_max=1_000.0)
    desk.runs = 100_000
    await desk.write(0, at_once=True)
    await desk.journal.flush()
    await desk.write(1, 2)
    await asyncio.sleep(10)
    assert desk.appends == 1
    await desk.write(3, at_once=True)
    await asyncio.sleep(1)
    assert desk.appends == 2
    assert desk.feed.next == 4
    await desk.journal.close()


@pytest.mark.parametrize(("age", "runs", "expected"), [(0.5, 1, 50), (100, 1, 4), (0.5, 1_000, 4)])
async def test_the_linger_grows_with_age_and_load_up_to_its_limit(
    desk: Desk, age: float, runs: int, expected: int
) -> None:
    desk.runs = runs
    await asyncio.sleep(age)
    before = desk.appends
    for number in range(100):
        await desk.write(number)
        await asyncio.sleep(0.02)
    appends = (desk.appends - before) / 2  # a second's
    assert expected * 0.5 <= appends <= expected * 1.3


async def test_the_handler_waits_while_too_much_is_unacknowledged() -> None:
    desk = await desk_with(unacknowledged_bytes=5_000)
    hang = desk.storage.seam.inject(Fault(operation="log.append", kind="hang"))
    writing = asyncio.create_task(desk.write(*range(100), size=1_000))
    await asyncio.sleep(60)
    assert not writing.done()
    hang.remove()
    await asyncio.wait_for(writing, 10)
    await desk.journal.flush()
    assert desk.feed.next == 100
    await desk.journal.close()


async def test_an_append_has_its_limit_and_a_frame_larger_than_it_goes_alone() -> None:
    desk = await desk_with(append_bytes=1_000)
    await desk.write(0, 1, 2, size=300)
    await desk.write(3, size=5_000)
    await desk.write(4)
    await desk.journal.flush()
    assert desk.feed.next == 5
    assert desk.appends >= 3
    await desk.journal.close()


async def test_a_full_segment_is_followed_by_another() -> None:
    desk = await desk_with(segment_blocks=3)
    for number in range(10):
        await desk.write(number, at_once=True)
        await desk.journal.flush()
    row = await desk.storage.rows.read(KEY, RESPONSE_ID)
    assert [segment.first_sequence for segment in row.segments] == [0, 3, 6, 9]
    log = await desk.log()
    assert log.count(CONTINUED) == 3
    assert log.replace(CONTINUED, b"") == b"".join(map(frame, range(10)))
    for segment in row.segments[:-1]:
        content = await desk.storage.log.read(segment.name, 0, 1 << 20)
        assert content[segment.length :] == CONTINUED
    await desk.journal.close()


@pytest.mark.parametrize("operation", ["log.create", "log.acquire", "row.replace", "log.append"])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_fault_while_rolling_over_does_not_show(operation: str, kind: Any) -> None:
    desk = await desk_with(segment_blocks=2)
    for number in range(2):
        await desk.write(number, at_once=True)
        await desk.journal.flush()
    desk.storage.seam.inject(Fault(operation=operation, kind=kind, times=1))
    for number in range(2, 4):
        await desk.write(number, at_once=True)
        await desk.journal.flush()
    row = await desk.storage.rows.read(KEY, RESPONSE_ID)
    assert [segment.first_sequence for segment in row.segments] == [0, 2]
    assert (await desk.log()).replace(CONTINUED, b"") == b"".join(map(frame, range(4)))
    await desk.journal.close()


async def test_a_lost_lease_is_told_to_every_later_write_and_flush(desk: Desk) -> None:
    await desk.write(0, at_once=True)
    await desk.journal.flush()
    await desk.storage.log.break_lease(desk.ownership.row.segments[-1].name)
    await desk.write(1, at_once=True)
    with pytest.raises(OwnershipLost):
        await desk.journal.flush()
    for _ in range(2):
        with pytest.raises(OwnershipLost):
            await desk.write(2)
        with pytest.raises(OwnershipLost):
            await desk.journal.flush()
    assert await desk.log() == frame(0)
    assert desk.feed.next == 1


async def test_a_silent_storage_is_told_after_patience_also_to_a_writer_that_waits() -> None:
    desk = await desk_with(finish_patience=5.0, unacknowledged_bytes=100)
    desk.storage.seam.inject(Fault(operation="log.append", kind="before"))
    began = asyncio.get_running_loop().time()
    with pytest.raises(StorageUnavailable):
        await desk.write(0, 1, 2, size=200)
    assert asyncio.get_running_loop().time() - began < 10
    await desk.journal.close()


async def test_a_rival_that_took_the_row_stops_the_roll_over() -> None:
    desk = await desk_with(segment_blocks=1)
    await desk.write(0, at_once=True)
    await desk.journal.flush()
    row = await desk.storage.rows.read(KEY, RESPONSE_ID)
    await desk.storage.rows.replace(replace(row, generation=2, owner="another"))
    await desk.write(1, at_once=True)
    with pytest.raises(OwnershipLost) as lost:
        await desk.journal.flush()
    assert lost.value.row is not None
    assert lost.value.row.owner == "another"
    assert await desk.log() == frame(0)
    await desk.journal.close()
