"""Workers that were thought dead and are not: storage refuses them, whatever they believe (R4, V5)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from resilience.rows import deletion_marker
from storage.driver import EVENTS, PAYLOADS
from storage.memory import MemoryDriver
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, until
from tests.support.handlers import Teller, entry_of, text_of
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

CLAIM = ("row.read", "ledger.begin", "queue.send_watch", "row.replace", "log.acquire")
"""The calls of a claim, in their order."""

STREAM = pytest.mark.parametrize("stream", [False, True])


async def ask(host: Host, stream: bool) -> str:
    body = background(stream=stream)
    if not stream:
        return str((await host.create(body))["id"])
    return await (await host.stream(body)).response_id()


def log_of(hosts: Fleet, response_id: str) -> dict[str, bytes]:
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    return {name: bytes(blob.data) for name, blob in driver.containers[EVENTS].items() if response_id in name}


@STREAM
@pytest.mark.parametrize("after_the_end", [False, True])
async def test_a_stopped_process_that_goes_on_changes_nothing(stream: bool, after_the_end: bool) -> None:
    """SIGSTOP of the owner, another takes over, SIGCONT."""
    teller = Teller(12, pause=0.5)
    async with fleet(teller) as hosts:
        api = hosts.host(queues=False)
        zombie = hosts.host()
        response_id = await ask(api, stream)
        await until(lambda: hosts.entries[response_id])
        watcher = await api.replay(response_id) if stream else None
        await asyncio.sleep(2)
        zombie.pause()
        rescuer = hosts.host()
        await until(lambda: len(hosts.entries[response_id]) == 2)
        assert hosts.entries[response_id][1].host is rescuer
        if after_the_end:
            await until_terminal(hosts, response_id)
            before = log_of(hosts, response_id), await hosts.row(response_id)
        else:
            await asyncio.sleep(1.2)
        zombie.resume()
        row = await hosts.finished(response_id)
        await asyncio.sleep(30)
        if after_the_end:
            assert (log_of(hosts, response_id), await hosts.row(response_id)) == before
        assert row.status == "completed"
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[watcher.view] if watcher else [],
            entries=hosts.entered(response_id),
            lost_leases=1,
            generation_of=hosts.generation_of(response_id),
        )
        assert {entry_of(event) for event in stored.events} <= {None, 1, 2}
        assert text_of(stored.snapshot or {}) == "".join(f"e2n{number} " for number in range(12))
        assert not zombie.engine.runtime.running
        await hosts.quiet()


async def until_terminal(hosts: Fleet, response_id: str) -> None:
    async def ended() -> bool:
        row = await hosts.row(response_id)
        return row is not None and row.status == "completed"

    await until(ended)
    await asyncio.sleep(1)  # its terminal frame


@pytest.mark.parametrize(("stream", "operation"), [(True, "log.append"), (True, "row.replace"), (False, "row.replace")])
async def test_a_write_that_was_under_way_for_minutes_is_refused(stream: bool, operation: str) -> None:
    """Only the write hangs: the process pushes its watch message, but its ledger was marked by hand of an adopter."""
    teller = Teller(6, pause=0.5)
    async with fleet(teller) as hosts:
        api = hosts.host(queues=False)
        zombie = hosts.host()
        response_id = await ask(api, stream)
        await until(lambda: hosts.entries[response_id])
        await asyncio.sleep(1)
        hang = zombie.seam.inject(Fault(operation=operation, kind="hang"))
        await asyncio.sleep(4)
        owner = (await hosts.row(response_id) or pytest.fail("no row")).owner
        rescuer = hosts.host(queues=False)
        await rescuer.inside(rescuer.engine.watch_message(f'{{"v":1,"worker":"{owner}"}}'))
        rescuer.serve_queues()
        zombie.stop_serving()
        await until(lambda: len(hosts.entries[response_id]) == 2)
        await until_terminal(hosts, response_id)
        before = log_of(hosts, response_id), await hosts.row(response_id)
        hang.remove()
        await asyncio.sleep(30)
        assert (log_of(hosts, response_id), await hosts.row(response_id)) == before
        await hosts.finished(response_id)
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            lost_leases=1,
            generation_of=hosts.generation_of(response_id),
        )
        await hosts.quiet()


@pytest.mark.parametrize(
    ("stream", "operation"),
    [
        *((stream, name) for stream in (True, False) for name in CLAIM if name != "log.acquire"),
        (True, "log.acquire"),  # without a stream there is no log
    ],
)
async def test_a_challenger_that_slept_in_its_claim_does_not_write(stream: bool, operation: str) -> None:
    """Each step of the claim, slept through until another has claimed, and while it writes."""
    teller = Teller(6, pause=0.5)
    async with fleet(teller) as hosts:
        api = hosts.host(queues=False)
        sleeper = hosts.host()
        asleep = sleeper.pause_at(operation)
        response_id = await ask_without_waiting(api, hosts, stream)
        await until(asleep.is_set, seconds=30)
        won_the_row = operation == "log.acquire"
        # Its watch message, its start message or the sweep bring another one.
        other = hosts.host().serve_timer()
        await until(lambda: hosts.entries[response_id], seconds=700)
        assert hosts.entries[response_id][0].host is other
        await asyncio.sleep(0.8)
        sleeper.resume()
        row = await hosts.finished(response_id)
        await asyncio.sleep(20)
        assert row.status == "completed"
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            lost_leases=int(won_the_row),
            generation_of=hosts.generation_of(response_id),
        )
        assert text_of(stored.snapshot or {}) == "".join(f"e1n{number} " for number in range(6))


async def ask_without_waiting(host: Host, hosts: Fleet, stream: bool) -> str:
    await (host.stream if stream else host.create)(background())
    (response_id,) = await hosts.ids()
    return response_id


async def test_many_rivals_for_one_dead_owner_make_one_owner() -> None:
    teller = Teller(4, pause=0.5)
    async with fleet(teller) as hosts:
        first = hosts.host()
        reader = await first.stream(background())
        response_id = await reader.response_id()
        await first.crash()
        rivals = [hosts.host(queues=False) for _ in range(8)]
        owner = (await hosts.row(response_id) or pytest.fail("no row")).owner
        text = f'{{"v":1,"worker":"{owner}"}}'
        await asyncio.gather(*(rival.inside(rival.engine.watch_message(text)) for rival in rivals))
        for rival in rivals:
            rival.serve_queues()
        await hosts.finished(response_id)
        assert len(hosts.entries[response_id]) == 2
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=2,
            crashes=1,
            generation_of=hosts.generation_of(response_id),
            seen=[reader.view],
        )
        assert stored.row.status == "completed"
        await hosts.quiet()


async def test_a_live_worker_that_was_declared_dead_is_displaced_by_its_own_process() -> None:
    """The only process there is: it takes a new id, and its run goes on under it."""
    teller = Teller(10, pause=0.5)
    async with fleet(teller) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        other = hosts.host(queues=False)
        owner = (await hosts.row(response_id) or pytest.fail("no row")).owner
        await other.inside(other.engine.watch_message(f'{{"v":1,"worker":"{owner}"}}'))
        view = await reader.whole_view()
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        assert row.owner != owner or len(hosts.entries[response_id]) == 1
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[view],
            entries=hosts.entered(response_id),
            lost_leases=1,
            generation_of=hosts.generation_of(response_id),
        )
        await hosts.quiet()


@STREAM
@pytest.mark.parametrize("marked", [False, True])
async def test_a_silent_owner_whose_response_was_taken_back_stops(marked: bool, stream: bool) -> None:
    """Its row went, or only marks its place: no write of the handler tells it, for it makes none."""
    running: list[ResponseContext] = []

    async def silent(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        yield {"type": "response.created", "response": {}}
        running.append(context)
        try:
            await asyncio.sleep(600)
        finally:
            running.remove(context)

    async with fleet(silent) as hosts:
        owner = hosts.host()
        response_id = await ask(owner, stream)
        await until(lambda: running)
        await asyncio.sleep(2)
        await take_back(hosts, response_id, marked)
        await asyncio.sleep(1)
        assert not running
        await hosts.quiet()
        assert response_id not in owner.engine.runtime.running
        assert hosts.entered(response_id) == 1
        assert not log_of(hosts, response_id)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("marked", [False, True])
async def test_an_owner_in_a_write_whose_response_was_taken_back_leaves_nothing_of_it(
    marked: bool, eager: bool
) -> None:
    async with fleet(Teller(3, pause=0.5, ballast=60_000, checkpoints=True)) as hosts:
        owner = hosts.host(queues=not eager, eager_start=eager)
        hang = owner.seam.inject(Fault(operation="payload.put", kind="hang", times=1))
        response_id = await ask(owner, False)
        await until(lambda: hang.hits)
        hosts.host()  # which gets the start message of an eager run, and leaves it to its owner
        await asyncio.sleep(3)
        await take_back(hosts, response_id, marked)
        await asyncio.sleep(3)
        hang.remove()
        await hosts.quiet()
        assert hosts.entered(response_id) == 1
        assert not await hosts.storage.driver.list_blobs(PAYLOADS, "")


async def take_back(hosts: Fleet, response_id: str, marked: bool) -> None:
    """Its row goes, or only marks its place from here."""
    row = await hosts.row(response_id)
    assert row is not None
    if marked:
        await hosts.storage.rows.replace(replace(deletion_marker(row), status="failed"))
    else:
        await hosts.storage.rows.delete(row)


async def test_a_foreground_run_declared_dead_tells_what_was_recorded() -> None:
    """Row 3: the adopter was faster; the client hears its outcome, and a GET says the same."""
    async with fleet(Teller(10, pause=0.5)) as hosts:
        host = hosts.host()
        reader = await host.stream({"input": "hi"})
        response_id = await reader.response_id()
        await asyncio.sleep(1)
        host.pause()
        other = hosts.host()
        await until(lambda: hosts.row(response_id), seconds=30)
        assert (await other.get(response_id))["status"] == "failed"
        host.resume()
        view = await reader.whole_view()
        stored = await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), seen=[view]
        )
        assert stored.row.status == "failed"
        assert await host.get(response_id) == reader.events[-1]["response"]
        await hosts.quiet()


async def test_an_owner_that_rolls_over_while_it_is_displaced_writes_nothing() -> None:
    """It makes and leases its next segment, but the row does not name it."""
    teller = Teller(40, pause=0.4)
    async with fleet(teller) as hosts:
        api = hosts.host(queues=False, segment_blocks=4)
        zombie = hosts.host(segment_blocks=4)
        response_id = await ask(api, True)
        await until(lambda: hosts.entries[response_id])
        hang = zombie.seam.inject(Fault(operation="log.create", kind="hang"))
        await until(lambda: hang.hits, seconds=60)
        zombie.pause()
        rescuer = hosts.host(segment_blocks=4)
        await until(lambda: len(hosts.entries[response_id]) == 2)
        await asyncio.sleep(1)
        zombie.resume()
        hang.remove()
        await hosts.finished(response_id)
        await asyncio.sleep(10)
        stored: Any = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=2,
            lost_leases=1,
            generation_of=hosts.generation_of(response_id),
        )
        assert len(stored.row.segments) > 3
        assert hosts.entries[response_id][1].host is rescuer


async def test_a_displaced_owner_is_refused_even_before_the_next_one_has_written() -> None:
    """The position is still the one it knows; the lease alone refuses it."""
    async with fleet(Teller(12, pause=0.5)) as hosts:
        api = hosts.host(queues=False)
        zombie = hosts.host()
        response_id = await ask(api, True)
        await asyncio.sleep(2)
        stopped = zombie.pause_at("log.append")
        await until(stopped.is_set)
        rescuer = hosts.host()
        waiting = rescuer.pause_at("log.append")
        await until(waiting.is_set)
        before = log_of(hosts, response_id)
        zombie.stop_serving()
        zombie.resume()
        await asyncio.sleep(1)
        assert log_of(hosts, response_id) == before
        assert response_id not in zombie.engine.runtime.running
        rescuer.resume()
        row = await hosts.finished(response_id)
        assert (row.status, row.generation) == ("completed", 2)
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=2,
            lost_leases=1,
            generation_of=hosts.generation_of(response_id),
        )


async def test_a_challenger_that_finds_the_lease_free_after_its_successor_left_does_not_write() -> None:
    """It slept between the row and the lease; meanwhile another claimed, wrote, and handed over (claim, step 5)."""
    options = ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=1)
    async with fleet(Teller(20, pause=0.5)) as hosts:
        api = hosts.host(queues=False)
        first = hosts.host()
        response_id = await ask(api, True)
        await asyncio.sleep(2)
        await first.crash()
        sleeper = hosts.host()
        asleep = sleeper.pause_at("log.acquire")
        await until(asleep.is_set, seconds=30)
        sleeper.stop_serving()
        successor = hosts.host(options=options)
        await until(lambda: len(hosts.entries[response_id]) == 2)
        await asyncio.sleep(2)
        successor.stop_serving()
        await successor.inside(successor.engine.drain())
        await successor.crash()
        before = log_of(hosts, response_id), (await hosts.row(response_id) or pytest.fail("no row")).generation
        sleeper.resume()
        await asyncio.sleep(3)
        after = log_of(hosts, response_id), (await hosts.row(response_id) or pytest.fail("no row")).generation
        assert after == before or after[1] > before[1], "it wrote with the lease alone, the row was another's"
        hosts.host()
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            crashes=2,
            lost_leases=1,
            generation_of=hosts.generation_of(response_id),
        )
