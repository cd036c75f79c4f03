"""Storage that answers badly for long, or slowly, or to all but one, while a run goes on and while it is taken over.

Nobody is told twice of one thing, no claim leads to two entries, and what was accepted ends.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.errors import ServerError, ServiceUnavailable
from storage.driver import EVENTS, PAYLOADS
from storage.errors import StorageError, StorageUnavailable
from storage.memory import MemoryDriver
from storage.seam import Fault, FaultKind, InjectedFault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, Reader, background, fleet, until
from tests.support.handlers import Teller, words_of
from tests.support.invariants import Stored, check_nothing_left, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop

MOMENTS: tuple[Moment, ...] = ("before", "after")
SHORT_REST: dict[str, Any] = {"idle_close_after": 0.5, "idle_end_after": 0.5}
"""Waiting for an idle process to end costs polls."""
STREAM = pytest.mark.parametrize("stream", [False, True])

MESSAGE_SECONDS = 40.0
"""When the message of a process that died comes back; sooner than in production, for waiting costs polls."""

EACH = 0.1
"""The part of all calls that fails before it is carried out, and again so many after."""
STORM_SECONDS = 40.0
CUT_OFF_SECONDS = 12.0
SLOW_SECONDS = 8.0
"""Longer than a watch message stays hidden; shorter than anybody's patience."""
GAVE_UP = ("attempts_exhausted", "crash_recovery")
"""Why a response may fail in a storm, beside `storage_error`: its messages or its worker came to an end."""


def storm(host: Host, seed: int) -> list[InjectedFault]:
    """Every fifth call of a host fails, of the pusher's too; half of them all the same are carried out."""
    host.seam._chance.seed(seed)
    return [host.seam.inject(Fault(operation="*", kind=moment, probability=EACH)) for moment in MOMENTS]


async def judged(
    hosts: Fleet, response_id: str, *readers: Reader | None, crashes: int = 0, lost_leases: int = 0
) -> Stored:
    """What must hold however often it was claimed."""
    entries = hosts.entries[response_id]
    stored = await check_response(
        hosts.storage,
        PRINCIPAL,
        response_id,
        seen=[reader.view for reader in readers if reader is not None],
        entries=len(entries),
        generation_of=hosts.generation_of(response_id),
        crashes=crashes,
        lost_leases=lost_leases,
    )
    generations = [entry.generation for entry in entries]
    assert len(set(generations)) == len(generations), f"V7: one claim led to two entries: {generations}"
    if stored.row.status == "completed":
        told = words_of(stored.snapshot or {})
        assert [word.partition("n")[2] for word in told] == [str(number) for number in range(len(told))], told
        assert len({word.partition("n")[0] for word in told}) == 1, f"two entries told it: {told}"
    return stored


async def attempted(asking: Awaitable[Any]) -> Any:
    """What it answers; None where it was refused."""
    try:
        return await asking
    except (StorageError, ServerError, ServiceUnavailable, HostGone, AssertionError):
        return None


