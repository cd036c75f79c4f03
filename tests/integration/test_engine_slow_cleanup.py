"""A handler that takes long to clean up behind itself holds up nobody, once its run belongs to another (R4, V1)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from protocol import sse
from resilience.context import ResponseContext
from tests.support.engines import background, fleet, until
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop


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
