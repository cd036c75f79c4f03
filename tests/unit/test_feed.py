"""Recent frames in memory: contiguous, bounded, with whoever waits woken."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.feed import Feed
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop


def frames(first: int, last: int) -> list[tuple[int, bytes]]:
    return [(number, b"%05d" % number) for number in range(first, last)]


def test_a_new_feed_knows_no_number() -> None:
    feed = Feed(100)
    assert (feed.first, feed.next, feed.get(0)) == (None, None, None)


def test_published_frames_are_found_by_their_numbers() -> None:
    feed = Feed(100)
    feed.publish(frames(3, 7))
    assert (feed.first, feed.next) == (3, 7)
    assert [feed.get(number) for number in range(2, 8)] == [None, b"00003", b"00004", b"00005", b"00006", None]


def test_frames_held_already_are_passed_over() -> None:
    feed = Feed(100)
    feed.publish(frames(0, 5))
    feed.publish(frames(2, 7))
    assert (feed.first, feed.next) == (0, 7)


def test_behind_a_gap_it_begins_anew() -> None:
    feed = Feed(100)
    feed.publish(frames(0, 5))
    feed.publish(frames(8, 9))
    assert (feed.first, feed.next, feed.get(4), feed.get(8)) == (8, 9, None, b"00008")


def test_beyond_its_capacity_the_oldest_go() -> None:
    feed = Feed(20)
    feed.publish(frames(0, 10))
    assert (feed.first, feed.next) == (6, 10)


def test_one_frame_larger_than_the_capacity_is_held() -> None:
    feed = Feed(3)
    feed.publish(frames(0, 2))
    assert feed.get(1) == b"00001"


def test_begin_keeps_what_fits_and_drops_what_does_not() -> None:
    feed = Feed(100)
    feed.publish(frames(0, 3))
    feed.begin(3)
    assert (feed.first, feed.next) == (0, 3)
    feed.begin(9)
    assert (feed.first, feed.next, feed.get(2)) == (9, 9, None)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=20), st.integers(1, 60))
def test_whatever_is_published_it_holds_contiguous_right_frames(batches: list[tuple[int, int]], capacity: int) -> None:
    async def publish() -> None:
        feed = Feed(capacity)
        for first, count in batches:
            feed.publish(frames(first, first + count))
            assert feed.first is not None
            assert feed.next is not None
            held = [feed.get(number) for number in range(feed.first, feed.next)]
            assert held == [frame for _, frame in frames(feed.first, feed.next)]
            assert len(held) == 1 or sum(len(frame or b"") for frame in held) <= capacity

    asyncio.run(publish())


@pytest.mark.parametrize("what", ["publish", "begin", "end", "wake"])
async def test_whoever_waits_is_woken(what: str) -> None:
    feed = Feed(100)
    waiting = [asyncio.create_task(feed.changed()) for _ in range(3)]
    await asyncio.sleep(1)
    assert not any(each.done() for each in waiting)
    {
        "publish": lambda: feed.publish(frames(0, 1)),
        "begin": lambda: feed.begin(0),
        "end": feed.end,
        "wake": feed.wake,
    }[what]()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    later = asyncio.create_task(feed.changed())
    await asyncio.sleep(1)
    assert not later.done()
    later.cancel()


def test_an_end_carries_its_failure() -> None:
    feed = Feed(100)
    assert not feed.ended
    failure = RuntimeError()
    feed.end(failure)
    assert (feed.ended, feed.failure) == (True, failure)
