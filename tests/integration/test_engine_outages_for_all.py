"""Storage that is away for everybody: whoever could not be heard is not taken for dead because of it.

While it is away the watch messages of all workers become visible. When it is back, another process may receive them
before their owners get their next push through.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from storage.driver import WATCH_QUEUE
from storage.seam import Fault, Moment
from tests.support.engines import Fleet, Host, background, fleet, until
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

KIND = pytest.mark.parametrize("kind", ["row-1", "row-2", "foreground"])

SHORT = 9.0
"""Seconds: longer than a watch message is hidden, by more than it takes to receive one."""

LONG = 40.0
"""Seconds: longer than the owner's patience with an outcome."""

VERY_LONG = 75.0
"""Seconds: longer than the sweep's patience with a heartbeat."""

HANDLER = 200
"""Seconds, at least."""


@dataclass
class Busy:
    """A process with one run, and another one that has received nothing so far."""

    hosts: Fleet
    owner: Host
    other: Host
    worker: str
    response_id: str
    answer: Awaitable[Any] | None
    """The foreground response, once it is there."""

    async def ended(self, *, worker: str | None, entries: int = 1) -> None:
        """It ran to its end, under that worker id of its owner or under any."""
        if self.answer is not None:
            assert (await self.answer)["status"] == "completed"
        row = await self.hosts.finished(self.response_id, seconds=600)
        assert (row.status, self.hosts.entered(self.response_id)) == ("completed", entries)
        assert self.answer is not None or row.attempt == entries
        if worker is not None:
            assert self.owner.engine.runtime.worker.id == worker
        assert not self.other.failures


async def busy(hosts: Fleet, kind: str) -> Busy:
    resilient = kind == "row-1"
    owner = hosts.host("owner", resilient=resilient, queues=False)
    other = hosts.host("other", resilient=resilient, queues=False)
    answer: asyncio.Future[Any] | None = None
    if kind == "foreground":
        answer = asyncio.ensure_future(owner.create({"model": "m", "input": "hi"}))
    else:
        owner.serve_queues()
        await owner.create(background())
    await until(lambda: hosts.entries)
    owner.stop_serving()
    (response_id,) = hosts.entries
    worker = owner.engine.runtime.worker.id
    assert worker is not None
    return Busy(hosts, owner, other, worker, response_id, answer)


async def outage(*hosts: Host, seconds: float) -> None:
    """Storage is away, and back again."""
    faults = [host.seam.inject(Fault(operation="*", kind="before")) for host in hosts]
    await asyncio.sleep(seconds)
    for fault in faults:
        fault.remove()


async def one_reception(hosts: Fleet) -> Host:
    """A new process receives a watch message that has lain there for long, and no other."""
    await asyncio.sleep(30)
    host = hosts.host(queues=False).serve_queues(WATCH_QUEUE)
    await until(lambda: host.received[WATCH_QUEUE], "a watch message")
    host.stop_serving()
    await until(lambda: not host.invocations, "its end")
    return host


def adopted(host: Host) -> bool:
    return "ledger.mark_dead" in host.calls


@KIND
@pytest.mark.parametrize("seconds", [SHORT, LONG])
async def test_an_outage_for_all_is_nobodys_death(kind: str, seconds: float) -> None:
    async with fleet(Teller(HANDLER, pause=1)) as hosts:
        run = await busy(hosts, kind)
        await asyncio.sleep(4)
        await outage(run.owner, run.other, seconds=seconds)
        run.other.serve_queues(WATCH_QUEUE)  # whose first look comes before any push
        await until(lambda: run.other.received[WATCH_QUEUE], "the message that its owner could not push")
        await run.ended(worker=run.worker)
        assert not adopted(run.other)
        await hosts.quiet()


@pytest.mark.parametrize("pause", [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 4.0])
async def test_whoever_comes_first_after_an_outage_for_all_the_worker_lives(pause: float) -> None:
    async with fleet(Teller(HANDLER, pause=1)) as hosts:
        run = await busy(hosts, "foreground")
        await asyncio.sleep(4)
        await outage(run.owner, run.other, seconds=SHORT)
        await asyncio.sleep(pause)
        run.other.serve_queues(WATCH_QUEUE)
        await run.ended(worker=run.worker)
        assert not adopted(run.other)


