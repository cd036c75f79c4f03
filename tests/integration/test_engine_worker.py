"""The liveness of a process: one ledger, one watch message, whatever it runs; and what adoption makes of its end."""

import asyncio
from typing import Any

import pytest

from storage.driver import WATCH_QUEUE, WORKERS
from storage.errors import StorageUnavailable
from storage.ledger import LedgerEntry
from storage.memory import MemoryDriver
from storage.seam import Fault, FaultKind
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop


def ledgers(hosts: Fleet) -> dict[str, list[str]]:
    """Row keys by worker."""
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    found: dict[str, list[str]] = {}
    for worker, key in driver.tables[WORKERS]:
        found.setdefault(worker, []).append(key)
    return found


def watch_messages(hosts: Fleet) -> int:
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    return len(driver.queues[WATCH_QUEUE])


def transactions(host: Host) -> int:
    return sum(name.startswith("ledger.") for name in host.calls)


async def test_sixteen_runs_at_once_share_their_ledger_transactions() -> None:
    async with fleet(Teller(4, pause=0.5)) as hosts:
        host = hosts.host()
        answers = await asyncio.gather(*(host.create({"input": "hi"}) for _ in range(16)))
        assert len({answer["id"] for answer in answers}) == 16
        assert len(ledgers(hosts)) == 1
        assert transactions(host) <= 1.5 * 16
        await hosts.quiet()
        assert transactions(host) <= 1.5 * 16


async def test_an_idle_worker_leaves_nothing_and_costs_nothing() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        assert ledgers(hosts) == {}
        await host.create({"input": "hi"})
        assert len(ledgers(hosts)) == 1
        assert watch_messages(hosts) == 1
        await asyncio.sleep(4)
        assert len(ledgers(hosts)) == 1
        assert watch_messages(hosts) == 0
        before = len(host.calls)
        await asyncio.sleep(15)
        assert len(host.calls) == before
        await asyncio.sleep(2)
        assert ledgers(hosts) == {}
        before = len(host.calls)
        await asyncio.sleep(600)
        assert len(host.calls) == before


async def test_a_resting_ledger_is_taken_up_and_watched_again() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        await host.create({"input": "hi"})
        (worker_id,) = ledgers(hosts)
        await asyncio.sleep(10)
        assert watch_messages(hosts) == 0
        await host.create({"input": "hi"})
        assert list(ledgers(hosts)) == [worker_id]
        assert watch_messages(hosts) == 1
        await hosts.quiet()


async def test_a_process_that_dies_while_its_ledger_rests_is_found_and_its_responses_are_noted() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        response = await host.create({"input": "hi"})
        await asyncio.sleep(10)
        assert len(ledgers(hosts)) == 1
        await host.crash()
        hosts.host().serve_timer()
        await hosts.quiet()
        noted = await hosts.storage.expiry.due(hosts.now() + 3600, 10)
        assert response["id"] in {each.id for due in noted for each in due.responses}


async def test_a_resting_ledger_that_another_took_is_not_written_again() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        await host.create({"input": "hi"})
        (worker_id,) = ledgers(hosts)
        await asyncio.sleep(10)
        await hosts.storage.ledger.mark_dead(await hosts.storage.ledger.read(worker_id))
        response = await host.create({"input": "hi"})
        assert response["status"] == "completed"
        assert worker_id != host.engine.runtime.worker.id is not None


@pytest.mark.parametrize("duration", [1, 10, 70])
async def test_an_idle_worker_keeps_its_ledger_for_a_while(duration: int) -> None:
    """However long its last run was: the next one within seconds takes no new id."""
    async with fleet(Teller(duration, pause=1.0)) as hosts:
        host = hosts.host()
        await host.create({"input": "hi"})
        worker = host.engine.runtime.worker.id
        await asyncio.sleep(2)
        assert host.engine.runtime.worker.id == worker is not None


async def test_each_busy_period_has_an_id_of_its_own() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        seen = set()
        for _ in range(3):
            await host.create({"input": "hi"})
            seen |= set(ledgers(hosts))
            await hosts.quiet()
        assert len(seen) == 3


async def test_a_busy_worker_beats_and_is_not_taken_for_dead() -> None:
    async with fleet(Teller(200, pause=1.0)) as hosts:
        owner = hosts.host()
        hosts.host().serve_timer()
        response_id = (await owner.create(background()))["id"]
        assert (await hosts.finished(response_id, seconds=400)).generation == 1
        assert len(hosts.entries[response_id]) == 1
        beats = owner.calls.count("ledger.commit")
        assert 8 <= beats <= 12


