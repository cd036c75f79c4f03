"""Start messages that were faster than the row: a slow acceptance is run, one that died leaves nothing (R1, R2, V10).

A message is received, finds no row for `missing_row_patience` seconds, and is sent once more, to be received much
later. What is not on record then never will be.
"""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from resilience.options import ResponsesServerOptions
from storage.driver import CONTAINERS, TABLES
from storage.errors import StorageUnavailable
from storage.memory import MemoryDriver
from storage.rows import ResponseRow
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, background, fleet, key_of, until
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_left, check_response
from tests.support.turns import Turns, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)

SLOW = 45.0
"""Seconds of an insert that is slower than the patience with a missing row."""

LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""

UNTIL_LATE = 400.0
"""Seconds within which the second message is received."""


async def only_id(hosts: Fleet) -> str:
    """The id of the one response there is, as soon as its row stands."""
    found = await until(hosts.ids, "the row", UNTIL_LATE)
    assert len(found) == 1
    return str(found[0])


async def check_completed(hosts: Fleet, response_id: str) -> ResponseRow:
    """It ran, once, and nothing waits for anything any more."""
    row = await hosts.finished(response_id, seconds=UNTIL_LATE)
    assert (row.status, hosts.entered(response_id)) == ("completed", 1)
    await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)
    await hosts.quiet()
    return row


def beside_rows(hosts: Fleet, *, but: str = "") -> list[str]:
    """All blobs, but those of that response."""
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    return [name for container in CONTAINERS for name in driver.containers[container] if not but or but not in name]


