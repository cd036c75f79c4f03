"""A turn that ended without its chain: one handler at a time (V9), and what waits behind it begins, whoever dies."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from protocol.errors import ApiError, ConversationLocked
from resilience.chain import MAX_PENDING
from resilience.options import ResponsesServerOptions
from resilience.placement import tenant_in
from storage.errors import StorageUnavailable
from storage.seam import Fault
from tests.integration.test_engine_unreadable_chains import (
    STEERABLE,
    Chained,
    Stuck,
    fail,
    malformed,
    rejected,
    status_of,
)
from tests.support.engines import Fleet, Host, background, fleet, start_message, until
from tests.support.turns import Turns, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LOCKING = ResponsesServerOptions(resilient_background=True)
LONG = 5_000


async def has_status(hosts: Fleet, response_id: str, status: str) -> None:
    async def reached() -> bool:
        return await status_of(hosts, response_id) == status

    await until(reached, status)


async def fill(host: Host) -> list[str]:
    """As many turns as may wait."""
    return [(await host.create(background(str(n), conversation="talk")))["id"] for n in range(MAX_PENDING)]


async def create_when_unlocked(host: Host, text: str) -> str:
    while True:
        try:
            return str((await host.create(background(text, conversation="talk")))["id"])
        except ApiError:
            await asyncio.sleep(1)


def assert_one_at_a_time(turns: Turns) -> None:
    spans = sorted((began, ended) for _, began, ended in turns.spans)
    assert all(ended is not None and ended < began for (_, ended), (began, _) in itertools.pairwise(spans)), spans


@pytest.mark.parametrize("trouble", ["killed", "lost reply", "no message"])
async def test_whoever_takes_an_ended_turn_out_of_its_chain_may_die_or_fail_behind_it(trouble: str) -> None:
    async with fleet(Turns()) as hosts:
        stuck = Stuck(hosts)
        worker = await stuck.begin(STEERABLE)
        waiting = await fill(worker)
        api = hosts.host(options=STEERABLE, queues=False)
        hit: list[str] = []

        async def disturb(name: str, moment: str) -> None:
            if (name, moment) == ("chain.replace", "after") and not hit:
                hit.append(name)
                if trouble == "killed":
                    hosts.kill(api)
                    await api.passage()
                if trouble == "lost reply":
                    raise StorageUnavailable
            if trouble == "no message" and hit == ["chain.replace"] and name == "queue.send_start":
                hit.append(name)
                raise StorageUnavailable

        api.seam.hooks.append(disturb)
        with pytest.raises(Exception):  # noqa: B017, PT011 - by its death, or by an error
            await api.create(background("last", conversation="talk"))
        assert hit
        worker.stop_serving()  # it remembers that the first one ended there
        hosts.host(options=STEERABLE)
        assert (await hosts.finished(waiting[0], seconds=300)).status == "completed"


async def test_a_turn_that_was_deleted_before_its_chain_was_told_begins_the_next_one() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        fail(chained.worker, "chain.read", malformed)
        turns.gates["first"].set()
        assert (await hosts.finished(chained.first)).status == "completed"
        chained.worker.stop_serving()
        await chained.api.delete(chained.first)
        newer = hosts.host(options=STEERABLE)
        await chained.second_follows(seconds=200)
        assert newer.received["responses-work"] < 20, "no message recreates itself"


async def test_a_turn_that_expired_before_its_chain_was_told_locks_no_conversation() -> None:
    async with fleet(Turns()) as hosts:
        stuck = Stuck(hosts)
        worker = await stuck.begin(LOCKING)
        row = await hosts.row(stuck.first)
        assert row is not None
        await hosts.storage.chains.delete_turn(row, await hosts.storage.chains.read(row.partition_key))
        second = (await worker.create(background("second", conversation="talk")))["id"]
        assert (await hosts.finished(second)).status == "completed"


async def test_a_conversation_stays_locked_while_the_handler_of_a_turn_cancelled_without_its_chain_runs() -> None:
    """An older host cancels it; a newer one runs it, and the next."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        older, worker = hosts.host(options=LOCKING, queues=False), hosts.host(options=LOCKING)
        first = (await worker.create(background("first", conversation="talk")))["id"]
        await until(lambda: turns.entered("first"))
        fail(older, "chain.read", malformed)
        turns.gates["second"].set()
        assert (await older.cancel(first))["status"] == "cancelled"
        with pytest.raises(ConversationLocked):
            await worker.create(background("second", conversation="talk"))
        await hosts.finished(await create_when_unlocked(worker, "second"))
        await hosts.finished(first)
        assert_one_at_a_time(turns)


