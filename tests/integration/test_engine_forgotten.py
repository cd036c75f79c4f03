"""Nothing that ended is forgotten by retention, whoever ended it and whatever it met since (V10)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.errors import ApiError, ResponseNotFound
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.driver import CONTAINERS, EXPIRY, RESPONSES, TABLES, WORK_QUEUE, Insert, Update
from storage.errors import StorageUnavailable
from storage.expiry import hour_of
from storage.memory import MemoryDriver
from storage.rows import row_key
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, key_of, until
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_left
from tests.support.turns import Turns, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)

HOUR = 3600.0
HOURS = 2 / 24
"""The days of retention."""

LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""

type Json = dict[str, Any]


def left(hosts: Fleet) -> dict[str, list[Any]]:
    """Everything that is stored anywhere, by where it is."""
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    found: dict[str, list[Any]] = {name: list(driver.containers[name]) for name in CONTAINERS}
    found |= {name: list(driver.tables[name]) for name in TABLES}
    return {name: names for name, names in found.items() if names}


async def long_after(hosts: Fleet) -> Host:
    """All processes are at rest and gone, and the days of retention are over; one has made turns of its timer."""
    await hosts.quiet()
    for host in hosts.hosts:
        if not host.dead:
            await host.crash()
    await asyncio.sleep(4 * HOUR)
    host = hosts.host(queues=False, retention_days=HOURS)
    for _ in range(3):
        await host.inside(host.engine.expire())
    return host


@pytest.mark.parametrize("text", ["hi", LARGE], ids=["inline", "large"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_that_was_cancelled_before_anybody_claimed_it_goes_in_its_time(
    stream: bool, text: str
) -> None:
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        made = await api.create(background(text, stream=stream))
        await api.cancel(made["id"])
        hosts.host()
        await long_after(hosts)
        assert left(hosts) == {}


async def test_a_turn_that_was_cancelled_while_it_waited_goes_in_its_time() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        first = await host.create(background("first", conversation="c"))
        second = await host.create(background("second", conversation="c"))
        await host.cancel(second["id"])
        turns.gates["first"].set()
        await hosts.finished(first["id"])
        await long_after(hosts)
        assert [key for _, key in left(hosts)[RESPONSES]] == ["chain"]  # it goes with its conversation


@pytest.mark.parametrize("seconds", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("in_background", [False, True])
async def test_responses_whose_worker_died_right_after_their_end_go_in_their_time(
    in_background: bool, seconds: float
) -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        for text in ("hi", LARGE):
            made = await host.create({"input": text, "background": in_background})
            await hosts.finished(made["id"])
        await asyncio.sleep(seconds)
        await host.crash()
        hosts.host().serve_timer()  # a ledger at rest has no message that leads to it
        await long_after(hosts)
        assert left(hosts) == {}


async def test_a_row_that_cannot_be_read_does_not_keep_the_others() -> None:
    """It was damaged, or a newer version wrote it; it is looked at again later."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        unreadable, good = [(await host.create({"input": "hi"}))["id"] for _ in range(2)]
        driver, key = hosts.storage.driver, key_of(unreadable)
        entity = await driver.get_entity(RESPONSES, key, row_key(unreadable))
        damaged = {**entity.properties, "segments": "[1]"}
        await driver.update_entity(RESPONSES, Update(key, row_key(unreadable), damaged, entity.etag))
        await long_after(hosts)
        assert await hosts.row(good) is None
        assert left(hosts)[RESPONSES] == [(key, row_key(unreadable))]
        noted = await hosts.storage.expiry.due(hosts.now() + 2 * HOUR, 10)
        assert [each.id for due in noted for each in due.responses] == [unreadable]


@pytest.mark.parametrize("count", [1, 25])
async def test_index_rows_that_cannot_be_read_do_not_keep_the_others(count: int) -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        hour = hour_of(hosts.now() - HOUR)
        damaged = [Insert(hour, f"damaged-{number:02}", {"v": 1, "responses": "?"}) for number in range(count)]
        for each in damaged:
            await hosts.storage.driver.insert_entity(EXPIRY, each)
        made = await host.create({"input": "hi"})
        await long_after(hosts)
        assert await hosts.row(made["id"]) is None
        assert left(hosts) == {EXPIRY: [(each.partition_key, each.row_key) for each in damaged]}


async def test_what_the_turns_of_a_chain_kept_goes_with_the_last_of_them() -> None:
    """The newest turn of the chain was refused, and is there no more."""

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        context.conversation_chain_metadata["kept"] = request["input"]
        if request["input"] == "bad":
            raise ValueError("not this")
        async for event in Turns()(request, context, signal):
            yield event

    async with fleet(handler) as hosts:
        host = hosts.host(options=STEERABLE)
        first = await host.create({"input": "first"})
        with pytest.raises(ApiError):
            await host.create({"input": "bad", "previous_response_id": first["id"]})
        await long_after(hosts)
        assert left(hosts) == {}


async def test_a_chain_goes_with_its_turns_after_the_newest_was_retracted() -> None:
    async with fleet(Turns(until_opened)) as hosts:
        turns = hosts.handler
        assert isinstance(turns, Turns)
        host = hosts.host(options=STEERABLE)
        turns.gates["first"].set()
        first = await host.create({"input": "first"})
        reader = await host.stream({"input": "second", "previous_response_id": first["id"]})
        second = await reader.response_id()
        await reader.leave()
        await until(turns.signals["second"][0].is_set)
        turns.gates["second"].set()
        await hosts.finished(second)
        chain = await hosts.storage.chains.read(key_of(first["id"]))
        assert (chain.last, chain.alternate) == (first["id"], second)
        await long_after(hosts)
        assert left(hosts) == {}


async def test_a_deletion_that_froze_before_its_marker_and_died_behind_it_is_completed_by_another() -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(queues=False), hosts.host()
        made = await host.create({"input": LARGE})
        await hosts.quiet()
        asleep = host.pause_at("row.replace")
        deletion = host.spawn(host.delete(made["id"]), "deleting")
        await until(asleep.is_set)
        await asyncio.sleep(10)  # the first message was received, and found no marker

        async def die(name: str, moment: Moment) -> None:
            if (name, moment) == ("row.replace", "after"):
                hosts.kill(host)
                await host.passage()

        host.seam.hooks.append(die)
        host.resume()
        await until(lambda: host.dead)
        await asyncio.wait({deletion})
        await hosts.quiet()
        assert other.received[WORK_QUEUE] >= 2
        await check_nothing_left(hosts.storage, PRINCIPAL, made["id"])


async def test_a_deletion_slower_than_its_cleanup_message_is_completed_by_another() -> None:
    """The first message was received before there was a marker; then the deletion broke off."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        made = await host.create({"input": LARGE})
        await hosts.quiet()
        host.seam.inject(Fault(operation="row.replace", kind="delay", delay=8.0, times=1))
        host.seam.inject(Fault(operation="payload.delete", kind="before", times=1))
        with pytest.raises(StorageUnavailable):
            await host.delete(made["id"])
        with pytest.raises(ResponseNotFound):
            await host.delete(made["id"])
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, made["id"])