async def test_a_watch_message_that_came_to_its_own_process_is_replaced() -> None:
    """The process was held up, not dead: nothing is adopted, and the next silence is noticed again."""
    async with fleet(Teller(60, pause=0.5)) as hosts:
        owner = hosts.host()
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        worker = owner.engine.runtime.worker.id
        blocked = owner.seam.inject(Fault(operation="queue.push_watch", kind="before"))
        await asyncio.sleep(12)
        blocked.remove()
        await asyncio.sleep(3)
        assert owner.engine.runtime.worker.id == worker
        assert len(hosts.entries[response_id]) == 1
        assert watch_messages(hosts) == 1
        await owner.crash()
        hosts.host()
        await until(lambda: len(hosts.entries[response_id]) == 2, seconds=10)


async def test_a_doubled_watch_message_dies_out() -> None:
    """A lost reply to its sending leaves a second one that nobody pushes; it must not be replaced for ever."""
    async with fleet(Teller(120, pause=0.5)) as hosts:
        owner = hosts.host()
        response_id = (await owner.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        worker = owner.engine.runtime.worker.id
        assert worker is not None
        await hosts.storage.watch.send(worker, delay=5)
        await asyncio.sleep(12)
        sent = owner.calls.count("queue.send_watch")
        await asyncio.sleep(30)
        assert owner.calls.count("queue.send_watch") - sent <= 1
        assert len(hosts.entries[response_id]) == 1


async def test_one_failed_opening_does_not_cost_the_others_their_worker() -> None:
    """The opening's transaction did not reach storage; there is nothing to close, and nobody was declared dead."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        host = hosts.host()
        hosts.host(queues=False).serve_queues(WATCH_QUEUE)
        reader = await host.stream(background())
        response_id = await reader.response_id()
        worker = host.engine.runtime.worker.id
        kinds: tuple[FaultKind, ...] = ("before", "after")
        for kind in kinds:
            fault = host.seam.inject(Fault(operation="ledger.commit", kind=kind, times=1))
            with pytest.raises(StorageUnavailable):
                await host.create({"input": "refused"})
            fault.remove()
            assert (await host.create({"input": "fine"}))["status"] == "completed"
        assert host.engine.runtime.worker.id == worker
        await reader.whole()
        row = await hosts.finished(response_id)
        assert row.generation == 1
        assert len(hosts.entries[response_id]) == 1
        await hosts.quiet()


async def test_a_run_may_be_opened_again_right_after_it_was_closed() -> None:
    """Handed over and received again by the same process: closing and opening meet in one transaction."""
    async with fleet(Teller(1)) as hosts:
        worker = hosts.host().engine.runtime.worker
        entry = LedgerEntry("run-x", "background", {})
        other = LedgerEntry("run-y", "background", {})
        host = hosts.hosts[0]
        await host.inside(worker.open(other))
        for _ in range(3):
            worker_id = await host.inside(worker.open(entry))
            worker.close(worker_id, "run-x")
        worker_id = await host.inside(worker.open(entry))
        assert "run-x" in ledgers(hosts)[worker_id]
        worker.close(worker_id, "run-x")
        worker.close(worker_id, "run-y")
        await until(lambda: not ledgers(hosts), seconds=60)


async def test_an_opening_made_again_without_an_answer_leaves_the_first_one_open() -> None:
    """A claim that met an outage behind its opening opens its run once more; its row already names this worker."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        worker = host.engine.runtime.worker
        entry = LedgerEntry("run-x", "background", {})
        worker_id = await host.inside(worker.open(entry))
        fault = host.seam.inject(Fault(operation="ledger.commit", kind="after", times=1))
        with pytest.raises(StorageUnavailable):
            await host.inside(worker.open(entry))
        assert fault.hits == 1
        for number in range(3):  # by then the transaction without an answer was looked after
            assert await host.inside(worker.open(LedgerEntry(f"run-{number}", "background", {}))) == worker_id
        assert "run-x" in ledgers(hosts)[worker_id]


async def test_one_entry_may_be_opened_twice_at_once() -> None:
    """Two watch messages of one dead worker, received by one process."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        first = hosts.host()
        response_id = (await first.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        worker = first.engine.runtime.worker.id
        await first.crash()
        second = hosts.host(queues=False)
        text = f'{{"v":1,"worker":"{worker}"}}'
        await asyncio.gather(*(second.inside(second.engine.watch_message(text)) for _ in range(4)))
        second.serve_queues()
        assert (await hosts.finished(response_id)).status == "completed"
        assert not second.failures
        await hosts.quiet()


async def test_a_hundred_and_fifty_runs_of_a_dead_worker_are_all_adopted() -> None:
    """More than one transaction takes."""
    async with fleet(Teller(4, pause=1.0)) as hosts:
        first = hosts.host(queues=False, eager_start=True, eager_limit=1_000)
        answers = await asyncio.gather(*(first.create(background()) for _ in range(150)))
        await asyncio.sleep(0.5)
        assert sum(key.startswith("run-") for keys in ledgers(hosts).values() for key in keys) == 150
        await first.crash()
        rescuers = [hosts.host(), hosts.host()]
        for answer in answers:
            row = await hosts.finished(answer["id"], seconds=600)
            assert row.status == "completed"
        assert all(len(hosts.entries[answer["id"]]) == 2 for answer in answers)
        assert not any(host.failures for host in rescuers)
        await hosts.quiet()


async def test_openings_that_are_too_large_together_are_several_transactions() -> None:
    """Storage takes no transaction above 4 MiB, whatever the number of its operations."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        worker = host.engine.runtime.worker
        entries = [LedgerEntry(f"run-{number}", "foreground", {"record": b"x" * 32_768}) for number in range(98)]
        ids = await asyncio.gather(*(host.inside(worker.open(entry)) for entry in entries))
        assert len(set(ids)) == 1
        assert len(ledgers(hosts)[ids[0]]) == 2 + 98
        assert 4 <= transactions(host) <= 8
        small = [LedgerEntry(f"run-small-{number}", "foreground", {"id": "x"}) for number in range(98)]
        before = transactions(host)
        await asyncio.gather(*(host.inside(worker.open(entry)) for entry in small))
        assert transactions(host) == before + 1


async def test_a_foreground_run_of_a_dead_worker_has_its_failure_recorded_in_seconds() -> None:
    """Row 3, path C, with a request too large for the ledger too."""
    for size in (10, 60_000):
        async with fleet(Teller(40, pause=0.5)) as hosts:
            first = hosts.host()
            reader = await first.stream({"input": "x" * size, "model": "m", "agent_reference": {"name": "a"}})
            response_id = await reader.response_id()
            await asyncio.sleep(1)
            await first.crash()
            second = hosts.host()
            died = asyncio.get_running_loop().time()
            await until(lambda: hosts.row(response_id))  # noqa: B023
            assert asyncio.get_running_loop().time() - died < 8
            answer = await second.get(response_id)
            assert answer["status"] == "failed"
            assert answer["error"]["additionalInfo"] == {"shutdown_reason": "crash_recovery"}
            assert (answer["model"], answer["agent_reference"]["name"]) == ("m", "a")
            await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
            await hosts.quiet()


async def test_a_chain_of_dead_adopters_is_adopted() -> None:
    teller = Teller(40, pause=0.5)
    async with fleet(teller) as hosts:
        owner = hosts.host()
        response_id = (await owner.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        await owner.crash()
        for _ in range(4):
            adopter: Any = hosts.host(queues=False).serve_queues(WATCH_QUEUE)
            adopter.crash_at(5, "before")
            await until(lambda adopter=adopter: adopter.dead, seconds=60)  # type: ignore[misc]
        last = hosts.host()
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        assert hosts.entries[response_id][-1].host is last
        assert len(hosts.entries[response_id]) == 2
        await hosts.quiet()


async def test_a_ledger_that_was_wiped_is_as_deadly_as_a_marked_one() -> None:
    """A worker that made its ledger anew after an adoption would hide its runs."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        worker = host.engine.runtime.worker.id
        assert worker is not None
        await hosts.storage.ledger.wipe(worker)
        asking = asyncio.create_task(host.create({"input": "hi"}))
        await asyncio.sleep(1)
        assert host.engine.runtime.worker.id not in (None, worker)
        assert (await asking)["status"] == "completed"
        hosts.host(queues=False).serve_timer()
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            lost_leases=1,
            seen=[await reader.whole_view()],
        )


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.01])
async def test_an_opening_that_comes_while_the_process_stops_is_answered(moment: float) -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        worker = host.engine.runtime.worker
        host.seam.inject(Fault(operation="ledger.*", kind="delay", delay=0.005))
        await host.inside(worker.open(LedgerEntry("run-x", "background", {})))
        first = asyncio.ensure_future(host.inside(worker.open(LedgerEntry("run-y", "background", {}))))
        await asyncio.sleep(moment)
        stopping = asyncio.ensure_future(host.inside(worker.stop()))
        second = asyncio.ensure_future(host.inside(worker.open(LedgerEntry("run-z", "background", {}))))
        answers = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 30)
        await stopping
        assert all(isinstance(answer, str | StorageUnavailable) for answer in answers), answers


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize(("name", "times"), [("ledger.commit", 1), ("queue.send_watch", 3)])
async def test_a_resting_ledger_whose_taking_up_failed_is_watched_when_it_is_taken_up(
    name: str, times: int, kind: FaultKind
) -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        worker = host.engine.runtime.worker
        await host.create({"input": "hi"})
        await asyncio.sleep(10)
        assert watch_messages(hosts) == 0
        fault = host.seam.inject(Fault(operation=name, kind=kind, times=times))
        with pytest.raises(StorageUnavailable):
            await host.inside(worker.open(LedgerEntry("run-x", "background", {})))
        assert fault.hits == times
        await host.inside(worker.open(LedgerEntry("run-y", "background", {})))
        assert watch_messages(hosts) >= 1
        assert not worker.rests
