"""A foreground run whose worker lives but was declared dead: as soon as it hears of its outcome, it is over (row 3)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.errors import StorageError
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, Reader, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import assert_chain, check_response, check_stream
from tests.support.turns import Turns, lasting
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop

LOCKING = ResponsesServerOptions(resilient_background=True)
STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)

SOON = 4.0
"""Seconds in which a run hears of an outcome that stands: a push that is refused, and a look at its row."""

CLEANUP = 3.0
TOO_LONG = 600.0
LARGE = "x" * 60_000
"""Enough for a snapshot that echoes it to be stored beside its row."""
HEARD_BY_NOBODY = "what comes too late"


WRITES = {"row.insert", "row.replace", "chain.replace", "payload.put"}


class Slow:
    """A handler in the middle of a message, which takes far too long; stopped, it cleans up for a while.

    Attributes:
        running: how many entries are not gone yet.
        cleaned_up: how many could clean up to their end.
    """

    def __init__(self, *, stubborn: bool = False) -> None:
        self.running = 0
        self.cleaned_up = 0
        self.contexts: list[ResponseContext] = []
        self._stubborn = stubborn

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        self.running += 1
        self.contexts.append(context)
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        try:
            async for event in stream.output_item_message(self._words()):
                yield event
            yield stream.emit_completed()
        finally:
            await asyncio.sleep(CLEANUP)
            self.cleaned_up += 1
            self.running -= 1

    async def _words(self) -> AsyncIterator[str]:
        yield "a word "
        try:
            await asyncio.sleep(TOO_LONG)
        except asyncio.CancelledError:
            if not self._stubborn:
                raise
            yield HEARD_BY_NOBODY
            await asyncio.sleep(TOO_LONG)


class Asked:
    """A client of a foreground response, streaming or waiting."""

    def __init__(self, host: Host, body: Json, *, stream: bool) -> None:
        self._host = host
        self._answer = host.spawn(host.stream(body) if stream else host.create(body), "asking")
        self._stream = stream

    @property
    def told(self) -> bool:
        """True once it was told the end."""
        if not self._answer.done():
            return False
        answer = self._answer.result()
        return not isinstance(answer, Reader) or answer.ended

    async def outcome(self) -> Json:
        """The response as it was told; a stream's is judged with all that came before it."""
        answer: Any = await self._answer
        if not isinstance(answer, Reader):
            return dict(answer)
        events = check_stream(await answer.whole())
        names = [event["type"] for event in events]
        assert names.count("response.output_item.added") == names.count("response.output_item.done"), "W6"
        assert HEARD_BY_NOBODY not in str(events)
        return dict(events[-1]["response"])


async def response_of(hosts: Fleet) -> str:
    """The id of the one response whose handler was entered."""
    await until(lambda: hosts.entries, "the handler's entry")
    (response_id,) = hosts.entries
    return response_id


async def recorded(hosts: Fleet, response_id: str) -> None:
    async def failed() -> bool:
        row = await hosts.row(response_id)
        return row is not None and row.status == "failed"

    await until(failed, "the adopter's outcome", 30)


async def frozen_and_adopted(hosts: Fleet, host: Host, response_id: str) -> Host:
    """The host was stopped, and goes on after another recorded the outcome of its run; the other one."""
    await asyncio.sleep(1)
    host.pause()
    other = hosts.host(options=host.options)
    await recorded(hosts, response_id)
    host.resume()
    return other


@pytest.mark.parametrize("conversation", [{}, {"conversation": "c"}], ids=["alone", "turn"])
@pytest.mark.parametrize("stream", [False, True])
async def test_its_client_is_told_at_once_and_its_handler_stops(stream: bool, conversation: Json) -> None:
    slow = Slow()
    async with fleet(slow) as hosts:
        host = hosts.host(options=LOCKING, queues=False)
        asked = Asked(host, {"input": "hi", **conversation}, stream=stream)
        response_id = await response_of(hosts)
        other = await frozen_and_adopted(hosts, host, response_id)
        before = len(host.calls)
        await until(lambda: asked.told, "its end", SOON)
        told = await asked.outcome()
        assert told["error"]["additionalInfo"]["shutdown_reason"] == "crash_recovery"
        assert told == await other.get(response_id)
        await hosts.finished(response_id, seconds=CLEANUP + 1)
        assert (slow.running, slow.cleaned_up) == (0, 1), "its cleanup was cut off"
        assert not slow.contexts[0].client_cancelled
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
        await hosts.quiet()
        assert not WRITES & set(host.calls[before:])


