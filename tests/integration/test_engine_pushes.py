"""A watch message that its own process lost the hold of: a lost reply to one push must not look like a death."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from resilience.adoption import UnknownEntries
from resilience.run_entries import background_entry
from storage.driver import WATCH_QUEUE, WORK_QUEUE, WORKERS, Insert, QueueReceipt, StorageDriver
from storage.errors import MalformedRecord, StorageUnavailable
from storage.ledger import LedgerEntry
from storage.memory import MemoryDriver
from storage.seam import Fault, FaultKind, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, Reader, background, fleet, key_of, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LOST_PUSH = Fault(operation="queue.push_watch", kind="after", times=1)
NO_PULSE = Fault(operation="ledger.pulse", kind="before")
SLOW_REPLY = 7.0
"""Seconds, longer than a watch message is hidden."""


@dataclass
class Busy:
    """A process with a background and a foreground run, and another one that receives watch messages only."""

    owner: Host
    other: Host
    worker: str
    background_id: str
    foreground_id: str
    reader: Reader

    @property
    def ids(self) -> tuple[str, str]:
        return self.background_id, self.foreground_id


async def busy(hosts: Fleet, *, resilient: bool = True) -> Busy:
    owner = hosts.host(resilient=resilient, queues=False).serve_queues(WORK_QUEUE)
    other = hosts.host(resilient=resilient, queues=False).serve_queues(WATCH_QUEUE)
    background_id = (await owner.create(background()))["id"]
    reader = await owner.stream({"input": "hi"})
    foreground_id = await reader.response_id()
    await until(lambda: hosts.entries[background_id])
    worker = owner.engine.runtime.worker.id
    assert worker is not None
    return Busy(owner, other, worker, background_id, foreground_id, reader)


async def ended_undisturbed(hosts: Fleet, run: Busy) -> None:
    await run.reader.whole()
    assert run.owner.engine.runtime.worker.id == run.worker
    for response_id in run.ids:
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        assert hosts.entered(response_id) == 1
    assert not {"ledger.mark_dead", "ledger.wipe"} & set(run.other.calls)
    assert not run.owner.failures
    assert not run.other.failures
    await hosts.quiet()


async def epoch_of(hosts: Fleet, worker: str) -> int:
    return (await hosts.storage.ledger.read(worker)).epoch


def watch_texts(hosts: Fleet) -> list[str]:
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    return [message.text for message in driver.queues[WATCH_QUEUE]]


def after_call(host: Host, name: str, then: Callable[[], Any], *, skip: int = 0, moment: Moment = "after") -> None:
    """Once, around the first call of that name from now on (but for so many)."""
    left = skip + 1

    async def hook(called: str, when: Moment) -> None:
        nonlocal left
        if called == name and when == moment:
            left -= 1
            if left == 0:
                then()
                await host.passage()

    host.seam.hooks.append(hook)


@pytest.mark.parametrize("resilient", [True, False], ids=["row-1", "row-2"])
async def test_a_lost_reply_to_a_push_costs_no_run(resilient: bool) -> None:
    async with fleet(Teller(40, pause=0.5)) as hosts:
        run = await busy(hosts, resilient=resilient)
        fault = run.owner.seam.inject(LOST_PUSH)
        await until(lambda: run.other.received[WATCH_QUEUE], "the superseded message")
        assert fault.hits == 1
        assert await epoch_of(hosts, run.worker) == 1
        await until(lambda: len(watch_texts(hosts)) == 1, "the end of the superseded message")
        await ended_undisturbed(hosts, run)
        assert run.other.received[WATCH_QUEUE] == 1


@pytest.mark.parametrize("resilient", [True, False], ids=["row-1", "row-2"])
async def test_a_process_that_cannot_replace_its_message_lives_on_by_its_pulses(resilient: bool) -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        run = await busy(hosts, resilient=resilient)
        run.owner.seam.inject(LOST_PUSH)
        # As with an event loop that is blocked: the reply comes too late, and then nothing is sent for a while.
        mute = run.owner.seam.inject(Fault(operation="queue.send_watch", kind="before"))
        await until(lambda: run.other.received[WATCH_QUEUE] == 3, "the message comes back, again and again")
        assert await epoch_of(hosts, run.worker) == 0
        mute.remove()
        await ended_undisturbed(hosts, run)


@pytest.mark.parametrize("resilient", [True, False], ids=["row-1", "row-2"])
async def test_a_process_that_cannot_tell_its_ledger_of_the_new_message_lives_on_by_its_pulses(resilient: bool) -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        run = await busy(hosts, resilient=resilient)
        run.owner.seam.inject(LOST_PUSH)
        # As with an event loop that is blocked behind the sending: the transaction does not get off.
        mute = run.owner.seam.inject(Fault(operation="ledger.commit", kind="hang"))
        await until(lambda: run.other.received[WATCH_QUEUE] == 3, "the old message comes back, again and again")
        assert await epoch_of(hosts, run.worker) == 0
        mute.remove()
        await asyncio.sleep(1)
        assert await epoch_of(hosts, run.worker) == 1
        await ended_undisturbed(hosts, run)


class LostReply:
    """A line on which the reply to the first watch message is lost. A driver for one host.

    The storage client repeats a request without an answer, unless it is told not to.
    """

    def __init__(self, inner: StorageDriver) -> None:
        self._inner = inner
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def send_message(self, queue: str, text: str, *, once: bool = False, **options: Any) -> QueueReceipt:
        if queue == WATCH_QUEUE and not self._lost:
            self._lost = True
            await self._inner.send_message(queue, text, **options)
            if once:
                raise StorageUnavailable
        return await self._inner.send_message(queue, text, **options)


@pytest.mark.parametrize("resilient", [True, False], ids=["row-1", "row-2"])
async def test_a_watch_message_whose_reply_was_lost_costs_no_run(resilient: bool) -> None:
    """It may be there, and nobody can push it: it must not look like a death."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        line: Any = LostReply
        owner = hosts.host(resilient=resilient, queues=False, line=line).serve_queues(WORK_QUEUE)
        other = hosts.host(resilient=resilient, queues=False).serve_queues(WATCH_QUEUE)
        background_id = (await owner.create(background()))["id"]
        reader = await owner.stream({"input": "hi"})
        foreground_id = await reader.response_id()
        await until(lambda: hosts.entries[background_id])
        worker = str(owner.engine.runtime.worker.id)
        await until(lambda: other.received[WATCH_QUEUE], "the message that nobody pushes")
        await ended_undisturbed(hosts, Busy(owner, other, worker, background_id, foreground_id, reader))


