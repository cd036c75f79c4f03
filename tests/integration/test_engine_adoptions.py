"""An adoption is complete, in however many goes it is made, and what is adopted is noted for retention (V1, V10)."""

import asyncio
from typing import Any

import pytest

from protocol.errors import ConversationQueueFull
from resilience.chain import MAX_PENDING
from resilience.options import ResponsesServerOptions
from storage.driver import EXPIRY
from storage.errors import NotFound, StorageError, StorageRejected
from storage.ledger import LedgerEntry
from storage.seam import Fault
from tests.support.deaths import die_after
from tests.support.engines import Fleet, Host, HostGone, background, fleet, until
from tests.support.handlers import Teller
from tests.support.turns import Turns, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)


async def foreground_run(hosts: Fleet, host: Host) -> tuple[str, str]:
    """The ids of a run that lasts, and of the worker that answers for it."""
    call = host.spawn(host.create({"input": "hi"}), "asking")
    call.add_done_callback(lambda done: done.cancelled() or done.exception())
    await until(lambda: hosts.entries)
    await until(lambda: host.engine.runtime.worker.id)
    (response_id,) = hosts.entries
    await asyncio.sleep(1)
    return response_id, str(host.engine.runtime.worker.id)


async def is_noted(hosts: Fleet, response_id: str) -> bool:
    notes = await hosts.storage.driver.query_entities(EXPIRY)
    return any(response_id in str(note.properties["responses"]) for note in notes)


async def test_a_response_whose_adoption_is_asked_for_twice_is_noted() -> None:
    async with fleet(Teller(1, pause=30.0)) as hosts:
        victim = hosts.host(queues=False)
        response_id, worker = await foreground_run(hosts, victim)
        await victim.crash()
        await hosts.storage.watch.send(worker, delay=2, epoch=0)  # the double of its own
        hosts.host()
        assert (await hosts.finished(response_id)).status == "failed"
        await hosts.quiet()
        assert await is_noted(hosts, response_id)


async def test_a_response_is_noted_though_another_entry_of_the_ledger_is_not_understood() -> None:
    """The adoption fails for that one, and is asked for again at once."""
    async with fleet(Teller(1, pause=30.0)) as hosts:
        victim = hosts.host(queues=False)
        response_id, worker = await foreground_run(hosts, victim)
        await victim.inside(victim.engine.runtime.worker.open(LedgerEntry("later-x", "invented-later", {})))
        await victim.crash()
        hosts.host()
        assert (await hosts.finished(response_id)).status == "failed"
        await asyncio.sleep(60)
        await hosts.storage.ledger.wipe(worker)  # somebody who knows took it
        await hosts.quiet()
        assert await is_noted(hosts, response_id)


async def test_a_response_is_noted_though_its_adopter_dies_right_behind_the_adoption() -> None:
    async with fleet(Teller(1, pause=30.0)) as hosts:
        victim = hosts.host(queues=False)
        response_id, worker = await foreground_run(hosts, victim)
        await victim.crash()
        adopter = hosts.host()

        async def is_adopted() -> bool:
            try:
                await hosts.storage.ledger.read(worker)
            except NotFound:
                return True
            return False

        await until(is_adopted)
        await asyncio.sleep(1)
        await adopter.crash()
        hosts.host().serve_timer()
        assert (await hosts.finished(response_id)).status == "failed"
        await hosts.quiet()
        assert await is_noted(hosts, response_id)