async def test_its_handler_does_not_go_on_beside_the_next_turn_of_its_chain() -> None:
    turns = Turns(lasting(200))
    async with fleet(turns) as hosts:
        host = hosts.host(options=LOCKING, queues=False)
        first = await (await host.stream({"input": "first", "conversation": "c"})).response_id()
        other = await frozen_and_adopted(hosts, host, first)
        await asyncio.sleep(SOON)
        turns.act = lasting(20)
        second = (await other.create({"input": "second", "conversation": "c"}))["id"]
        assert [span[0] for span in turns.spans] == [first, second]
        await assert_chain(hosts.storage, PRINCIPAL, first, turns.spans, accepted=[first, second], lost_leases=1)
        await hosts.quiet()


async def test_a_next_turn_that_has_begun_meanwhile_is_left_alone() -> None:
    turns = Turns(lasting(20))
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE, queues=False)
        asked = Asked(host, {"input": "first", "conversation": "c"}, stream=True)
        first = await response_of(hosts)
        second = (
            await hosts.host(queues=False, options=STEERABLE).create(
                {"input": "second", "conversation": "c", "background": True}
            )
        )["id"]
        other = await frozen_and_adopted(hosts, host, first)
        await until(lambda: asked.told, "its end", SOON)
        assert (await hosts.finished(second)).status == "completed"
        assert [entry.host for entry in hosts.entries[second]] == [other]
        assert (await asked.outcome())["status"] == "failed"
        await hosts.quiet()


async def test_a_handler_that_does_not_stop_is_not_heard_and_keeps_no_client_waiting() -> None:
    slow = Slow(stubborn=True)
    async with fleet(slow) as hosts:
        host = hosts.host(queues=False)
        host.seam.inject(Fault(operation="payload.get", kind="delay", delay=1))  # it speaks before its end is told
        asked = Asked(host, {"input": "hi", "instructions": LARGE}, stream=True)
        response_id = await response_of(hosts)
        other = await frozen_and_adopted(hosts, host, response_id)
        await until(lambda: asked.told, "its end", SOON)
        assert await asked.outcome() == await other.get(response_id)
        assert slow.running == 1
        assert response_id in host.engine.runtime.running, "a process that leaves would not wait for it"
        await hosts.finished(response_id, seconds=TOO_LONG + CLEANUP + 1)
        assert slow.running == 0


@pytest.mark.parametrize("conversation", [{}, {"conversation": "c"}], ids=["alone", "turn"])
async def test_an_outcome_that_comes_late_is_waited_for(conversation: Json) -> None:
    """Its adopter dies behind the mark in the ledger, and the next one gets no answer from storage for a while."""
    async with fleet(Slow()) as hosts:
        host = hosts.host(options=LOCKING, queues=False)
        asked = Asked(host, {"input": "hi", **conversation}, stream=True)
        response_id = await response_of(hosts)
        await asyncio.sleep(1)
        host.pause()
        adopter = hosts.host(options=LOCKING)
        marked = adopter.pause_at("ledger.entries")
        await until(marked.is_set, "the mark", 30)
        await adopter.crash()
        host.resume()
        await asyncio.sleep(SOON)
        assert not asked.told
        hosts.host(options=LOCKING).seam.inject(Fault(operation="payload.put", kind="before", times=3))
        await recorded(hosts, response_id)
        await until(lambda: asked.told, "its end", SOON)
        assert (await asked.outcome())["status"] == "failed"


@pytest.mark.parametrize("operation", ["row.read", "payload.get"])
async def test_a_storage_that_does_not_answer_keeps_it_waiting_for_no_longer_than_that(operation: str) -> None:
    """Its snapshot lies beside its row. The handler stops, whether the client can be told or not."""
    slow = Slow()
    async with fleet(slow) as hosts:
        host = hosts.host(queues=False)
        asked = Asked(host, {"input": "hi", "instructions": LARGE}, stream=True)
        response_id = await response_of(hosts)
        silence = host.seam.inject(Fault(operation=operation, kind="before"))
        other = await frozen_and_adopted(hosts, host, response_id)
        await until(lambda: silence.hits, seconds=SOON)
        await asyncio.sleep(2 * SOON)
        assert not asked.told
        assert slow.running == (operation == "row.read")
        silence.remove()
        await until(lambda: asked.told, "its end", SOON)
        assert await asked.outcome() == await other.get(response_id)