@pytest.mark.parametrize("resilient", [True, False], ids=["row-1", "row-2"])
async def test_a_process_that_receives_its_message_before_the_reply_to_its_sending_replaces_it(resilient: bool) -> None:
    async with fleet(Teller(200, pause=0.5)) as hosts:
        host = hosts.host(resilient=resilient, idle_close_after=0.1).serve_timer()
        worker = host.engine.runtime.worker
        await host.create({"input": "hi"})
        await until(lambda: worker.rests, "rest")
        before = worker.id
        assert before is not None
        slowed = False

        async def slow(name: str, moment: Moment) -> None:
            nonlocal slowed
            if (name, moment) == ("queue.send_watch", "after") and not slowed:
                slowed = True
                await asyncio.sleep(SLOW_REPLY)

        host.seam.hooks.append(slow)
        response_id = (await host.create(background()))["id"]
        row = await hosts.finished(response_id, seconds=300)
        assert slowed
        assert host.received[WATCH_QUEUE]
        assert worker.id == before
        assert (row.status, hosts.entered(response_id)) == ("completed", 1)


async def test_a_process_that_dies_after_its_pulses_is_found_by_the_message_that_was_put_back() -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        run = await busy(hosts)
        run.owner.seam.inject(LOST_PUSH)
        run.owner.seam.inject(Fault(operation="queue.send_watch", kind="before"))
        await until(lambda: run.other.received[WATCH_QUEUE] == 2, "the message comes back")
        run.other.serve_queues(WORK_QUEUE)
        await run.owner.crash()
        died = asyncio.get_running_loop().time()
        await until(lambda: hosts.entered(run.background_id) == 2, "another worker")
        assert asyncio.get_running_loop().time() - died < 12
        row = await hosts.finished(run.background_id)
        assert row.status == "completed"
        await hosts.quiet()


async def test_what_replaces_a_message_is_pushed_and_its_own_replies_may_be_lost() -> None:
    async with fleet(Teller(90, pause=0.5)) as hosts:
        run = await busy(hosts)
        for round_ in range(1, 5):
            run.owner.seam.inject(LOST_PUSH)
            await asyncio.sleep(8)
            assert await epoch_of(hosts, run.worker) == round_
        await ended_undisturbed(hosts, run)
        assert run.other.received[WATCH_QUEUE] == 4


async def test_a_lost_push_costs_one_message_and_one_transaction() -> None:
    async with fleet(Teller(40, pause=0.5)) as hosts:
        run = await busy(hosts)
        before = len(run.owner.calls)
        run.owner.seam.inject(LOST_PUSH)
        await asyncio.sleep(8)
        calls = [name for name in run.owner.calls[before:] if name != "row.read"]
        assert calls == ["queue.send_watch", "ledger.commit"]


