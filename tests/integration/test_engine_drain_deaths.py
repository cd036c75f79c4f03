"""A process that dies while it leaves: at each storage call of its drain; alone, with turns behind it, cancelled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.seam import Moment
from tests.support.deaths import cancelled_in_time
from tests.support.engines import PRINCIPAL, Host, HostGone, background, fleet, until
from tests.support.handlers import Teller, words_of
from tests.support.invariants import Span, assert_chain, check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MESSAGES = 8
MOMENTS: tuple[Moment, ...] = ("before", "after")
OPTIONS = ResponsesServerOptions(
    resilient_background=True, steerable_conversations=True, shutdown_grace_period_seconds=1.0
)
MODES = ["background", "stream", "cancel", "steer", "steer and cancel"]

type Death = tuple[int, Moment]
"""At which storage call since the drain began."""


class Spanned:
    """A teller, and when each of its entries began and ended."""

    def __init__(self) -> None:
        self._teller = Teller(MESSAGES, pause=0.5, checkpoints=True)
        self.spans: list[Span] = []

    async def __call__(self, request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        loop_time = asyncio.get_running_loop().time
        began = loop_time()
        try:
            async for event in self._teller(request, context, signal):
                yield event
        finally:
            self.spans.append((context.response_id, began, loop_time()))


async def leave(mode: str, death: Death | None) -> list[str]:
    """Drain in the middle of a run, and maybe die there; the storage calls that the drain made."""
    handler = Spanned()
    steers, cancels = mode.startswith("steer"), mode.endswith("cancel")
    async with fleet(handler) as hosts:
        api, victim = hosts.host(queues=False, options=OPTIONS), hosts.host(options=OPTIONS)
        body = background(**({"conversation": "talk"} if steers else {}))
        reader = await api.stream(body) if mode != "background" else None
        response_id = await reader.response_id() if reader else (await api.create(body))["id"]
        await until(lambda: hosts.entries[response_id])
        later = [(await api.create(body))["id"] for _ in range(2)] if steers else []
        await asyncio.sleep(0.7)
        cancelled = cancels and await cancelled_in_time(api, response_id)
        before = len(victim.calls)
        if death is not None:
            victim.crash_at(before + death[0], death[1])
        await _drain(victim)
        made = victim.calls[before:]
        await victim.crash()
        hosts.host(options=OPTIONS).serve_timer()
        if reader is not None:
            await reader.whole()
        for turn in (response_id, *later):
            row = await hosts.finished(turn, seconds=900)
            assert row.status == ("cancelled" if cancelled and turn == response_id else "completed")
        await hosts.quiet()
        for turn in (response_id, *later):
            stored = await check_response(
                hosts.storage,
                PRINCIPAL,
                turn,
                seen=[reader.view] if reader and turn == response_id else [],
                entries=hosts.entered(turn),
                crashes=1,
                cancelled=cancelled and turn == response_id,
                generation_of=hosts.generation_of(turn),
            )
            if stored.row.status == "completed":
                assert [word[-1] for word in words_of(stored.snapshot or {})] == [str(n) for n in range(MESSAGES)]
        if steers:
            await assert_chain(hosts.storage, PRINCIPAL, response_id, handler.spans, accepted=later, crashes=1)
        return [str(name) for name in made]


async def _drain(victim: Host) -> None:
    victim.stop_serving()
    try:
        await asyncio.wait_for(victim.inside(victim.engine.drain()), 60)
    except HostGone:
        pass


@pytest.mark.parametrize("mode", MODES)
async def test_a_process_that_dies_at_any_storage_call_of_its_drain_loses_no_turn(mode: str) -> None:
    calls = await leave(mode, None)
    assert len(calls) > 1
    wrong = []
    for number, name in enumerate(calls, start=1):
        for moment in MOMENTS:
            try:
                await leave(mode, (number, moment))
            except Exception as error:
                wrong.append(f"{moment} call {number}, {name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