async def test_an_adoption_that_breaks_off_behind_the_failure_still_starts_the_next_turn() -> None:
    turns = Turns()
    async with fleet(turns) as hosts:
        victim = hosts.host(options=STEERABLE, queues=False)
        api = hosts.host(options=STEERABLE, queues=False)
        other = hosts.host(options=STEERABLE).serve_timer()
        victim.seam.inject(Fault(operation="row.insert", kind="after", times=1))
        victim.seam.inject(Fault(operation="row.insert", kind="before", after=1, times=1))
        victim.seam.inject(Fault(operation="row.read", kind="delay", delay=2.0, times=1))
        die_after(hosts, victim, "row.delete")
        with pytest.raises((StorageError, HostGone)):
            await victim.create({"input": "first", "conversation": "talk"})
        second = (await api.create(background("second", conversation="talk")))["id"]
        await until(lambda: victim.dead)
        # The adopter records the failure; then storage does not answer once, and it all comes back.
        fault = other.seam.inject(Fault(operation="chain.read", kind="before", times=1))
        assert (await hosts.finished(second, seconds=1_500)).status == "completed"
        assert fault.hits == 1


async def test_an_entry_that_cannot_be_adopted_is_in_no_others_way() -> None:
    async with fleet(Teller(8, pause=1.0)) as hosts:
        victim = hosts.host(queues=False, eager_start=True)
        runs = [(await victim.create(background(str(each))))["id"] for each in range(6)]
        for each in range(6):
            victim.spawn(victim.create({"input": f"f{each}"}), "call")
        await until(lambda: len(hosts.entries) == 12)
        foreground = sorted(set(hosts.entries) - set(runs))[0]
        other = hosts.host().serve_timer()
        await victim.crash()
        # Storage refuses one failure, however often it is tried.
        real = other.storage.rows.insert

        async def insert(row: Any, **options: Any) -> Any:
            if row.id == foreground:
                raise StorageRejected(413)
            return await real(row, **options)

        other.storage.rows.insert = insert  # type: ignore[method-assign]
        await asyncio.sleep(500)
        rows = [(await hosts.row(each)) for each in hosts.entries if each not in runs and each != foreground]
        assert all(row is not None and row.status == "failed" for row in rows)


async def test_an_adoption_gets_on_in_a_storm() -> None:
    """Every fifth call fails, for five minutes: much is adopted meanwhile, also of a worker that had much."""
    async with fleet(Teller(8, pause=1.0)) as hosts:
        victim = hosts.host(queues=False)
        for each in range(60):
            victim.spawn(victim.create({"input": f"f{each}"}), "call")
        await until(lambda: len(hosts.entries) == 60)
        other = hosts.host().serve_timer()
        await victim.crash()
        other.seam.inject(Fault(operation="*", kind="before", probability=0.2))
        await asyncio.sleep(300)
        rows = [await hosts.row(each) for each in hosts.entries]
        failed = sum(row is not None and row.status == "failed" for row in rows)
        assert failed == 60


LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""


async def test_a_turn_that_was_refused_before_its_worker_died_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        other = hosts.host(options=STEERABLE)
        for _ in range(MAX_PENDING + 1):
            await other.create(background("waits", conversation="talk"))
        victim = hosts.host(options=STEERABLE, queues=False)
        with pytest.raises(ConversationQueueFull):
            await victim.create({"input": LARGE, "conversation": "talk"})
        worker = victim.engine.runtime.worker.id
        assert worker
        assert await hosts.storage.ledger.entries(worker), "it is closed with the next write of the ledger"
        await victim.crash()
        turns.gates["waits"].set()
        await hosts.quiet()
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_turn_in_flight_whose_request_is_gone_ends_when_its_worker_dies() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        victim = hosts.host(options=STEERABLE, queues=False)
        call = victim.spawn(victim.create({"input": LARGE, "conversation": "talk"}), "asking")
        call.add_done_callback(lambda done: done.cancelled() or done.exception())
        await until(lambda: hosts.entries)
        (first,) = hosts.entries
        other = hosts.host(options=STEERABLE)
        turns.gates["second"].set()
        second = (await other.create(background("second", conversation="talk")))["id"]
        row = await hosts.row(first)
        assert row is not None
        await hosts.storage.payloads.delete(row.request)
        await victim.crash()
        assert (await hosts.finished(second)).status == "completed"
        assert (await hosts.finished(first)).status == "failed"