async def test_a_superseded_message_that_comes_to_its_own_process_does_nothing() -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        run = await busy(hosts)
        run.other.stop_serving()
        run.owner.serve_queues(WATCH_QUEUE)
        run.owner.seam.inject(LOST_PUSH)
        await until(lambda: run.owner.received[WATCH_QUEUE], "the superseded message")
        run.owner.stop_serving()
        run.other.serve_queues(WATCH_QUEUE)
        await asyncio.sleep(10)
        assert run.owner.calls.count("queue.send_watch") == 2
        await ended_undisturbed(hosts, run)


async def test_a_push_that_did_not_arrive_is_made_again_at_once_and_replaces_nothing() -> None:
    async with fleet(Teller(40, pause=0.5)) as hosts:
        run = await busy(hosts)
        fault = run.owner.seam.inject(Fault(operation="queue.push_watch", kind="before", times=3))
        await asyncio.sleep(8)
        assert fault.hits == 3
        assert run.owner.calls.count("queue.send_watch") == 1
        assert await epoch_of(hosts, run.worker) == 0
        await ended_undisturbed(hosts, run)


async def test_a_message_that_its_own_process_received_is_replaced_by_the_next_epoch() -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        run = await busy(hosts)
        run.other.stop_serving()
        run.owner.serve_queues(WATCH_QUEUE)
        blocked = run.owner.seam.inject(Fault(operation="queue.push_watch", kind="before"))
        await until(lambda: run.owner.received[WATCH_QUEUE], "its own message")
        run.owner.stop_serving()
        blocked.remove()
        run.other.serve_queues(WATCH_QUEUE)
        await asyncio.sleep(10)
        assert await epoch_of(hosts, run.worker) == 1
        await ended_undisturbed(hosts, run)


@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_transaction_of_the_epoch_without_an_answer_is_settled(kind: FaultKind) -> None:
    async with fleet(Teller(40, pause=0.5)) as hosts:
        run = await busy(hosts)
        after_call(
            run.owner,
            "queue.send_watch",
            lambda: run.owner.seam.inject(Fault(operation="ledger.commit", kind=kind, times=2)),
        )
        run.owner.seam.inject(LOST_PUSH)
        await until(lambda: run.other.received[WATCH_QUEUE], "the superseded message")
        assert await epoch_of(hosts, run.worker) == 1
        await ended_undisturbed(hosts, run)


@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_replacement_that_may_have_been_sent_is_superseded_as_well(kind: FaultKind) -> None:
    async with fleet(Teller(40, pause=0.5)) as hosts:
        run = await busy(hosts)
        run.owner.seam.inject(Fault(operation="queue.send_watch", kind=kind, times=1))
        run.owner.seam.inject(LOST_PUSH)
        await asyncio.sleep(12)
        assert await epoch_of(hosts, run.worker) == 2
        assert run.other.received[WATCH_QUEUE] == (2 if kind == "after" else 1)
        await ended_undisturbed(hosts, run)


@pytest.mark.parametrize(
    ("name", "told"), [("queue.send_watch", 0), ("ledger.commit", 1)], ids=["before-the-commit", "after-the-commit"]
)
async def test_a_death_while_the_message_is_replaced_is_found_in_seconds(name: str, told: int) -> None:
    async with fleet(Teller(40, pause=0.5)) as hosts:
        run = await busy(hosts)
        run.other.stop_serving()
        after_call(run.owner, name, lambda: hosts.kill(run.owner))
        run.owner.seam.inject(LOST_PUSH)
        await until(lambda: run.owner.dead, "the death")
        died = asyncio.get_running_loop().time()
        assert await epoch_of(hosts, run.worker) == told
        assert len(watch_texts(hosts)) == 2
        hosts.host()
        await until(lambda: hosts.entered(run.background_id) == 2, "the second entry")
        assert asyncio.get_running_loop().time() - died < 8
        assert (await hosts.finished(run.background_id)).status == "completed"
        assert (await hosts.finished(run.foreground_id)).status == "failed"
        for response_id in run.ids:
            await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), crashes=1)
        await hosts.quiet()


