"""A handler that is slow to clean up, or says nothing, holds up nobody, once its run belongs to another (R4, V1)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from protocol import sse
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.seam import Moment
from tests.support.engines import background, fleet, until
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)


class SlowToClean:
    """Tells what a `Teller` does; its first entry then does not end before it is released."""

    def __init__(self, count: int) -> None:
        self.released = asyncio.Event()
        self.entries = 0
        self._teller = Teller(count, pause=1.0)

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        self.entries += 1
        is_first = self.entries == 1
        try:
            async for event in self._teller(request, context, signal):
                yield event
        finally:
            while is_first and not self.released.is_set():
                with suppress(asyncio.CancelledError):
                    await self.released.wait()


async def test_readers_in_the_process_of_a_lost_run_follow_its_new_owner_at_once() -> None:
    handler = SlowToClean(12)
    async with fleet(handler) as hosts:
        loser = hosts.host()
        reader = await loser.stream(background())
        response_id = await reader.response_id()
        await reader.until(4)
        loser.stop_serving()
        hosts.host()
        loser.pause()
        await until(lambda: len(hosts.entries[response_id]) == 2)
        loser.resume()
        try:
            await until(lambda: sse.is_terminal(reader.frames[-1]), seconds=30)
            await until(lambda: not loser.engine.runtime.running, seconds=30)
        finally:
            handler.released.set()
            await asyncio.sleep(1)
        assert (await hosts.finished(response_id)).status == "completed"


async def test_a_run_whose_worker_was_declared_dead_goes_on_though_its_handler_does_not_end() -> None:
    """In the process that has the handler: the message that leads to the run was received there, and nowhere else."""
    handler = SlowToClean(40)
    async with fleet(handler) as hosts:
        host = hosts.host()
        response_id = (await host.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        worker = str(host.engine.runtime.worker.id)
        await hosts.storage.ledger.mark_dead(await hosts.storage.ledger.read(worker))
        try:
            await until(lambda: len(hosts.entries[response_id]) == 2)
            await asyncio.sleep(45)
            row = await hosts.row(response_id)
            assert row is not None
            assert row.status == "completed"
        finally:
            handler.released.set()
            await asyncio.sleep(1)
        await hosts.quiet()


async def test_readers_of_a_stopped_process_get_the_rest_although_its_handler_waits_for_ever() -> None:
    waits = asyncio.Event()
    async with fleet(Teller(6, pause=0.5, hold=(3, waits), held=lambda entry: entry == 1)) as hosts:
        sleeper = hosts.host(queues=False, eager_start=True)
        reader = await sleeper.stream(background())
        response_id = await reader.response_id()
        await until(lambda: len(reader.frames) > 5)
        await asyncio.sleep(5)
        sleeper.pause()
        hosts.host()

        async def is_completed() -> bool:
            row = await hosts.row(response_id)
            return row is not None and row.status == "completed"

        await until(is_completed, "its end elsewhere")
        assert hosts.entered(response_id) == 2
        sleeper.resume()
        await reader.whole(seconds=30)
        assert response_id not in sleeper.engine.runtime.running


async def test_the_next_turn_begins_though_the_handler_of_who_lost_the_last_one_does_not_end() -> None:
    """Its new owner died before it began the next turn; the message that leads there comes to the process that lost."""
    handler = SlowToClean(12)
    async with fleet(handler) as hosts:
        loser = hosts.host(options=STEERABLE)
        body = background(conversation="talk")
        reader = await loser.stream(body)
        first = await reader.response_id()
        await reader.until(4)
        second = (await loser.create(body))["id"]
        loser.pause()
        winner = hosts.host(options=STEERABLE)

        async def die_before_the_next_turn(name: str, moment: Moment) -> None:
            if (name, moment) == ("queue.send_start", "before"):
                row = await hosts.row(first)
                if row is not None and row.status == "completed":
                    hosts.kill(winner)
                    await winner.passage()

        winner.seam.hooks.append(die_before_the_next_turn)
        await until(lambda: winner.dead)
        loser.resume()
        try:
            await until(lambda: hosts.entered(second), seconds=60)
        finally:
            handler.released.set()
        assert (await hosts.finished(second)).status == "completed"
