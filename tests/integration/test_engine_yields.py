"""A process killed at each ``yield`` of a handler: before the engine sees the event, or when it asks for the next."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.seam import Moment
from tests.support.deaths import cancelled_in_time
from tests.support.engines import PRINCIPAL, background, fleet, until
from tests.support.handlers import Teller, words_of
from tests.support.invariants import assert_chain, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop

MOMENTS: tuple[Moment, ...] = ("before", "after")
MESSAGES = 2
MESSAGE_SECONDS = 40.0
"""When the message of a process that died comes back; sooner than in production, for waiting costs polls."""
LATER_TURNS = 2
STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)


class Stopping:
    """Stops for ever at one yield of the first entry, and says so; tells what a `Teller` with checkpoints does."""

    def __init__(self, at: int, moment: Moment) -> None:
        self.reached = asyncio.Event()
        self.yields = 0
        self.spans: list[tuple[str, float, float | None]] = []
        self.teller = Teller(MESSAGES, pause=0.3, checkpoints=True)
        self._at = at
        self._moment = moment

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        now = asyncio.get_running_loop().time
        index = len(self.spans)
        self.spans.append((context.response_id, now(), None))
        try:
            async for event in self.teller(request, context, signal):
                if index == 0:
                    self.yields += 1
                    await self._pass("before")
                yield event
                if index == 0:
                    await self._pass("after")
        finally:
            self.spans[index] = (*self.spans[index][:2], now())

    async def _pass(self, moment: Moment) -> None:
        if (self.yields, moment) == (self._at, self._moment):
            self.reached.set()
            await asyncio.Event().wait()


async def yields_of_a_life() -> int:
    handler = Stopping(0, "before")
    async with fleet(handler) as hosts:
        response_id = (await hosts.host().create(background()))["id"]
        await hosts.finished(response_id)
    assert handler.yields == 3 + 7 * MESSAGES  # created, in_progress, completed; six events and a checkpoint each
    return handler.yields


async def die_at(mode: str, at: int, moment: Moment) -> None:
    handler = Stopping(at, moment)
    async with fleet(handler) as hosts:
        hosts.visibility = MESSAGE_SECONDS
        options = STEERABLE if mode == "steer" else None
        api = hosts.host(queues=False, options=options)
        victim = hosts.host(options=options)
        body = background(**({"conversation": "talk"} if mode == "steer" else {}))
        reader = await api.stream(body) if mode != "background" else None
        if reader is None:
            await api.create(body)
        (response_id,) = await hosts.ids()
        await until(lambda: handler.spans)
        later = [(await api.create(body))["id"] for _ in range(LATER_TURNS)] if mode == "steer" else []
        await until(handler.reached.is_set)
        cancelled = mode == "cancel" and await cancelled_in_time(api, response_id)
        await victim.crash()
        over = (await hosts.row(response_id) or pytest.fail("no row")).status not in ("queued", "in_progress")
        hosts.host(options=options).serve_timer()
        if reader is not None:
            await reader.whole()
        for turn in (response_id, *later):
            row = await hosts.finished(turn, seconds=900)
            assert row.status == ("cancelled" if cancelled and turn == response_id else "completed")
        await hosts.quiet()
        entries = len(hosts.entries[response_id])
        assert entries == (1 if over else 2), f"{entries} entries"
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view] if reader else [],
            entries=entries,
            crashes=1,
            cancelled=cancelled,
            generation_of=hosts.generation_of(response_id),
        )
        if not cancelled:
            told = words_of(stored.snapshot or {})
            assert [word[-1] for word in told] == [str(number) for number in range(MESSAGES)], told
        if mode == "steer":
            await assert_chain(hosts.storage, PRINCIPAL, response_id, handler.spans, accepted=later, crashes=1)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("mode", ["background", "stream", "steer", "cancel"])
async def test_a_process_killed_at_any_yield_loses_nothing(mode: str, moment: Moment) -> None:
    wrong = []
    for at in range(1, await yields_of_a_life() + 1):
        try:
            await die_at(mode, at, moment)
        except Exception as error:
            wrong.append(f"{moment} yield {at}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