async def test_a_doubled_message_begins_no_turn_beside_a_handler_that_cleans_up() -> None:
    turns = Turns(until_opened, cleanup=8)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        newer = hosts.host(options=STEERABLE, queues=False)
        fail(chained.worker, "chain.read", malformed)
        chained.worker.stop_serving()
        turns.gates["first"].set()
        await has_status(hosts, chained.first, "completed")
        newer.serve_queues()
        await newer.deliver(start_message(chained.first))
        await hosts.finished(chained.second)
        await hosts.finished(chained.first)
        assert_one_at_a_time(turns)


class _Lingering(Turns):
    """Its first entry cleans up for a minute, behind its outcome and again when it is cancelled there."""

    async def __call__(self, request: Any, context: Any, signal: asyncio.Event) -> AsyncIterator[Any]:
        lingers = not self.spans
        self.spans.append((context.response_id, asyncio.get_running_loop().time(), float("inf")))
        span = self.spans[-1]
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        try:
            await until_opened(self, request, context, signal)
            yield stream.emit_completed()
            if lingers:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)
            raise
        finally:
            self.spans[self.spans.index(span)] = (*span[:2], asyncio.get_running_loop().time())


async def test_no_turn_begins_beside_a_foreground_handler_that_cleans_up() -> None:
    turns = _Lingering()
    async with fleet(turns) as hosts:
        api, worker = (hosts.host(options=STEERABLE, queues=False) for _ in range(2))
        api.spawn(api.create({"input": "first", "conversation": "talk"}), "asking")
        await until(lambda: turns.spans)
        (first,) = hosts.entries
        fail(api, "chain.read", malformed)
        waiting = await fill(worker)
        for gate in ("first", "0"):
            turns.gates[gate].set()
        await has_status(hosts, first, "completed")
        worker.serve_queues()
        with pytest.raises(ApiError):
            await worker.create(background("last", conversation="talk"))
        await hosts.finished(waiting[0], seconds=LONG)
        assert_one_at_a_time(turns)