@KIND
async def test_an_outage_for_all_before_the_first_push_is_nobodys_death(kind: str) -> None:
    async with fleet(Teller(HANDLER, pause=1)) as hosts:
        run = await busy(hosts, kind)
        assert not run.owner.seam.counts["queue.push_watch"]
        await outage(run.owner, run.other, seconds=SHORT)
        run.other.serve_queues(WATCH_QUEUE)
        await run.ended(worker=run.worker)
        assert not adopted(run.other)


@KIND
async def test_replies_that_all_come_back_late_are_nobodys_death(kind: str) -> None:
    """Silence: a push is answered once storage is back, with a refusal, and the one before was answered as well."""
    async with fleet(Teller(HANDLER, pause=1)) as hosts:
        run = await busy(hosts, kind)
        await asyncio.sleep(4)
        run.owner.pause()
        await asyncio.sleep(SHORT)
        run.other.serve_queues(WATCH_QUEUE)
        await until(lambda: run.other.received[WATCH_QUEUE], "the message that its owner could not push")
        run.owner.resume()
        await run.ended(worker=run.worker)
        assert not adopted(run.other)
        await hosts.quiet()


@KIND
async def test_a_ledger_that_cannot_be_told_of_the_new_message_in_time_is_nobodys_death(kind: str) -> None:
    """Pulses stand in for it: the message that was put back is received before the transaction."""
    async with fleet(Teller(HANDLER, pause=1)) as hosts:
        run = await busy(hosts, kind)
        await asyncio.sleep(4)
        await outage(run.owner, run.other, seconds=SHORT)
        mute = run.owner.seam.inject(Fault(operation="ledger.commit", kind="hang"))
        run.other.serve_queues(WATCH_QUEUE)
        await until(lambda: run.other.received[WATCH_QUEUE] >= 3, "the message comes back")
        mute.remove()
        await run.ended(worker=run.worker)
        assert not adopted(run.other)


@KIND
async def test_an_adopter_that_dies_when_it_has_put_a_message_back_takes_nobody_along(kind: str) -> None:
    async with fleet(Teller(HANDLER, pause=1)) as hosts:
        run = await busy(hosts, kind)
        await asyncio.sleep(4)
        await outage(run.owner, run.other, seconds=SHORT)
        dying = hosts.host("dying", resilient=kind == "row-1", queues=False).serve_queues(WATCH_QUEUE)
        die_when_put_back(hosts, dying)
        await until(lambda: dying.dead, "its death")
        run.other.serve_queues(WATCH_QUEUE)
        await until(lambda: adopted(run.other), "the adoption of the adopter")
        await run.ended(worker=run.worker)


def die_when_put_back(hosts: Fleet, host: Host) -> None:
    """Kill the host as soon as it has sent a message of another worker, before the reply is heard."""

    async def passed(name: str, moment: Moment) -> None:
        if (name, moment) == ("queue.send_watch", "after") and "ledger.read" in host.calls:
            hosts.kill(host)
            await host.passage()

    host.seam.hooks.append(passed)


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.0, 0.4, 0.8, 1.1, 2.0])
async def test_a_death_while_others_receive_is_believed_at_once(pause: float) -> None:
    async with fleet(Teller(20, pause=1)) as hosts:
        run = await busy(hosts, "row-1")
        run.other.serve_queues()
        await asyncio.sleep(pause)
        await run.owner.crash()
        died = asyncio.get_running_loop().time()
        await until(lambda: adopted(run.other), "the adoption")
        assert asyncio.get_running_loop().time() - died < 6.5
        assert run.other.received[WATCH_QUEUE] == 1
        # Its own message, with the ledger of its adoption, and no other.
        assert run.other.calls[: run.other.calls.index("ledger.mark_dead")].count("queue.send_watch") == 1
        await run.ended(worker=None, entries=2)


