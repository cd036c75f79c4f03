"""Readers that come and go: a thousand reconnects at random places of streams that run, were recovered, or are over.

In virtual time over memory, from processes that run the response and from others that only tail its log. The logs are
longer than one range read, lie in several segments, and are longer than what the feeds keep in memory, so that every
way of finding one's place is taken.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from protocol import sse
from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from resilience.log_cursor import READ_BYTES
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, Reader, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import Stored, check_response, read_stored
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MESSAGES = 12
DELTAS = 25
SMALL: dict[str, Any] = {"segment_blocks": 40, "feed_bytes": 128 << 10}
AT_ONCE_SECONDS = 0.1
"""Memory answers in no time and the clock only jumps: any wait for a poll or a timer would be longer."""


class Chatter:
    """Messages of deltas from one byte to 20 KB, at an uneven pace; what an entry says depends on its number only."""

    def __init__(self) -> None:
        self.entries: Counter[str] = Counter()

    async def __call__(self, request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        self.entries[context.response_id] += 1
        chance = random.Random(self.entries[context.response_id])
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for _ in range(MESSAGES):
            async for event in stream.output_item_message(self._words(chance)):
                yield event
        yield stream.emit_completed()

    async def _words(self, chance: random.Random) -> AsyncIterator[str]:
        for number in range(DELTAS):
            await asyncio.sleep(chance.choice((0, 0, 0.02, 0.1, 0.6)))
            yield f"{number} ü\n\n" + "x" * chance.choice((0, 3, 30, 300, 3_000, 20_000))


LENGTH = 3 + MESSAGES * (DELTAS + 5)
"""Events of an undisturbed stream."""


@dataclass
class Storm:
    """Clients that connect at random cursors to random hosts, read so many frames or all, and leave."""

    chance: random.Random
    visits: list[tuple[int, Reader]] = field(default_factory=list)

    async def visit(self, hosts: Sequence[Host], response_id: str) -> None:
        """One connection."""
        after = self.chance.randrange(-1, LENGTH + 20)
        limit = self.chance.choice((1, 2, 5, 40, 10_000))
        reader = await self.chance.choice(hosts).replay(response_id, after, pause=self.chance.choice((0, 0, 0, 0.05)))
        self.visits.append((after, reader))
        await until(lambda: len(reader.frames) >= limit or reader.ended or reader.error, "the visit", 600)
        await reader.leave()

    async def over_time(self, hosts: Sequence[Host], response_id: str, count: int, seconds: float) -> None:
        """So many connections, begun at random moments."""

        async def later() -> None:
            await asyncio.sleep(self.chance.uniform(0, seconds))
            await self.visit(hosts, response_id)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(later())

    def assert_exact(self, log: Sequence[bytes]) -> None:
        """V3: whoever read to the end has all bytes behind the cursor, whoever left has the first of them."""
        for after, reader in self.visits:
            assert reader.error is None, f"after {after}: {reader.error!r}"
            rest = log[after + 1 :]
            wanted = rest if reader.ended else rest[: len(reader.frames)]
            assert_same(reader.frames, wanted, f"after {after}: {len(reader.frames)} of {len(rest)} frames")
        ended = sum(reader.ended for _, reader in self.visits)
        assert 0 < ended < len(self.visits), "all clients did the same"


def assert_same(frames: Sequence[bytes], wanted: Sequence[bytes], what: str) -> None:
    """Equal bytes; a megabyte that is not is better not shown."""
    same = list(frames) == list(wanted)
    assert same, f"V3: {what}"


async def the_end(hosts: Fleet, response_id: str, **expected: Any) -> Stored:
    await hosts.finished(response_id, seconds=3_600)
    stored = await check_response(hosts.storage, PRINCIPAL, response_id, **expected)
    assert len(stored.row.segments) > 2
    assert len(b"".join(stored.frames)) > READ_BYTES
    return stored


async def test_400_reconnects_to_a_running_stream_are_byte_exact() -> None:
    async with fleet(Chatter()) as hosts:
        owner = hosts.host(**SMALL)
        others = [hosts.host(queues=False, **SMALL) for _ in range(2)]
        storm = Storm(random.Random(1))
        response_id = await (await owner.stream(background())).response_id()
        await storm.over_time([owner, *others], response_id, 400, seconds=40)
        stored = await the_end(hosts, response_id, entries=1)
        assert len(stored.frames) == LENGTH
        storm.assert_exact(stored.frames)


async def test_400_reconnects_to_a_stream_whose_worker_is_killed_are_byte_exact() -> None:
    async with fleet(Chatter()) as hosts:
        owner = hosts.host(**SMALL)
        others = [hosts.host(queues=False, **SMALL) for _ in range(2)]
        storm = Storm(random.Random(2))
        response_id = await (await others[0].stream(background())).response_id()
        survivor = hosts.host(**SMALL)
        readers = asyncio.create_task(storm.over_time([survivor, *others], response_id, 400, seconds=60))
        await asyncio.sleep(20)
        await owner.crash()
        await readers
        stored = await the_end(hosts, response_id, entries=2, crashes=1)
        names = [sse.event_type(frame) for frame in stored.frames]
        assert names.count("response.in_progress") == 2
        storm.assert_exact(stored.frames)


@pytest.mark.parametrize("recovered", [False, True])
async def test_100_rejoins_of_a_finished_stream_are_byte_exact_and_end_at_once(recovered: bool) -> None:
    async with fleet(Chatter()) as hosts:
        first = hosts.host(**SMALL)
        response_id = await (await first.stream(background())).response_id()
        reader = hosts.host(**SMALL)
        if recovered:
            await asyncio.sleep(10)
            await first.crash()
        stored = await the_end(hosts, response_id)
        assert len(hosts.entries[response_id]) == 1 + recovered
        last = len(stored.frames) - 1
        chance = random.Random(3)
        cursors = [-1, 0, last - 1, last, last + 1, 10**9, *(chance.randrange(-1, last + 20) for _ in range(94))]
        for after in cursors:
            began = asyncio.get_running_loop().time()
            rejoined = await (await reader.replay(response_id, after)).whole()
            assert_same(rejoined, stored.frames[after + 1 :], f"after {after}")
            took = asyncio.get_running_loop().time() - began
            assert took <= AT_ONCE_SECONDS, f"after {after}: it took {took} s to end"


async def test_fifty_readers_of_a_stream_cost_storage_what_one_costs() -> None:
    reads: list[int] = []
    for readers in (1, 50):
        async with fleet(Chatter()) as hosts:
            hosts.host()
            elsewhere = hosts.host(queues=False)
            first = await elsewhere.stream(background())
            response_id = await first.response_id()
            views = [first, *[await elsewhere.replay(response_id) for _ in range(readers - 1)]]
            logs = [await view.whole() for view in views]
            stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
            for number, log in enumerate(logs):
                assert_same(log, stored.frames, f"reader {number}")
            reads.append(elsewhere.seam.counts["log.read"])
    one, fifty = reads
    assert fifty < 1.2 * one, f"{one} range reads for one reader, {fifty} for fifty"


async def test_a_lost_terminal_frame_ends_every_reader_that_waits_or_comes_later() -> None:
    """R6: the owner dies between its outcome and the frame; the readers of two processes repair the log at once."""
    async with fleet(Teller(5, pause=0.2)) as hosts:
        owner = hosts.host()
        others = [hosts.host(queues=False) for _ in range(2)]

        async def die_before_the_last_frame(name: str, moment: Moment) -> None:
            if name == "log.append" and moment == "before":
                rows = [await hosts.row(response_id) for response_id in await hosts.ids()]
                if any(row is not None and row.status == "completed" for row in rows):
                    hosts.kill(owner)
                    await asyncio.Event().wait()

        owner.seam.hooks.append(die_before_the_last_frame)
        # Both have seen the open end before either of them appends.
        for host, delay in zip(others, (1.0, 2.0), strict=True):
            host.seam.inject(Fault(operation="log.break", kind="delay", delay=delay))
        first = await others[0].stream(background())
        response_id = await first.response_id()
        waiting = [(after, await host.replay(response_id, after)) for host in others for after in (-1, 1, 6, 9, 500)]
        await until(lambda: owner.dead)
        later = [(after, await host.replay(response_id, after)) for host in others for after in (-1, 5, 9, 500)]
        views = [(after, await reader.whole()) for after, reader in ((-1, first), *waiting, *later)]
        stored = await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)
        for after, frames in views:
            assert_same(frames, stored.frames[after + 1 :], f"after {after}")