async def test_a_turn_that_was_claimed_before_its_time_is_not_entered_when_its_claimer_dies() -> None:
    """Who could not read its chain claimed it, to end it."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        row = await hosts.row(chained.second)
        assert row is not None
        claimed = replace(row, status="in_progress", generation=1, attempt=1, owner="w-dead", lease_id="l-dead")
        await hosts.storage.rows.replace(claimed)
        await hosts.storage.work.send_start(tenant_in(row.partition_key), row.id)
        row = await hosts.finished(chained.second)
        assert (row.status, hosts.entered(chained.second)) == ("failed", 0)
        turns.gates["first"].set()
        assert (await hosts.finished(chained.first)).status == "completed"
        await hosts.quiet()


async def test_a_claim_that_once_got_no_answer_ends_though_its_chain_cannot_be_read() -> None:
    turns = Turns()
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=False)
        response_id = (await api.create(background("first", conversation="talk")))["id"]
        worker = hosts.host(options=STEERABLE)
        fault = fail(worker, "row.replace", StorageUnavailable)
        await until(lambda: fault.hits)
        fail(worker, "chain.read", malformed)
        await asyncio.sleep(60)
        fault.remove()
        row = await hosts.finished(response_id, seconds=LONG)
        assert (row.status, hosts.entered(response_id)) == ("failed", 0)


async def test_the_next_turn_begins_though_the_chain_could_not_be_read_for_all_receptions_of_a_message() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        fault = fail(chained.worker, "chain.read", malformed)
        turns.gates["first"].set()
        assert (await hosts.finished(chained.first)).status == "completed"
        await asyncio.sleep(100)
        assert chained.worker.poisoned
        fault.remove()
        await chained.second_follows(seconds=LONG)


async def test_the_next_turn_begins_behind_a_cancelled_one_that_nobody_ran() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=False)
        first, second = [(await api.create(background(text, conversation="talk")))["id"] for text in ("first", "next")]
        turns.gates["next"].set()
        worker = hosts.host(options=STEERABLE, queues=False)
        faults = [fail(host, "chain.read", malformed) for host in (api, worker)]
        assert (await api.cancel(first))["status"] == "cancelled"
        worker.serve_queues()
        await asyncio.sleep(10)
        for fault in faults:
            fault.remove()
        assert (await hosts.finished(second, seconds=LONG)).status == "completed"


async def test_the_next_turn_begins_behind_a_foreground_one_that_waited_and_whose_worker_died() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        worker = hosts.host(options=STEERABLE)
        first = (await worker.create(background("first", conversation="talk")))["id"]
        await until(lambda: turns.entered("first"))
        victim = hosts.host(options=STEERABLE, queues=False)
        victim.spawn(victim.create({"input": "waits", "conversation": "talk"}), "asking")

        async def joined() -> bool:
            return len(await hosts.ids()) == 2

        await until(joined)
        (waits,) = {*await hosts.ids()} - {first}
        last = (await worker.create(background("last", conversation="talk")))["id"]
        turns.gates["last"].set()
        older = hosts.host(options=STEERABLE, queues=False)
        fail(older, "chain.read", malformed)
        worker.stop_serving()
        older.serve_queues()
        await victim.crash()
        await has_status(hosts, waits, "failed")
        await asyncio.sleep(100)  # the older one spends its message
        older.stop_serving()
        worker.serve_queues()
        turns.gates["first"].set()
        assert (await hosts.finished(first)).status == "completed"
        assert (await hosts.finished(last, seconds=LONG)).status == "completed"


async def _refusing(request: Any, context: Any, _signal: asyncio.Event) -> AsyncIterator[Any]:
    """Refuses what is to be refused before it begins, after a while."""
    if request["input"] == "refused":
        await asyncio.sleep(30)
        raise ValueError("refused before it began")
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_completed()


async def test_a_refused_foreground_turn_leaves_its_chain_when_that_can_be_read() -> None:
    async with fleet(_refusing) as hosts:
        api = hosts.host(options=STEERABLE)
        asking = api.spawn(api.create({"input": "refused", "conversation": "talk"}), "asking")
        await until(lambda: hosts.entries)
        second = (await api.create(background("second", conversation="talk")))["id"]
        fault = fail(api, "chain.read", malformed)
        await asyncio.wait({asking})
        assert isinstance(asking.exception(), ApiError)
        await asyncio.sleep(30)
        fault.remove()
        assert (await hosts.finished(second)).status == "completed"


@pytest.mark.parametrize("error", [malformed, rejected])
async def test_an_outcome_whose_reply_was_lost_stands_though_its_chain_cannot_be_read(
    error: Callable[[], Exception],
) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE)
        asking = api.spawn(api.create({"input": "first", "conversation": "talk"}), "asking")
        await until(lambda: turns.entered("first"))
        (first,) = hosts.entries
        api.seam.inject(Fault(operation="row.replace", kind="after", times=1))
        fail(api, "chain.read", error)
        seen: set[str] = set()

        async def look(_name: str, moment: str) -> None:
            if moment == "after":
                seen.add(await status_of(hosts, first))

        api.seam.hooks.append(look)
        turns.gates["first"].set()
        assert (await asking)["status"] == "completed"
        await asyncio.sleep(60)
        assert seen - {"in_progress"} == {"completed"}


async def _flushing(request: Any, context: Any, signal: asyncio.Event) -> AsyncIterator[Any]:
    """Keeps something once another turn waits."""
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    if request["input"] == "first":
        await signal.wait()
        context.conversation_chain_metadata["a"] = "b"
        await context.conversation_chain_metadata.flush()
    yield stream.emit_completed()


async def test_a_flush_into_a_chain_that_storage_does_not_give_fails_as_the_storages_fault() -> None:
    async with fleet(_flushing) as hosts:
        api, worker = hosts.host(options=STEERABLE, queues=False), hosts.host(options=STEERABLE)
        first = (await api.create(background("first", conversation="talk")))["id"]
        await until(lambda: hosts.entries)
        fault = fail(worker, "chain.read", rejected)
        await api.create(background("second", conversation="talk"))
        worker.engine.runtime.running[first].steered(1)
        row = await hosts.finished(first)
        assert (row.status, row.error_code) == ("failed", "storage_error")
        assert fault.hits


async def test_a_conversation_whose_active_row_cannot_be_read_is_busy() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        worker = hosts.host(options=LOCKING)
        await worker.create(background("first", conversation="talk"))
        await until(lambda: turns.entered("first"))
        fail(worker, "row.read", malformed)
        with pytest.raises(ConversationLocked):
            await worker.create(background("second", conversation="talk"))
