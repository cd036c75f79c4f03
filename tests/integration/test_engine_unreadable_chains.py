"""A chain that cannot be read, for once or for good, keeps no response from its end (R5, R14)."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol import jsonio
from resilience.chain import MAX_PENDING
from resilience.options import ResponsesServerOptions
from storage.chains import ChainRow, Turn
from storage.errors import MalformedRecord, StorageRejected
from storage.rows import ResponseRow
from storage.seam import Fault, InjectedFault
from tests.support.engines import Fleet, Host, background, fleet, key_of, start_message, until
from tests.support.handlers import Teller, text_of
from tests.support.turns import Turns, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
ATTEMPTS = 5


def rejected() -> Exception:
    return StorageRejected(409)


def malformed() -> Exception:
    return MalformedRecord("damaged")


FOR_GOOD = pytest.mark.parametrize("error", [rejected, malformed])


def fail(host: Host, operation: str, error: Callable[[], Exception], times: int | None = None) -> InjectedFault:
    return host.seam.inject(Fault(operation=operation, kind="before", error=error, times=times))


async def snapshot_of(hosts: Fleet, row: ResponseRow) -> dict[str, Any]:
    assert row.snapshot is not None
    snapshot: dict[str, Any] = jsonio.loads(await hosts.storage.payloads.get(row.snapshot))
    return snapshot


async def status_of(hosts: Fleet, response_id: str) -> str:
    row = await hosts.row(response_id)
    assert row is not None
    return row.status


def reason_of(snapshot: dict[str, Any]) -> str:
    """Why the server ended it."""
    return str(snapshot["error"].get("additionalInfo", {}).get("shutdown_reason", ""))


async def orphan(hosts: Fleet) -> str:
    """A response with a snapshot whose worker has died."""
    api, worker = hosts.host(queues=False), hosts.host()
    response_id = str((await api.create(background()))["id"])

    async def checkpointed() -> bool:
        row = await hosts.row(response_id)
        return row is not None and row.snapshot is not None

    await until(checkpointed)
    await worker.crash()
    return response_id


@FOR_GOOD
async def test_a_chain_that_nobody_can_read_ends_a_response_with_its_attempts(error: Callable[[], Exception]) -> None:
    async with fleet(Teller(6, pause=1, checkpoints=True)) as hosts:
        response_id = await orphan(hosts)
        fail(hosts.host(), "chain.read", error)
        row = await hosts.finished(response_id)
        assert (row.status, row.attempt, hosts.entered(response_id)) == ("failed", ATTEMPTS + 1, 1)
        snapshot = await snapshot_of(hosts, row)
        assert reason_of(snapshot) == "attempts_exhausted"
        assert text_of(snapshot), "what was persisted stays"


async def test_a_chain_that_one_worker_cannot_read_is_for_another() -> None:
    """Of a newer version, say."""
    async with fleet(Teller(6, pause=1, checkpoints=True)) as hosts:
        response_id = await orphan(hosts)
        older = hosts.host()
        fault = fail(older, "chain.read", malformed)
        await until(lambda: fault.hits)
        older.stop_serving()
        hosts.host()
        assert (await hosts.finished(response_id)).status == "completed"


class Chained:
    """A turn that runs at `worker`, and one that waits behind it."""

    def __init__(self, hosts: Fleet, turns: Turns) -> None:
        self.hosts = hosts
        self.turns = turns

    async def begin(self) -> None:
        self.api = self.hosts.host(options=STEERABLE, queues=False)
        self.worker = self.hosts.host(options=STEERABLE)
        self.first = (await self.api.create(background("first", conversation="talk")))["id"]
        await until(lambda: self.turns.entered("first"))
        # It changes the chain: what the first turn knows of it is too old for its end.
        self.second = (await self.api.create(background("second", conversation="talk")))["id"]
        self.turns.gates["second"].set()

    async def chain(self) -> ChainRow:
        return await self.hosts.storage.chains.read(key_of(self.first))

    async def second_follows(self, *, seconds: float = 120) -> None:
        """It runs, after the first turn, and nothing is left to be done."""
        assert (await self.hosts.finished(self.second, seconds=seconds)).status == "completed"
        firsts = [span for span in self.turns.spans if span[0] == self.first]
        (second,) = [span for span in self.turns.spans if span[0] == self.second]
        assert all(ended is not None and ended < second[1] for _, _, ended in firsts)
        chain = await self.chain()
        assert (chain.active, chain.pending, chain.ending) == (None, (), "")
        await self.hosts.quiet()


@FOR_GOOD
async def test_a_turn_keeps_its_outcome_though_its_chain_cannot_be_read_for_once(
    error: Callable[[], Exception],
) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        fault = fail(chained.worker, "chain.read", error, times=1)
        turns.gates["first"].set()
        row = await hosts.finished(chained.first)
        assert (row.status, fault.hits) == ("completed", 1)
        await chained.second_follows()


@FOR_GOOD
async def test_a_turn_that_ended_without_its_chain_leaves_it_to_whoever_can_read_it(
    error: Callable[[], Exception],
) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        fail(chained.worker, "chain.read", error)
        turns.gates["first"].set()
        row = await hosts.finished(chained.first)
        assert row.status == "completed"
        assert text_of(await snapshot_of(hosts, row)) == "answer to first"
        chained.worker.stop_serving()
        await asyncio.sleep(30)
        assert not turns.entered("second")
        hosts.host(options=STEERABLE)
        await chained.second_follows()


@pytest.mark.parametrize("operation", ["row.replace", "queue.send_start"])
async def test_a_death_behind_an_end_without_its_chain_strands_no_next_turn(operation: str) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        worker = chained.worker
        fail(worker, "chain.read", malformed)
        ended: list[str] = []

        async def die(name: str, moment: str) -> None:
            if (name, moment) == ("row.replace", "after"):
                ended.append(name)
            if ended and (name, moment) == (operation, "after" if name == "row.replace" else "before"):
                hosts.kill(worker)
                await worker.passage()

        worker.seam.hooks.append(die)
        turns.gates["first"].set()
        await until(lambda: worker.dead)
        hosts.host(options=STEERABLE)
        assert (await hosts.finished(chained.first)).status == "completed"
        await chained.second_follows()


async def test_a_recovered_turn_whose_chain_cannot_be_read_ends_and_the_next_one_follows_when_it_can() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        await chained.worker.crash()
        other = hosts.host(options=STEERABLE)
        fault = fail(other, "chain.read", malformed)
        row = await hosts.finished(chained.first)
        assert (row.status, row.attempt, hosts.entered(chained.first)) == ("failed", ATTEMPTS + 1, 1)
        fault.remove()
        turns.spans = [(who, began, began) for who, began, _ in turns.spans]  # its process is dead
        await chained.second_follows()


@FOR_GOOD
async def test_a_turn_whose_chain_could_not_be_read_for_all_its_messages_fails(
    error: Callable[[], Exception],
) -> None:
    """Nobody knows whether it was its time; a poison message ends it all the same (R5)."""
    turns = Turns()
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=False)
        response_id = (await api.create(background("first", conversation="talk")))["id"]
        worker = hosts.host(options=STEERABLE)
        fail(worker, "chain.read", error)
        row = await hosts.finished(response_id, seconds=2_000)
        assert worker.poisoned
        assert (row.status, hosts.entered(response_id)) == ("failed", 0)
        assert reason_of(await snapshot_of(hosts, row)) == "attempts_exhausted"


async def test_a_waiting_turn_whose_message_was_poisoned_goes_on_waiting() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        await chained.worker.inside(chained.worker.engine.poison_message(start_message(chained.second)))
        turns.gates["first"].set()
        await chained.second_follows()


async def test_a_turn_is_cancelled_though_its_chain_cannot_be_read_and_the_next_one_follows_when_it_can() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        chained = Chained(hosts, turns)
        await chained.begin()
        faults = [fail(host, "chain.read", malformed) for host in (chained.api, chained.worker)]
        assert (await chained.api.cancel(chained.first))["status"] == "cancelled"
        await asyncio.sleep(30)
        assert await status_of(hosts, chained.second) == "queued"
        for fault in faults:
            fault.remove()
        await chained.second_follows()


async def test_a_foreground_turn_is_told_its_outcome_though_its_chain_cannot_be_read() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE)
        answer = api.spawn(api.create({"input": "first", "conversation": "talk"}), "asking")
        await until(lambda: turns.entered("first"))
        second = (await api.create(background("second", conversation="talk")))["id"]
        fault = fail(api, "chain.read", malformed)
        turns.gates["second"].set()
        turns.gates["first"].set()
        response = await answer
        assert (response["status"], text_of(response)) == ("completed", "answer to first")
        fault.remove()
        assert (await hosts.finished(second)).status == "completed"
        await hosts.quiet()


async def test_a_foreground_turn_whose_worker_died_fails_though_its_chain_cannot_be_read() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api, victim = hosts.host(options=STEERABLE), hosts.host(options=STEERABLE, queues=False)
        victim.spawn(victim.create({"input": "first", "conversation": "talk"}), "asking")
        await until(lambda: turns.entered("first"))
        (first,) = hosts.entries
        second = (await api.create(background("second", conversation="talk")))["id"]
        fault = fail(api, "chain.read", malformed)
        turns.gates["second"].set()
        await victim.crash()

        async def failed() -> bool:
            row = await hosts.row(first)
            return row is not None and row.status == "failed"

        await until(failed)
        fault.remove()
        assert (await hosts.finished(second)).status == "completed"
        await hosts.quiet()


class Stuck:
    """A conversation whose chain names a turn that has ended, and whose handler is gone: no message leads there."""

    def __init__(self, hosts: Fleet) -> None:
        self.hosts = hosts

    async def begin(self, options: ResponsesServerOptions) -> Host:
        """A host that can read the chain."""
        worker = self.hosts.host(options=options)
        self.first = (await worker.create(background("first", conversation="talk")))["id"]
        row = await self.hosts.finished(self.first)
        await self.hosts.storage.rows.replace(replace(row, owner=""))
        chain = await self.hosts.storage.chains.read(key_of(self.first))
        await self.hosts.storage.chains.replace(replace(chain, active=Turn(self.first, 1, foreground=False)))
        return worker


async def test_a_turn_that_has_ended_locks_no_conversation() -> None:
    async with fleet(Turns()) as hosts:
        stuck = Stuck(hosts)
        worker = await stuck.begin(ResponsesServerOptions(resilient_background=True))
        second = await worker.create(background("second", conversation="talk"))
        assert (await hosts.finished(second["id"])).status == "completed"


async def test_turns_that_wait_for_one_that_has_ended_begin_when_there_is_no_room_for_more() -> None:
    async with fleet(Turns()) as hosts:
        stuck = Stuck(hosts)
        worker = await stuck.begin(STEERABLE)
        waiting = [(await worker.create(background(str(n), conversation="talk")))["id"] for n in range(MAX_PENDING)]
        await asyncio.sleep(100)
        assert {await status_of(hosts, each) for each in waiting} == {"queued"}
        last = (await worker.create(background("last", conversation="talk")))["id"]
        for each in (*waiting, last):
            assert (await hosts.finished(each)).status == "completed"