async def test_a_process_that_is_too_late_was_declared_dead() -> None:
    """The old message was received and believed before its replacement was there, and no pulse came through."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        run = await busy(hosts)
        run.owner.seam.inject(Fault(operation="queue.send_watch", kind="delay", delay=8.0, times=1))
        run.owner.seam.inject(NO_PULSE)
        run.owner.seam.inject(LOST_PUSH)
        await until(lambda: "ledger.wipe" in run.other.calls, "the adoption")
        await until(lambda: run.owner.engine.runtime.worker.id != run.worker, "a new id")
        run.other.serve_queues(WORK_QUEUE)
        row = await hosts.finished(run.background_id)
        assert row.status == "completed"
        assert (await hosts.finished(run.foreground_id)).status == "failed"
        await check_response(
            hosts.storage,
            PRINCIPAL,
            run.background_id,
            entries=hosts.entered(run.background_id),
            lost_leases=1,
        )
        await hosts.quiet()


async def test_an_adopter_that_read_the_ledger_before_the_epoch_was_told_looks_again() -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        run = await busy(hosts)
        reached = run.other.pause_at("ledger.mark_dead")
        delayed = run.owner.seam.inject(Fault(operation="queue.send_watch", kind="hang"))
        run.owner.seam.inject(NO_PULSE)
        run.owner.seam.inject(LOST_PUSH)
        await reached.wait()
        delayed.remove()
        await asyncio.sleep(1)
        assert await epoch_of(hosts, run.worker) == 1
        run.other.resume()
        await run.reader.whole()
        assert run.owner.engine.runtime.worker.id == run.worker
        assert [hosts.entered(response_id) for response_id in run.ids] == [1, 1]
        assert (await hosts.finished(run.background_id)).status == "completed"
        await hosts.quiet()


async def test_an_adopter_of_a_superseded_message_that_dies_makes_nobody_adopt() -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        run = await busy(hosts)
        after_call(run.other, "ledger.read", lambda: hosts.kill(run.other), moment="before")
        run.owner.seam.inject(LOST_PUSH)
        await until(lambda: run.other.dead, "the adopter's death")
        last = hosts.host(queues=False).serve_queues(WATCH_QUEUE)
        await until(lambda: last.received[WATCH_QUEUE] >= 2, "the message of the adopter, and the one that it sent")
        await asyncio.sleep(3)
        assert last.calls.count("ledger.mark_dead") == 1
        assert (await hosts.storage.ledger.read(run.worker)).state == "open"
        await run.reader.whole()
        assert [hosts.entered(response_id) for response_id in run.ids] == [1, 1]


async def test_a_dead_ledger_is_adopted_whatever_the_epoch_of_the_message() -> None:
    """Whoever marked it may have died with it."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        ledger = hosts.storage.ledger
        record = await ledger.commit(await ledger.begin("w-dead", []), [], [], epoch=4)
        await ledger.mark_dead(record)
        await hosts.storage.watch.send("w-dead", delay=0, epoch=3)
        await hosts.quiet()
        assert not host.failures


async def test_a_message_that_could_not_be_taken_back_does_not_disturb_who_takes_the_ledger_up_again() -> None:
    """Its last push had no answer, so that nobody could delete it; the next run came before it was received."""
    async with fleet(Teller(20, pause=0.5)) as hosts:
        owner = hosts.host(queues=False, idle_close_after=0.1)
        worker = owner.engine.runtime.worker
        first = await owner.inside(worker.open(LedgerEntry("run-x", "background", {})))
        kept = owner.seam.inject(Fault(operation="queue.delete_watch", kind="before"))
        worker.close(first, "run-x")
        await until(lambda: worker.rests, "rest")
        kept.remove()
        other = hosts.host(queues=False).serve_queues(WATCH_QUEUE)
        reader = await owner.stream({"input": "hi"})
        response_id = await reader.response_id()
        await until(lambda: other.received[WATCH_QUEUE], "the message that was left")
        await reader.whole()
        assert worker.id == first
        assert (await hosts.finished(response_id)).status == "completed"
        assert "ledger.mark_dead" not in other.calls


async def test_a_run_whose_rescue_its_own_worker_received_is_claimed_anew_when_that_hears_of_its_death() -> None:
    """It attached to the run before it heard: there is no other message, and no ledger has the run any more."""
    async with fleet(Teller(240, pause=0.5)) as hosts:
        owner = hosts.host("owner", queues=False).serve_queues(WORK_QUEUE)
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        first = owner.engine.runtime.worker.id
        rescuer = hosts.host("rescuer", queues=False).serve_queues(WATCH_QUEUE)
        cut = [
            owner.seam.inject(Fault(operation=operation, kind="before"))
            for operation in ("queue.push_watch", "queue.send_watch", "queue.delete_watch")
        ]
        await asyncio.sleep(12)
        for fault in cut:
            fault.remove()
        await until(lambda: owner.engine.runtime.worker.id not in (None, first), "a new worker id")
        await until(lambda: hosts.entered(response_id) == 2, "another entry")
        row = await hosts.row(response_id)
        assert row is not None
        assert (row.owner, row.generation) == (owner.engine.runtime.worker.id, 2)
        await owner.crash()
        rescuer.serve_queues(WORK_QUEUE)
        await until(lambda: hosts.entered(response_id) == 3, "the rescue", 30)
        assert (await hosts.finished(response_id)).status == "completed"
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=3, crashes=1, lost_leases=1)