async def test_it_goes_on_where_nobody_knows_of_it() -> None:
    """Its ledger was lost with all that was in it: no outcome will ever come but its own."""
    async with fleet(Teller(10, pause=5)) as hosts:
        host = hosts.host(queues=False)
        asked = Asked(host, {"input": "hi"}, stream=True)
        response_id = await response_of(hosts)
        await asyncio.sleep(1)
        lost = host.engine.runtime.worker.id
        assert lost is not None
        await hosts.storage.ledger.wipe(lost)
        await until(lambda: host.engine.runtime.worker.id != lost, "its finding out", 30)
        await until(lambda: host.calls.count("row.read") > 3, "its looks", 2 * SOON)
        told = await asked.outcome()
        assert told["status"] == "completed"
        assert told == await host.get(response_id)


async def test_a_run_that_is_not_stored_is_none_of_its_workers() -> None:
    async with fleet(Teller(10, pause=3)) as hosts:
        host = hosts.host(queues=False)
        unstored = Asked(host, {"input": "hi", "store": False}, stream=True)
        await response_of(hosts)
        stored = Asked(host, {"input": "hi"}, stream=True)
        await until(lambda: len(hosts.entries) == 2)
        _, response_id = hosts.entries
        await frozen_and_adopted(hosts, host, response_id)
        assert (await stored.outcome())["status"] == "failed"
        assert not unstored.told
        looks = host.calls.count("row.read")
        assert (await unstored.outcome())["status"] == "completed"
        assert host.calls.count("row.read") == looks


@pytest.mark.parametrize("conversation", [{}, {"conversation": "c"}], ids=["alone", "turn"])
@pytest.mark.parametrize("gone", [False, True], ids=["deleted", "expired"])
async def test_an_outcome_that_is_deleted_before_it_is_heard_of_ends_a_turn(gone: bool, conversation: Json) -> None:
    """Only of a response that is no turn it cannot be known whether there was a row: that one goes on."""
    slow = Slow()
    async with fleet(slow) as hosts:
        host = hosts.host(options=LOCKING, queues=False)
        asked = Asked(host, {"input": "hi", **conversation}, stream=False)
        response_id = await response_of(hosts)
        await asyncio.sleep(1)
        host.pause()
        other = hosts.host(options=LOCKING)
        await recorded(hosts, response_id)
        if gone:
            row = await hosts.row(response_id)
            assert row is not None
            await hosts.storage.rows.delete(row)
        else:
            await other.delete(response_id)
        host.resume()
        if gone and not conversation:
            await until(lambda: host.calls.count("row.read") > 3, "its looks", 2 * SOON)
            assert (await asked.outcome())["status"] == "completed"
            return
        with pytest.raises(StorageError):
            async with asyncio.timeout(SOON):
                await asked.outcome()
        await asyncio.sleep(CLEANUP + 1)
        assert slow.running == 0
        await hosts.quiet()


class Ending:
    """Completes so many turns of the event loop after it is told to, its message left open: its end has more frames."""

    def __init__(self, turns: int) -> None:
        self.told = asyncio.Event()
        self._turns = turns

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.add_output_item_message().emit_added()
        await self.told.wait()
        for _ in range(self._turns):
            await asyncio.sleep(0)
        yield {"type": "response.completed", "response": {"status": "completed"}}


@pytest.mark.parametrize("conversation", [{}, {"conversation": "c"}], ids=["alone", "turn"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_handler_that_ends_at_that_moment_makes_no_second_end(moment: Moment, conversation: Json) -> None:
    """It completes around the look that finds the outcome: one terminal event, no gap, and a GET says the same."""
    for turns in range(20):
        await end_around_a_look(Ending(turns), moment, conversation)


async def end_around_a_look(ending: Ending, moment: Moment, conversation: Json) -> None:
    async with fleet(ending) as hosts:
        host = hosts.host(options=LOCKING, queues=False)
        asked = Asked(host, {"input": "hi", **conversation}, stream=True)
        response_id = await response_of(hosts)
        host.seam.hooks.append(at_a_look(moment, ending.told.set))
        other = await frozen_and_adopted(hosts, host, response_id)
        await until(lambda: asked.told, "its end", SOON)
        assert await asked.outcome() == await other.get(response_id)
        await hosts.quiet()


def at_a_look(wanted: Moment, act: Callable[[], None]) -> Callable[[str, Moment], Awaitable[None]]:
    """Acts at that moment of a look at a row, which takes a few turns of the event loop from there."""

    async def hook(name: str, moment: Moment) -> None:
        if (name, moment) == ("row.read", wanted):
            act()
            for _ in range(8):
                await asyncio.sleep(0)

    return hook