@pytest.mark.parametrize("entries", [1, 2], ids=["foreground", "row-1"])
async def test_a_death_that_nobody_could_receive_is_believed_the_second_time(entries: int) -> None:
    async with fleet(Teller(20, pause=1)) as hosts:
        run = await busy(hosts, "row-1" if entries == 2 else "foreground")
        await asyncio.sleep(4)
        await run.owner.crash()
        await asyncio.sleep(30)
        run.other.serve_queues()
        began = asyncio.get_running_loop().time()
        await until(lambda: adopted(run.other), "the adoption")
        assert 5 < asyncio.get_running_loop().time() - began < 7
        row = await hosts.finished(run.response_id)
        assert (row.status, hosts.entered(run.response_id)) == ("completed" if entries == 2 else "failed", entries)
        await hosts.quiet()


async def test_a_message_that_was_put_back_is_believed_however_late_it_is_received() -> None:
    async with fleet(Teller(20, pause=1)) as hosts:
        run = await busy(hosts, "row-1")
        await asyncio.sleep(4)
        await run.owner.crash()
        assert [adopted(await one_reception(hosts)) for _ in range(2)] == [False, True]
        hosts.host()
        await run.ended(worker=None, entries=2)


async def test_a_death_is_found_although_the_adopter_that_put_the_message_back_dies_as_well() -> None:
    async with fleet(Teller(20, pause=1)) as hosts:
        run = await busy(hosts, "row-1")
        await asyncio.sleep(4)
        await run.owner.crash()
        await asyncio.sleep(30)
        dying = hosts.host("dying", queues=False).serve_queues(WATCH_QUEUE)
        die_when_put_back(hosts, dying)
        await until(lambda: dying.dead, "its death")
        run.other.serve_queues()
        await run.ended(worker=None, entries=2)


@pytest.mark.parametrize("answered", [True, False])
async def test_a_death_in_an_outage_for_all_is_found_when_it_is_over(answered: bool) -> None:
    async with fleet(Teller(20, pause=1)) as hosts:
        run = await busy(hosts, "row-1")
        await asyncio.sleep(4)
        faults = [each.seam.inject(Fault(operation="*", kind="before")) for each in (run.owner, run.other)]
        if not answered:
            await until(lambda: faults[0].names["queue.push_watch"], "a push without an answer")
        await run.owner.crash()
        await asyncio.sleep(SHORT)
        faults[1].remove()
        run.other.serve_queues()
        over = asyncio.get_running_loop().time()
        await until(lambda: adopted(run.other), "the adoption")
        assert asyncio.get_running_loop().time() - over < 8
        row = await hosts.finished(run.response_id)
        assert (row.status, hosts.entered(run.response_id)) == ("completed", 2)


# -- the sweep --------------------------------------------------------------------------------------------------------


@KIND
async def test_the_sweep_takes_no_old_heartbeat_for_a_death_when_storage_was_away_for_all(kind: str) -> None:
    async with fleet(Teller(HANDLER, pause=1)) as hosts:
        run = await busy(hosts, kind)
        await outage(run.owner, run.other, seconds=VERY_LONG)
        before = await hosts.storage.ledger.service_time() - timedelta(seconds=run.other.settings.stale_after)
        assert await hosts.storage.ledger.stale(before) == [run.worker]
        await run.other.inside(run.other.engine.sweep())
        assert not adopted(run.other)
        assert (await hosts.storage.ledger.read(run.worker)).state == "open"
        if kind != "row-1":  # an outage that long is beyond the patience of what a resilient run has to store meanwhile
            await run.ended(worker=run.worker)


async def test_the_sweep_finds_a_death_the_second_time_it_looks() -> None:
    async with fleet(Teller(20, pause=1)) as hosts:
        run = await busy(hosts, "foreground")
        await run.owner.crash()
        await asyncio.sleep(VERY_LONG)
        began = asyncio.get_running_loop().time()
        await run.other.inside(run.other.engine.sweep())
        assert adopted(run.other)
        assert 5 < asyncio.get_running_loop().time() - began < 15
        assert (await hosts.finished(run.response_id)).status == "failed"
