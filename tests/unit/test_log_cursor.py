"""Finding and reading events in a log of one or more segments, whole frames only (B4)."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import sse
from resilience.log_cursor import LogCursor
from resilience.ownership import CONTINUED
from storage.connection import Storage, memory_storage
from storage.errors import NotFound
from storage.rows import Segment
from tests.support.virtual_time import LoopClock, VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LEASE = "11111111-1111-1111-1111-111111111111"


def frame(number: int, size: int = 0) -> bytes:
    return sse.encode({"type": "response.x", "sequence_number": number, "fill": "x" * size})


def last(number: int) -> bytes:
    return sse.encode({"type": "response.completed", "sequence_number": number, "response": {}})


async def written(
    storage: Storage, frames: list[bytes], cuts: list[int], *, continued: bool = True
) -> tuple[Segment, ...]:
    """The frames in segments that begin at these numbers; closed ones end with the comment, unless it was lost."""
    segments = []
    bounds = [*cuts, len(frames)]
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        name = f"a/b/{index}-1"
        await storage.log.create(name)
        await storage.log.acquire(name, LEASE)
        data = b"".join(frames[start:stop])
        newest = index == len(cuts) - 1
        if not newest and continued:
            data += CONTINUED
        if data:
            await storage.log.append(name, data, position=0, lease_id=LEASE)
        length = -1 if newest else len(b"".join(frames[start:stop]))
        segments.append(Segment(name=name, first_sequence=start, length=length))
    return tuple(segments)


async def rest(cursor: LogCursor) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while batch := await cursor.read():
        found += batch
    return found


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 10, 1_000, 40_000, 300_000]), min_size=1, max_size=14),
    cuts=st.sets(st.integers(1, 13), max_size=3),
    wanted=st.integers(0, 20),
    continued=st.booleans(),
)
def test_reading_from_any_number_gives_the_rest_byte_for_byte(
    sizes: list[int], cuts: set[int], wanted: int, continued: bool
) -> None:
    frames = [frame(number, size) for number, size in enumerate(sizes)]

    async def read() -> list[tuple[int, bytes]]:
        storage = memory_storage(LoopClock())
        bounds = [0, *sorted(cut for cut in cuts if cut < len(frames))]
        segments = await written(storage, frames, bounds, continued=continued)
        return await rest(await LogCursor.at(storage.log, segments, wanted))

    assert asyncio.run(read()) == list(enumerate(frames))[wanted:]


async def test_an_empty_newest_segment_is_waited_in() -> None:
    storage = memory_storage(LoopClock())
    frames = [frame(number) for number in range(4)]
    segments = await written(storage, frames, [0, 4])
    cursor = await LogCursor.at(storage.log, segments, 0)
    assert await rest(cursor) == list(enumerate(frames))
    assert cursor.at_newest
    await storage.log.append(segments[1].name, frame(4), position=0, lease_id=LEASE)
    assert await cursor.read() == [(4, frame(4))]


async def test_a_torn_frame_is_held_until_it_is_whole() -> None:
    storage = memory_storage(LoopClock())
    segments = await written(storage, [], [0])
    cursor = await LogCursor.at(storage.log, segments, 0)
    whole = frame(0, 100)
    for cut in (5, 30, 100):
        position = (await storage.log.info(segments[0].name)).length
        await storage.log.append(segments[0].name, whole[position:cut], position=position, lease_id=LEASE)
        assert await cursor.read() == []
    await storage.log.append(segments[0].name, whole[100:], position=100, lease_id=LEASE)
    assert await cursor.read() == [(0, whole)]


async def test_a_live_reader_learns_of_a_successor_and_follows() -> None:
    storage = memory_storage(LoopClock())
    frames = [frame(number) for number in range(6)]
    segments = await written(storage, frames, [0, 3])
    as_known_before = (Segment(name=segments[0].name, first_sequence=0),)
    cursor = await LogCursor.at(storage.log, as_known_before, 0)
    assert [number for number, _ in await rest(cursor)] == [0, 1, 2]
    told = cursor.continued
    cursor.follow(segments)
    assert (told, cursor.continued) == (True, False)
    assert [number for number, _ in await rest(cursor)] == [3, 4, 5]


async def test_a_live_reader_follows_without_the_comment_too() -> None:
    storage = memory_storage(LoopClock())
    frames = [frame(number) for number in range(6)]
    segments = await written(storage, frames, [0, 3], continued=False)
    cursor = await LogCursor.at(storage.log, (Segment(name=segments[0].name, first_sequence=0),), 1)
    assert [number for number, _ in await rest(cursor)] == [1, 2]
    assert not cursor.continued
    cursor.follow(segments)
    assert [number for number, _ in await rest(cursor)] == [3, 4, 5]


async def test_the_terminal_frame_ends_it_whether_wanted_or_not() -> None:
    storage = memory_storage(LoopClock())
    segments = await written(storage, [frame(0), frame(1), last(2)], [0])
    for wanted in (0, 2, 3, 1_000):
        cursor = await LogCursor.at(storage.log, segments, wanted)
        assert [number for number, _ in await rest(cursor)] == list(range(wanted, 3))
        assert cursor.ended


async def test_a_number_is_found_in_few_reads() -> None:
    """O(log n): a log of 30 MB."""
    storage = memory_storage(LoopClock())
    frames = [frame(number, 3_000 + number % 7 * 500) for number in range(6_000)]
    segments = await written(storage, frames, [0])
    for wanted in (0, 1, 2_999, 5_999):
        storage.seam.reset()
        cursor = await LogCursor.at(storage.log, segments, wanted)
        assert (await cursor.read())[0] == (wanted, frames[wanted])
        assert storage.seam.total() < 16


async def test_a_log_that_is_gone_is_told() -> None:
    storage = memory_storage(LoopClock())
    segments = await written(storage, [frame(0)], [0])
    cursor = await LogCursor.at(storage.log, segments, 0)
    await storage.log.delete_all("a", "b")
    with pytest.raises(NotFound):
        await cursor.read()


@pytest.mark.parametrize("wanted", [1, 2, 3])
async def test_a_search_that_meets_the_closing_comment_of_its_segment_finds_the_event(wanted: int) -> None:
    """The segment was closed after the row was read; its last event is longer than half of it."""
    storage = memory_storage(LoopClock())
    frames = [frame(0), frame(1), frame(2, 400_000)]
    (closed, _) = await written(storage, frames, [0, 3])
    cursor = await LogCursor.at(storage.log, (Segment(name=closed.name, first_sequence=0),), wanted)
    assert await cursor.read() == list(enumerate(frames))[wanted:]
    assert cursor.continued