async def test_entries_of_an_unknown_kind_stay_for_who_knows_them() -> None:
    """What is known is taken care of, once; the message keeps coming back, and not in a hurry."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        response_id = (await host.create(background()))["id"]
        await hosts.finished(response_id)
        later = LedgerEntry("later-x", "invented-later", {"what": "ever"})
        known = background_entry(key_of(response_id), response_id)
        await hosts.storage.ledger.begin("w-later", [known, later])
        sent = host.calls.count("queue.send_start")
        await hosts.storage.watch.send("w-later", delay=0, epoch=0)
        await asyncio.sleep(60)
        assert isinstance(host.failures[0], UnknownEntries)
        assert {type(each) for each in host.failures} == {UnknownEntries}
        assert await hosts.storage.ledger.entries("w-later") == [later]
        assert (await hosts.storage.ledger.read("w-later")).state == "dead"
        assert host.calls.count("queue.send_start") - sent == 1
        assert watch_texts(hosts).count('{"v":1,"worker":"w-later","epoch":0}') == 1
        assert host.received[WATCH_QUEUE] < 100
        # Somebody who knows took it.
        await hosts.storage.ledger.wipe("w-later")
        await hosts.quiet()


async def test_the_sweep_goes_on_behind_an_adoption_that_fails() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        ledger = hosts.storage.ledger
        damaged = Insert("w-a", "worker", {"v": 1, "state": "open", "revision": "many"})
        await hosts.storage.driver.insert_entity(WORKERS, damaged)
        for worker in ("w-b", "w-c", "w-d"):
            await ledger.begin(worker, [LedgerEntry("adopt-w0", "adoption", {"worker": "w0"})])
        await asyncio.sleep(100)
        host.seam.inject(Fault(operation="ledger.mark_dead", kind="before", times=1))
        with pytest.raises(MalformedRecord):
            await host.inside(host.engine.sweep())
        assert await ledger.stale(await ledger.service_time()) == ["w-a", "w-b"]
        await asyncio.sleep(100)
        host.seam.inject(Fault(operation="ledger.stale", kind="before", times=1))
        with pytest.raises(StorageUnavailable):
            await host.inside(host.engine.sweep())
        with pytest.raises(MalformedRecord):
            await host.inside(host.engine.sweep())
        assert await ledger.stale(await ledger.service_time()) == ["w-a"]


WATCH_CALLS = ("queue.push_watch", "queue.send_watch", "queue.delete_watch")


@pytest.mark.parametrize("seconds", [12, 40])
@pytest.mark.parametrize(
    ("kind", "takeovers"),
    [pytest.param("before", 1, id="nothing-arrives"), pytest.param("after", 0, id="no-reply-comes-back")],
)
async def test_a_process_cut_off_from_the_watch_queue_alone_loses_its_run_once_or_keeps_it(
    kind: FaultKind, takeovers: int, seconds: float
) -> None:
    async with fleet(Teller(120, pause=0.5)) as hosts:
        owner = hosts.host("owner", queues=False).serve_queues(WORK_QUEUE)
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        worker = owner.engine.runtime.worker.id
        assert worker is not None
        owner.stop_serving()  # or it may receive the start message of its own rescue
        rescuer = hosts.host("rescuer")
        faults = [owner.seam.inject(Fault(operation=name, kind=kind)) for name in WATCH_CALLS]
        await asyncio.sleep(seconds)
        for fault in faults:
            fault.remove()
        await reader.whole()
        row = await hosts.finished(response_id)
        assert (row.status, row.generation) == ("completed", 1 + takeovers)
        assert [entry.host for entry in hosts.entries[response_id]] == [owner, rescuer][: 1 + takeovers]
        assert (owner.engine.runtime.worker.id == worker) == (not takeovers)
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view],
            entries=hosts.entered(response_id),
            lost_leases=takeovers,
            generation_of=hosts.generation_of(response_id),
        )
        rescuer.stop_serving()
        owner.serve_queues(WORK_QUEUE)
        again = (await owner.create(background()))["id"]
        assert (await hosts.finished(again, seconds=300)).status == "completed"
        assert [entry.host for entry in hosts.entries[again]] == [owner]
        rescuer.serve_queues(WATCH_QUEUE)
        await hosts.quiet()