@pytest.mark.parametrize("seed", range(5))
async def test_a_storm_over_all_hosts_and_a_death_in_it_cost_no_response_its_outcome(seed: int) -> None:
    """Every fifth call fails for as long as responses of all kinds are made, run, taken over and read."""
    async with fleet(Teller(6, pause=1.0)) as hosts:
        front = hosts.host(queues=False).serve_timer()
        workers = [hosts.host(eager_start=True), hosts.host(), hosts.host()]
        faults = [fault for number, host in enumerate(hosts.hosts) for fault in storm(host, 10 * seed + number)]
        readers: list[Reader] = []
        asked: list[asyncio.Task[Any]] = []
        for number in range(12):
            host = [front, *workers][number % 4]
            body = background() if number % 3 else {"input": "hi"}
            if number % 2:
                reader = await attempted(host.stream(body))
                readers += [reader] if reader else []
            else:
                asked.append(asyncio.ensure_future(attempted(host.create(body))))
            await asyncio.sleep(0.7)
        await workers[0].crash()
        await asyncio.sleep(STORM_SECONDS)
        for fault in faults:
            fault.remove()
        assert sum(fault.hits for fault in faults) > 20
        told = {answer["id"] for answer in await asyncio.gather(*asked) if answer}
        for reader in readers:
            if reader.frames and "response" in reader.events[0]:
                told.add(reader.events[0]["response"]["id"])
        ids = await hosts.ids()
        assert told <= set(ids), "R1: a client was told an id without a record"
        assert len(told) > 3
        for response_id in ids:  # those of refused requests, too, as far as they are on record
            await hosts.finished(response_id, seconds=900)
        await hosts.quiet()
        outcomes = []
        for response_id in await hosts.ids():
            of_it = [reader for reader in readers if reader.frames and response_id.encode() in reader.frames[0]]
            row = await hosts.row(response_id)
            assert row is not None
            if row.deleted and response_id not in told:  # the insert of its row was not answered, and it was given up
                await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
                continue
            # How often a live owner was suspected nobody counts; what counts is that each claim entered once.
            claims = row.generation
            heard = of_it if row.background else [reader for reader in of_it if reader.ended]
            stored = await judged(hosts, response_id, *heard, lost_leases=claims)
            outcomes.append(stored.row.status)
            if stored.row.status == "completed":
                assert len(words_of(stored.snapshot or {})) == 6
            else:
                assert stored.row.status == "failed", stored.row
                error = (stored.snapshot or {})["error"]
                gave_up = (error.get("additionalInfo") or {}).get("shutdown_reason")
                assert error["code"] == "storage_error" or gave_up in GAVE_UP, error
        assert "completed" in outcomes
        # Who died while it undid a refused acceptance may leave the log that it made, if its message was lost as well.
        await nothing_without_a_row(hosts, but_empty_logs=True)


async def nothing_without_a_row(hosts: Fleet, *, but_empty_logs: bool = False) -> None:
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    ids = await hosts.ids()
    for container in (EVENTS, PAYLOADS):
        left = [
            name
            for name, blob in driver.containers[container].items()
            if not any(response_id in name for response_id in ids)
            and not (but_empty_logs and container == EVENTS and not blob.data)
        ]
        assert not left, f"left in {container}: {left}"


@STREAM
@pytest.mark.parametrize("kind", ["before", "after", "hang"])
async def test_an_owner_alone_cut_off_from_storage_loses_its_run_and_no_more(kind: FaultKind, stream: bool) -> None:
    """The others reach storage: one of them goes on, and the owner is refused when its line is back (R4)."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        api = hosts.host(queues=False)
        owner = hosts.host()
        reader = await api.stream(background()) if stream else None
        response_id = await reader.response_id() if reader else (await api.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        rescuer = hosts.host()
        await asyncio.sleep(3)
        assert hosts.entries[response_id][0].host is owner
        outage = cut_off(owner, kind)
        await asyncio.sleep(CUT_OFF_SECONDS)
        assert [entry.host for entry in hosts.entries[response_id]] == [owner, rescuer]
        for fault in outage:
            assert fault.hits > 0
            fault.remove()
        owner.serve_queues()
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        assert row.generation == 2
        stored = await judged(hosts, response_id, reader, lost_leases=1)
        assert words_of(stored.snapshot or {}) == [f"e2n{number}" for number in range(40)]
        assert not owner.engine.runtime.running
        await hosts.quiet()


def cut_off(host: Host, kind: FaultKind) -> list[InjectedFault]:
    """None of its calls is answered any more, and it receives no message either."""
    host.stop_serving()
    if kind != "hang":
        return [host.seam.inject(Fault(operation="*", kind=kind))]
    # The pusher stands in for a thread here: it cannot be left hanging without all the others.
    return [
        host.seam.inject(Fault(operation="queue.push_watch", kind="before")),
        host.seam.inject(Fault(operation="[!q]*", kind="hang")),
    ]


# -- one call of the life of an owner, or of who takes over from it, fails or takes long ----------------------------


class TakeOver:
    """The first owner dies in the middle; the rescuer is `disturb`ed from there on."""

    def __init__(self, stream: bool) -> None:
        self.stream = stream

    async def calls(self) -> list[str]:
        """What an undisturbed rescuer does."""
        _, rescuer = await self.play(lambda rescuer: None)
        return list(rescuer.calls)

    async def play(self, disturb: Callable[[Host], None]) -> tuple[Stored, Host]:
        async with fleet(Teller(4, pause=0.5)) as hosts:
            hosts.visibility = MESSAGE_SECONDS
            api = hosts.host(queues=False)
            first = hosts.host()
            reader = await api.stream(background()) if self.stream else None
            response_id = await reader.response_id() if reader else (await api.create(background()))["id"]
            await until(lambda: hosts.entries[response_id])
            await asyncio.sleep(1.2)
            await first.crash()
            rescuer = hosts.host(**SHORT_REST).serve_timer()
            disturb(rescuer)
            row = await hosts.finished(response_id, seconds=300)
            assert row.status == "completed", row.status
            if reader is not None:
                await reader.whole()
            stored = await judged(hosts, response_id, reader, crashes=1)
            assert len(words_of(stored.snapshot or {})) == 4
            assert len(hosts.entries[response_id]) == 2
            await hosts.quiet()
            await nothing_without_a_row(hosts)
            return stored, rescuer


async def sweep(calls: list[str], play: Callable[[int], Awaitable[Any]]) -> None:
    """`play` with each call of a life in turn, and say which went wrong."""
    wrong = []
    for number, name in enumerate(calls, start=1):
        try:
            await play(number)
        except Exception as error:
            wrong.append(f"call {number}, {name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def slow_at(host: Host, call: int) -> None:
    """Let the host's call of that number take long before it reaches storage; other calls go on."""
    slowed = False

    async def slow(name: str, moment: Moment) -> None:
        nonlocal slowed
        if moment == "before" and len(host.calls) == call and not slowed:
            slowed = True
            await asyncio.sleep(SLOW_SECONDS)

    host.seam.hooks.append(slow)