@pytest.mark.parametrize("text", ["hi", LARGE], ids=["inline", "large"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("eager", [False, True])
async def test_an_acceptance_slower_than_the_patience_with_its_row_is_run(eager: bool, stream: bool, text: str) -> None:
    async with fleet(Teller(2)) as hosts:
        api = hosts.host(eager_start=eager, queues=False)
        hosts.host()
        api.seam.inject(Fault(operation="row.insert", kind="delay", delay=SLOW, times=1))
        if stream:
            reader = await api.stream(background(text))
            response_id = await only_id(hosts)
        else:
            response_id = (await api.create(background(text)))["id"]
        await check_completed(hosts, response_id)
        if stream:
            assert (await reader.whole_view()).ended
            assert reader.types[-1] == "response.completed"


@pytest.mark.parametrize("seconds", [60.0, 120.0])
@pytest.mark.parametrize("eager", [False, True])
async def test_a_response_whose_acceptor_was_frozen_before_its_row_is_run(eager: bool, seconds: float) -> None:
    """With eager start the acceptor is declared dead meanwhile: its row names a worker whose ledger is gone."""
    async with fleet(Teller(2)) as hosts:
        api = hosts.host(eager_start=eager, queues=False)
        hosts.host()
        frozen = api.pause_at("row.insert")
        accepting = asyncio.ensure_future(api.create(background(stream=True)))
        await frozen.wait()
        await asyncio.sleep(seconds)
        api.resume()
        with suppress(StorageUnavailable):
            await accepting
        response_id = await only_id(hosts)
        assert (await hosts.finished(response_id, seconds=UNTIL_LATE)).status == "completed"
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
        await hosts.quiet()


async def die_behind_a_late_insert(host: Host, body: dict[str, Any], **options: Any) -> None:
    """Accept, with a row so late that its message was given up; die before another message is sent."""
    host.seam.inject(Fault(operation="row.insert", kind="delay", delay=SLOW, times=1))
    host.seam.inject(Fault(operation="queue.send_start", kind="hang", after=1))
    accepting = asyncio.ensure_future(host.create(body, **options))
    await asyncio.sleep(SLOW + 1)
    assert not accepting.done()
    await host.crash()
    with pytest.raises(HostGone):
        await accepting


@pytest.mark.parametrize("chain", [{}, {"conversation": "conv_1"}], ids=["alone", "conversation"])
async def test_a_row_whose_acceptor_died_right_behind_its_late_insert_is_run(chain: dict[str, Any]) -> None:
    async with fleet(Turns()) as hosts:
        api, other = hosts.host(queues=False), hosts.host()
        await die_behind_a_late_insert(api, background("first", **chain))
        await check_completed(hosts, await only_id(hosts))
        following = await other.create(background("second", **chain))
        assert (await hosts.finished(following["id"])).status == "completed"


async def test_a_row_whose_acceptor_died_right_behind_its_late_insert_is_answered_with_under_its_key() -> None:
    async with fleet(Teller(2)) as hosts:
        api, other = hosts.host(queues=False), hosts.host()
        await die_behind_a_late_insert(api, background(), idempotency_key="k")
        made = await other.create(background(), idempotency_key="k")
        assert await hosts.ids() == [made["id"]]
        await check_completed(hosts, made["id"])


async def test_a_keyed_acceptance_that_failed_behind_its_late_insert_is_run() -> None:
    async with fleet(Teller(2)) as hosts:
        api, other = hosts.host(queues=False), hosts.host()
        api.seam.inject(Fault(operation="row.insert", kind="delay", delay=SLOW, times=1))
        api.seam.inject(Fault(operation="queue.send_start", kind="before", after=1, times=1))
        with pytest.raises(StorageUnavailable):
            await api.create(background(), idempotency_key="k")
        made = await other.create(background(), idempotency_key="k")
        assert await hosts.ids() == [made["id"]]
        await check_completed(hosts, made["id"])


class Overlap:
    """Who cleans up behind a missing row was held up between its look and the deletion; there the row is inserted.

    What the row names was listed before.
    """

    def __init__(self, acceptor: Host, cleaner: Host) -> None:
        self._looked = asyncio.Event()
        self._inserted = asyncio.Event()
        acceptor.seam.hooks.append(self._insert)
        cleaner.seam.hooks.append(self._clean_up)

    async def _clean_up(self, name: str, moment: Moment) -> None:
        if name in ("log.delete", "payload.delete") and moment == "before":
            self._looked.set()
            await self._inserted.wait()

    async def _insert(self, name: str, moment: Moment) -> None:
        if (name, moment) == ("row.insert", "before"):
            await self._looked.wait()
        elif (name, moment) == ("row.insert", "after"):
            self._inserted.set()


async def test_a_log_that_was_cleaned_up_too_early_is_made_anew() -> None:
    async with fleet(Teller(3)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host()
        Overlap(api, worker)
        response_id = (await api.create(background(stream=True)))["id"]
        await check_completed(hosts, response_id)
        replayed = await api.replay(response_id)
        await replayed.whole()
        assert replayed.types[-1] == "response.completed"
        assert worker.failures == []


@pytest.mark.parametrize("eager", [False, True])
async def test_a_reader_of_a_log_that_was_cleaned_up_too_early_waits_until_it_is_made_anew(eager: bool) -> None:
    async with fleet(Teller(3)) as hosts:
        api, worker = hosts.host(queues=False, eager_start=eager), hosts.host()
        Overlap(api, worker)
        reader = await api.stream(background())
        view = await reader.whole_view()
        response_id = await only_id(hosts)
        await hosts.finished(response_id)
        entries = hosts.entered(response_id)
        await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=entries, lost_leases=int(eager), seen=[view]
        )
        assert reader.types[-1] == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_whose_request_was_cleaned_up_too_early_fails(stream: bool) -> None:
    async with fleet(Teller(3)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host()
        Overlap(api, worker)
        made = await api.create(background(LARGE, stream=stream))
        row = await hosts.finished(made["id"], seconds=UNTIL_LATE)
        assert (row.status, row.error_code, hosts.entered(made["id"])) == ("failed", "server_error", 0)
        await hosts.quiet()


async def cleaner_held_at(hosts: Fleet, operation: str, body: dict[str, Any]) -> Host:
    """It cleans up behind a keyed request, whose process died before the row, and is stopped before that call."""
    cleaner, victim = hosts.host(), hosts.host(queues=False)
    die_at(victim, "row.insert:before")
    with pytest.raises(HostGone):
        await victim.create(body, idempotency_key="k")
    held = cleaner.pause_at(operation)
    await until(held.is_set, f"{operation} of the cleaner", UNTIL_LATE)
    return cleaner


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("operation", ["log.list", "payload.list"])
async def test_a_response_that_was_made_again_while_a_cleanup_slept_keeps_its_request(
    operation: str, stream: bool
) -> None:
    """Its key stands for the same id."""
    body = background(LARGE, stream=stream)
    async with fleet(Teller(3)) as hosts:
        cleaner = await cleaner_held_at(hosts, operation, body)
        other = hosts.host()
        reads = other.pause_at("payload.get")
        made = await other.create(body, idempotency_key="k")
        await until(reads.is_set)
        cleaner.resume()
        await asyncio.sleep(1)
        other.resume()
        await check_completed(hosts, made["id"])


MOMENTS = ["payload.put:after", "log.create:after", "row.insert:before"]


def die_at(host: Host, point: str) -> None:
    async def die(name: str, moment: Moment) -> None:
        if f"{name}:{moment}" == point:
            host.fleet.kill(host)
            await host.passage()

    host.seam.hooks.append(die)


@pytest.mark.parametrize("point", MOMENTS)
async def test_a_response_that_was_never_recorded_leaves_nothing_after_its_late_message(point: str) -> None:
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        hosts.host()
        die_at(api, point)
        with pytest.raises(HostGone):
            await api.stream(background(LARGE))
        assert beside_rows(hosts)
        await hosts.quiet()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        assert beside_rows(hosts) == []
        assert [list(driver.tables[name]) for name in TABLES] == [[] for _ in TABLES]


@pytest.mark.parametrize("point", MOMENTS)
async def test_a_turn_that_was_never_recorded_leaves_nothing_though_it_would_have_had_to_wait(point: str) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=False)
        hosts.host(options=STEERABLE)
        first = await api.create(background("first", conversation="c"))
        await until(lambda: turns.entered("first"))
        die_at(api, point)
        with pytest.raises(HostGone):
            await api.stream(background("second" + LARGE, conversation="c"))
        assert beside_rows(hosts, but=first["id"])
        turns.gates["first"].set()
        assert (await hosts.finished(first["id"])).status == "completed"
        await hosts.quiet()
        assert beside_rows(hosts, but=first["id"]) == []
        assert await hosts.ids() == [first["id"]]


async def test_a_response_cancelled_after_its_log_was_cleaned_up_too_early_has_its_last_event() -> None:
    async with fleet(Teller(3)) as hosts:
        api = hosts.host(queues=False)
        reader = await api.stream(background())
        response_id = await only_id(hosts)
        await hosts.storage.log.delete_all(key_of(response_id), response_id)
        assert (await api.cancel(response_id))["status"] == "cancelled"
        replayed = await api.replay(response_id)
        view = await replayed.whole_view()
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=0, seen=[view, await reader.whole_view()])
        hosts.host()
        await hosts.quiet()
        await api.delete(response_id)
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
