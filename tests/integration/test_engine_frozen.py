"""A process stopped in the middle of a claim or of a ledger transaction, which goes on when others have acted (R4).

Every storage call is such a place; which there are is taken from an undisturbed life.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from storage.driver import EVENTS, WORKERS
from storage.memory import MemoryDriver
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, Reader, background, fleet, until
from tests.support.handlers import Teller, words_of
from tests.support.invariants import Stored, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop

MOMENTS: tuple[Moment, ...] = ("before", "after")
MESSAGE_SECONDS = 40.0
"""When the message of a process that sleeps comes back; sooner than in production, for waiting costs polls."""

STREAM = pytest.mark.parametrize("stream", [False, True])
MOMENT = pytest.mark.parametrize("moment", MOMENTS)


@dataclass(frozen=True)
class Step:
    """A moment of a storage call: the number of the call (from 1), its name; a call that was refused has no `after`."""

    number: int
    name: str
    moment: Moment


def at_each_step(host: Host, act: Callable[[Step], Awaitable[None]]) -> None:
    """`act` at each step of the host."""
    numbers: dict[asyncio.Task[Any] | None, int] = {}

    async def passed(name: str, moment: Moment) -> None:
        task = asyncio.current_task()
        if moment == "before":
            numbers[task] = len(host.calls)
        await act(Step(numbers[task], name, moment))

    host.seam.hooks.append(passed)


def freeze_at(host: Host, wanted: Step) -> asyncio.Event:
    """Stop the host at that step."""
    frozen = asyncio.Event()

    async def stop(step: Step) -> None:
        if step == wanted and not frozen.is_set():
            frozen.set()
            host.pause()
            await host.passage()

    at_each_step(host, stop)
    return frozen


def stored_of(hosts: Fleet, response_id: str) -> dict[str, Any]:
    """Log and row, as they are."""
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    found: dict[str, Any] = {
        name: bytes(blob.data) for name, blob in driver.containers[EVENTS].items() if response_id in name
    }
    rows = driver.tables["responses"]
    return found | {key: entity.etag for (_, key), entity in rows.items() if response_id in key}


async def judged(
    hosts: Fleet, response_id: str, *readers: Reader | None, crashes: int = 0, lost_leases: int = 0
) -> Stored:
    return await check_response(
        hosts.storage,
        PRINCIPAL,
        response_id,
        seen=[reader.view for reader in readers if reader is not None],
        entries=len(hosts.entries[response_id]),
        generation_of=hosts.generation_of(response_id),
        crashes=crashes,
        lost_leases=lost_leases,
    )


# -- a claim that slept ----------------------------------------------------------------------------------------------


async def orphaned(hosts: Fleet, stream: bool) -> tuple[str, Reader | None]:
    """A response whose owner died in the middle."""
    api = hosts.host(queues=False)
    first = hosts.host()
    reader = await api.stream(background()) if stream else None
    response_id = await reader.response_id() if reader else (await api.create(background()))["id"]
    await until(lambda: hosts.entries[response_id])
    await asyncio.sleep(1.2)
    await first.crash()
    return response_id, reader


async def steps_of_a_take_over(stream: bool) -> list[Step]:
    """What a process does from the watch message to the handler."""
    steps: list[Step] = []
    teller = Teller(6, pause=0.5)

    def handler(request: Json, context: Any, signal: asyncio.Event) -> Any:
        entered.append(len(steps))
        return teller(request, context, signal)

    async def note(step: Step) -> None:
        steps.append(step)

    entered: list[int] = []
    async with fleet(handler) as hosts:
        await orphaned(hosts, stream)
        at_each_step(hosts.host(), note)
        await until(lambda: len(entered) == 2)
        return steps[: entered[1]]


@STREAM
@pytest.mark.parametrize("until_the_end", [False, True])
async def test_a_take_over_that_slept_at_any_call_is_refused(stream: bool, until_the_end: bool) -> None:
    """Another has taken over meanwhile; the sleeper goes on while that one writes, or after its end."""
    steps = await steps_of_a_take_over(stream)
    names = {step.name for step in steps if step.moment == "after"}
    assert {"ledger.read", "ledger.wipe", "row.replace"} <= names
    assert not stream or {"log.break", "log.acquire", "log.read"} <= names
    wrong = []
    for step in steps:
        try:
            await sleep_through(step, stream, until_the_end)
        except Exception as error:
            wrong.append(f"{step}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


async def sleep_through(step: Step, stream: bool, until_the_end: bool) -> None:
    async with fleet(Teller(6, pause=0.5)) as hosts:
        hosts.visibility = MESSAGE_SECONDS
        response_id, reader = await orphaned(hosts, stream)
        sleeper = hosts.host()
        frozen = freeze_at(sleeper, step)
        await until(frozen.is_set)
        await asyncio.sleep(0.1)
        assert len(hosts.entries[response_id]) == 1
        other = hosts.host().serve_timer()
        await until(lambda: len(hosts.entries[response_id]) == 2, seconds=hosts.visibility + 100)
        assert hosts.entries[response_id][1].host is other
        await asyncio.sleep(1.2)
        if until_the_end:
            await hosts_end(hosts, response_id)
        before = stored_of(hosts, response_id)
        sleeper.resume()
        row = await hosts.finished(response_id)
        await asyncio.sleep(20)
        if until_the_end:
            assert stored_of(hosts, response_id) == before, "who slept wrote"
        assert row.status == "completed"
        won_before_it_slept = hosts.entries[response_id][1].generation > 2
        stored = await judged(hosts, response_id, reader, crashes=1, lost_leases=int(won_before_it_slept))
        # The sleeper may enter the handler after all; who breaks the lease of a living owner costs that one an attempt.
        entries = hosts.entries[response_id]
        winner = max(range(len(entries)), key=lambda index: entries[index].generation)
        assert entries[winner].host is other
        assert words_of(stored.snapshot or {}) == [f"e{winner + 1}n{number}" for number in range(6)]
        assert not sleeper.engine.runtime.running
        await hosts.quiet()


async def hosts_end(hosts: Fleet, response_id: str) -> None:
    async def ended() -> bool:
        row = await hosts.row(response_id)
        return row is not None and row.status == "completed"

    await until(ended)
    await asyncio.sleep(1)  # its terminal frame


# -- a ledger transaction that slept --------------------------------------------------------------------------------


KINDS = {
    "c1": {"background": False, "stream": False},
    "c2": {"background": False, "stream": True},
    "c3": {"background": True, "stream": False},
    "c4": {"background": True, "stream": True},
}


def open_runs(hosts: Fleet) -> set[str]:
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    return {key for _, key in driver.tables[WORKERS] if key.startswith("run-")}


class HeldBack:
    """The next ledger transaction of a host (or the reply to it) is held back, and the host with it."""

    def __init__(self, host: Host, moment: Moment) -> None:
        self.reached = asyncio.Event()
        self._host = host
        self._moment = moment
        host.seam.hooks.append(self._stop)

    async def _stop(self, name: str, moment: Moment) -> None:
        if (name, moment) == ("ledger.commit", self._moment) and not self.reached.is_set():
            self.reached.set()
            self._host.pause()
            await self._host.passage()


@MOMENT
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("after_its_end", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_opening_that_slept_while_its_worker_was_taken_over_neither_hides_nor_doubles_its_run(
    kind: str, after_its_end: bool, eager: bool, moment: Moment
) -> None:
    """The transaction with the opening is held back (or its reply is); the worker is adopted, and then goes on."""
    async with fleet(Teller(6, pause=0.5)) as hosts:
        api = hosts.host(queues=False)
        owner = hosts.host(eager_start=eager)
        first = (await owner.create(background()))["id"]
        await until(lambda: hosts.entries[first])
        await asyncio.sleep(0.7)
        held = HeldBack(owner, moment)
        opened_before = open_runs(hosts)
        body = {"input": "hi", "background": KINDS[kind]["background"]}
        asker = owner if eager or not KINDS[kind]["background"] else api
        asking: asyncio.Task[Any] = asyncio.ensure_future(
            asker.stream(body) if KINDS[kind]["stream"] else asker.create(body)
        )
        await until(held.reached.is_set)
        await asyncio.sleep(0.1)
        assert len(open_runs(hosts) - opened_before) == (moment == "after"), "the opening is not on board"
        rescuer = hosts.host().serve_timer()
        await until(lambda: len(hosts.entries[first]) == 2)
        assert hosts.entries[first][1].host is rescuer
        if after_its_end:
            await hosts_end(hosts, first)
            await asyncio.sleep(10)
        owner.resume()
        answer = await asking
        reader = answer if isinstance(answer, Reader) else None
        if reader is not None:
            await reader.whole()
        response_id = await reader.response_id() if reader else answer["id"]
        row = await hosts.finished(response_id, seconds=900)
        await hosts.finished(first)
        await hosts.quiet()
        assert sorted(await hosts.ids()) == sorted([first, response_id])
        await judged(hosts, first, lost_leases=1)
        stored = await judged(hosts, response_id, reader, lost_leases=int(row.generation > 1))
        if KINDS[kind]["background"]:
            assert row.status == "completed"
            entries = {word.partition("n")[0] for word in words_of(stored.snapshot or {})}
            assert entries == {f"e{len(hosts.entries[response_id])}"}
        else:  # its adopter may have recorded its end before it went on: then its client hears of that
            assert row.status == "completed" or moment == "after"
            told = reader.events[-1]["response"] if reader else answer
            assert told == await rescuer.get(response_id)


@MOMENT
@pytest.mark.parametrize("stream", [False, True])
async def test_an_owner_that_dies_after_such_an_opening_is_still_found(stream: bool, moment: Moment) -> None:
    """What it claimed since is open in a ledger that somebody looks at; not only its message brings it back."""
    async with fleet(Teller(30, pause=0.5)) as hosts:
        api = hosts.host(queues=False)
        owner = hosts.host()
        first = (await owner.create(background()))["id"]
        await until(lambda: hosts.entries[first])
        await asyncio.sleep(0.7)
        held = HeldBack(owner, moment)
        await (api.stream if stream else api.create)(background())
        (response_id,) = [each for each in await hosts.ids() if each != first]
        await until(held.reached.is_set)
        adopter = hosts.host(queues=False).serve_queues("responses-watch")
        await asyncio.sleep(10)
        assert "ledger.wipe" in adopter.calls
        owner.resume()
        await until(lambda: hosts.entries[response_id], seconds=30)
        await asyncio.sleep(1)
        assert hosts.entries[response_id][0].host is owner
        await owner.crash()
        hosts.host()
        for each in (first, response_id):
            assert (await hosts.finished(each, seconds=90)).status == "completed"
        await judged(hosts, response_id, crashes=1, lost_leases=1)
        await hosts.quiet()