@STREAM
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_fault_of_any_call_of_a_take_over_does_not_show(moment: Moment, stream: bool) -> None:
    take_over = TakeOver(stream)
    calls = await take_over.calls()
    assert {"ledger.mark_dead", "ledger.wipe", "row.replace"} <= set(calls)
    await sweep(calls, lambda number: take_over.play(lambda rescuer: rescuer.fail_at(number, moment)))


@STREAM
async def test_a_slow_call_of_a_take_over_is_only_a_delay(stream: bool) -> None:
    take_over = TakeOver(stream)
    await sweep(await take_over.calls(), lambda number: take_over.play(lambda rescuer: slow_at(rescuer, number)))


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("in_background", [False, True])
@STREAM
async def test_a_slow_call_of_a_life_is_only_a_delay(stream: bool, in_background: bool, eager: bool) -> None:
    """Slower than a watch message stays hidden: who pushes it lives, however long a call takes."""
    body = background() if in_background else {"input": "hi"}

    async def live(call: int) -> list[str]:
        async with fleet(Teller(3, pause=0.5)) as hosts:
            host = hosts.host(eager_start=eager, **SHORT_REST)
            hosts.host(queues=False).serve_timer().serve_queues("responses-watch")
            slow_at(host, call)
            reader = await host.stream(body) if stream else None
            response_id = await reader.response_id() if reader else (await host.create(body))["id"]
            row = await hosts.finished(response_id, seconds=300)
            assert row.status == "completed", row.status
            if reader is not None:
                await reader.whole()
            stored = await judged(hosts, response_id, reader)
            assert words_of(stored.snapshot or {}) == ["e1n0", "e1n1", "e1n2"]
            await hosts.quiet()
            await nothing_without_a_row(hosts)
            return list(host.calls)

    await sweep(await live(0), live)


async def test_a_storm_refuses_what_it_cannot_record() -> None:
    """R1: whoever was refused has started nothing that goes on."""
    async with fleet(Teller(2)) as hosts:
        host = hosts.host()
        hosts.host(queues=False).serve_timer()
        faults = storm(host, 7)
        refused = 0
        for _ in range(30):
            try:
                await host.create({"input": "hi"})
            except (StorageUnavailable, ServerError, ServiceUnavailable):
                refused += 1
        for fault in faults:
            fault.remove()
        assert 0 < refused < 30
        await hosts.quiet()
        for response_id in await hosts.ids():
            await judged(hosts, response_id)
        assert not host.engine.runtime.running
        await nothing_without_a_row(hosts)
