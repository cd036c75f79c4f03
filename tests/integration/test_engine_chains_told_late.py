"""Turns that end, wait or are taken back while their chain cannot be read: what it is told of them late."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from resilience import conversations
from resilience.options import ResponsesServerOptions
from storage.errors import StorageError
from tests.integration.test_engine_chains_left_behind import LOCKING, LONG, assert_one_at_a_time, has_status
from tests.integration.test_engine_retracted_turns import lose_an_insert
from tests.integration.test_engine_unreadable_chains import (
    STEERABLE,
    Chained,
    Stuck,
    fail,
    malformed,
    rejected,
    status_of,
)
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, key_of, until
from tests.support.turns import Turns, lasting, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop


async def goes_on_from(before: str, host: Host, turns: Turns) -> None:
    """A client that knows of no later turn continues that one."""
    turns.gates["again"].set()
    again = await host.create({"input": "again", "previous_response_id": before})
    assert again["status"] == "completed"


async def test_a_foreground_turn_that_failed_while_it_waited_is_not_entered() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        worker = hosts.host(options=STEERABLE, queues=False)
        first_asking = worker.spawn(worker.create({"input": "first", "conversation": "talk"}), "asking")
        await until(lambda: turns.entered("first"))
        (first,) = hosts.entries
        frozen = hosts.host(options=STEERABLE, queues=False)
        asking = frozen.spawn(frozen.create({"input": "waits", "conversation": "talk"}), "asking")

        async def joined() -> bool:
            return len(await hosts.ids()) == 2

        await until(joined)
        (waits,) = {*await hosts.ids()} - {first}
        older = hosts.host(options=STEERABLE)
        fail(older, "chain.read", malformed)
        frozen.pause()
        await has_status(hosts, waits, "failed")
        frozen.resume()
        await asyncio.sleep(20)  # it knows by now that it was declared dead
        turns.gates["first"].set()
        assert (await first_asking)["status"] == "completed"
        await asyncio.sleep(20)
        assert hosts.entered(waits) == 0
        assert (await asyncio.wait_for(asking, 100))["status"] == "failed"


async def test_a_client_goes_on_from_the_turn_before_a_lost_one_though_its_chain_could_not_be_read() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE)
        turns.gates["zero"].set()
        zero = (await api.create({"input": "zero"}))["id"]
        victim = hosts.host(options=STEERABLE, queues=False)
        victim.spawn(victim.create({"input": "first", "previous_response_id": zero}), "asking")
        await until(lambda: turns.entered("first"))
        (first,) = {*hosts.entries} - {zero}
        fault = fail(api, "chain.read", malformed)
        await victim.crash()
        await has_status(hosts, first, "failed")
        fault.remove()
        await asyncio.sleep(100)
        chain = await hosts.storage.chains.read(key_of(first))
        assert chain.active is None
        await goes_on_from(zero, api, turns)


async def test_a_client_that_left_goes_on_from_the_turn_before_though_its_chain_could_not_be_read() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE)
        turns.gates["zero"].set()
        zero = (await api.create({"input": "zero"}))["id"]
        gone = asyncio.Event()

        async def disconnected() -> bool:
            return gone.is_set()

        asking = {"input": "first", "previous_response_id": zero}
        api.spawn(api.create(asking, disconnected=disconnected), "asking")
        await until(lambda: turns.entered("first"))
        (first,) = {*hosts.entries} - {zero}
        chain = await hosts.storage.chains.read(key_of(first))
        await hosts.storage.chains.replace(chain)  # what it knows of it is too old
        fault = fail(api, "chain.read", malformed)
        gone.set()
        await has_status(hosts, first, "cancelled")
        fault.remove()
        await asyncio.sleep(200)
        assert (await hosts.storage.chains.read(key_of(first))).active is None
        await goes_on_from(zero, api, turns)


async def test_a_turn_that_is_deleted_while_its_row_is_given_free_begins_the_next_one() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        worker = chained.worker
        worker.spawn(worker.create({"input": "busy"}), "asking")  # its worker lives on
        await until(lambda: turns.entered("busy"))
        fail(worker, "chain.read", malformed)
        done: list[str] = []

        async def delete(name: str, moment: str) -> None:
            if (name, moment) != ("row.replace", "before") or done:
                return
            if await status_of(hosts, chained.first) == "completed":
                done.append(name)
                await chained.api.delete(chained.first)

        worker.seam.hooks.append(delete)
        turns.gates["first"].set()
        await until(lambda: done)
        await asyncio.sleep(20)
        worker.stop_serving()  # others receive what it asks of them
        hosts.host(options=STEERABLE)
        assert (await hosts.finished(chained.second, seconds=LONG)).status == "completed"


async def test_an_abandoned_turn_that_ended_without_its_chain_leaves_it_after_its_handler() -> None:
    turns = Turns(lasting(6), cleanup=14)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=False)
        other = hosts.host(options=STEERABLE)
        lose_an_insert(api, looks=2)
        with pytest.raises(StorageError):
            await api.create(background("first", conversation="c"))
        await until(lambda: turns.entered("first"))
        third = hosts.host(options=STEERABLE)
        fail(other, "chain.read", malformed)
        other.stop_serving()
        second = await third.create(background("second", conversation="c"))
        assert (await hosts.finished(second["id"], seconds=LONG)).status == "completed"
        await hosts.quiet()
        assert_one_at_a_time(turns)


async def test_a_turn_that_has_ended_keeps_no_conversation_from_being_deleted() -> None:
    async with fleet(Turns()) as hosts:
        stuck = Stuck(hosts)
        worker = await stuck.begin(LOCKING)
        await worker.inside(conversations.delete(worker.engine.runtime, PRINCIPAL, "talk"))


async def frozen_and_failed(hosts: Fleet, chained: Chained, frozen: Host) -> None:
    frozen.pause()

    async def named_nobody() -> bool:
        row = await hosts.row(chained.first)
        return row is not None and row.status == "failed" and not row.owner

    await until(named_nobody)
    frozen.resume()


class _Deaf(Turns):
    """Its first entry swallows its cancellation."""

    async def __call__(self, request: Any, context: Any, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        first = not any(self.contexts.values())
        self.contexts[str(request["input"])].append(context)
        yield stream.emit_created()
        while first and not self.gates["hears"].is_set():
            try:
                await self.gates["hears"].wait()
            except asyncio.CancelledError:
                continue
        yield stream.emit_completed()


async def test_a_handler_that_does_not_stop_keeps_no_message_that_leads_to_the_next_turn() -> None:
    turns = _Deaf()
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        frozen = chained.worker
        older = hosts.host(options=ResponsesServerOptions(steerable_conversations=True))
        fail(older, "chain.read", malformed)
        await frozen_and_failed(hosts, chained, frozen)
        older.stop_serving()
        try:
            await asyncio.sleep(200)
            hosts.host(options=STEERABLE)
            assert (await hosts.finished(chained.second, seconds=500)).status == "completed"
        finally:
            turns.gates["hears"].set()
            await asyncio.sleep(1)


@pytest.mark.parametrize("error", [malformed, rejected])
async def test_one_odd_answer_ends_no_foreground_turn_that_waits(error: Callable[[], Exception]) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        worker = hosts.host(options=STEERABLE)
        await worker.create(background("first", conversation="talk"))
        await until(lambda: turns.entered("first"))
        api = hosts.host(options=STEERABLE, queues=False)
        asking = api.spawn(api.create({"input": "waits", "conversation": "talk"}), "asking")

        async def joined() -> bool:
            return len(await hosts.ids()) == 2

        await until(joined)
        fault = fail(api, "chain.read", error, times=1)
        await until(lambda: fault.hits)
        turns.gates["waits"].set()
        turns.gates["first"].set()
        assert (await asking)["status"] == "completed"


@pytest.mark.parametrize("older", [1, 2, 4])
async def test_a_recovered_turn_that_a_newer_version_can_read_goes_on(older: int) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        for _ in range(older):
            fail(hosts.host(options=STEERABLE), "chain.read", malformed)
        hosts.host(options=STEERABLE)
        await chained.worker.crash()
        turns.gates["first"].set()
        assert (await hosts.finished(chained.first, seconds=LONG)).status == "completed"


async def test_a_turn_that_waits_is_not_failed_for_a_message_that_it_does_not_need() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api, worker = hosts.host(options=STEERABLE, queues=False), hosts.host(options=STEERABLE)
        first = (await api.create(background("first", conversation="talk")))["id"]
        await until(lambda: turns.entered("first"))
        worker.stop_serving()
        older = hosts.host(options=STEERABLE)
        fail(older, "chain.read", malformed)
        await api.stream(background("second", conversation="talk"))
        (second,) = {*await hosts.ids()} - {first}
        await asyncio.sleep(1500)
        older.stop_serving()
        worker.serve_queues()
        turns.gates["second"].set()
        turns.gates["first"].set()
        assert (await hosts.finished(first)).status == "completed"
        assert (await hosts.finished(second, seconds=LONG)).status == "completed"
