"""Messages that are doubled, late, damaged, poisoned: hints, never the truth (R2, R5, R6)."""

import asyncio
import json
from typing import Any

import pytest

from protocol import ids
from resilience.placement import tenant_of
from storage.driver import WATCH_QUEUE, WORK_QUEUE, Update
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, Fleet, background, fleet, key_of, start_message, until
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_recorded, check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STREAM = pytest.mark.parametrize("stream", [False, True])

GARBAGE = [
    "",
    "x",
    "{}",
    "[]",
    "null",
    '{"v":1}',
    '{"v":2,"tenant":"a","id":"b"}',
    '{"v":1,"tenant":"a","id":"b"}',
    '{"v":1,"tenant":"","id":""}',
    '{"v":1,"tenant":1,"id":2}',
    '{"v":1,"worker":""}',
    "\x00",
    "é" * 1000,
]


@STREAM
@pytest.mark.parametrize("eager", [False, True])
async def test_doubled_messages_run_it_once(stream: bool, eager: bool) -> None:
    async with fleet(Teller(6, pause=0.5)) as hosts:
        api = hosts.host(eager_start=eager)
        others = [hosts.host(), hosts.host()]
        await (api.stream if stream else api.create)(background())
        (response_id,) = await hosts.ids()
        for _ in range(20):
            await hosts.storage.work.send_start(tenant_of(PRINCIPAL), response_id)
        await asyncio.gather(*(host.deliver(start_message(response_id)) for host in [api, *others] * 3))
        row = await hosts.finished(response_id)
        await hosts.quiet()
        assert row.status == "completed"
        assert row.generation == 1
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))


@STREAM
async def test_a_message_five_days_late_changes_nothing(stream: bool) -> None:
    async with fleet(Teller(2)) as hosts:
        host = hosts.host()
        await (host.stream if stream else host.create)(background())
        (response_id,) = await hosts.ids()
        row = await hosts.finished(response_id)
        before = await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
        await host.crash()
        late = hosts.host(queues=False)
        for _ in range(3):
            await late.deliver(start_message(response_id))
            await late.inside(late.engine.poison_message(start_message(response_id)))
        await late.inside(late.engine.watch_message(json.dumps({"v": 1, "worker": row.owner})))
        assert await hosts.row(response_id) == row
        after = await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
        assert after == before


@STREAM
async def test_a_message_of_a_run_that_lives_elsewhere_is_spent_without_harm(stream: bool) -> None:
    async with fleet(Teller(20, pause=0.5)) as hosts:
        owner = hosts.host()
        other = hosts.host(queues=False)
        await (owner.stream if stream else owner.create)(background())
        (response_id,) = await hosts.ids()
        await until(lambda: hosts.entries[response_id])
        began = asyncio.get_running_loop().time()
        await other.deliver(start_message(response_id))
        assert asyncio.get_running_loop().time() - began < 1
        await other.inside(other.engine.poison_message(start_message(response_id)))
        assert (await hosts.finished(response_id)).status == "completed"
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))


async def test_a_message_of_a_run_of_this_process_waits_for_its_end() -> None:
    """So that the platform sees the invocation working."""
    async with fleet(Teller(20, pause=0.5)) as hosts:
        host = hosts.host(queues=False, eager_start=True)
        response_id = (await host.create(background()))["id"]
        began = asyncio.get_running_loop().time()
        await host.deliver(start_message(response_id))
        assert asyncio.get_running_loop().time() - began > 9
        row = await hosts.row(response_id)
        assert row is not None
        assert row.status == "completed"
        assert len(hosts.entries[response_id]) == 1


@pytest.mark.parametrize("text", GARBAGE)
async def test_garbage_is_dropped(text: str) -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(missing_row_patience=1.0)
        for queue in (WORK_QUEUE, WATCH_QUEUE):
            await hosts.storage.driver.send_message(queue, text)
        engine = host.engine
        for function in (engine.poison_message, engine.poison_watch):
            await host.inside(function(text))
        await hosts.quiet()
        assert not host.failures
        assert not hosts.entries


async def test_a_message_without_a_row_waits_for_it_and_then_drops_what_is_left() -> None:
    """R2: no handler, no event; the row may be late, because its message is sent first."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        api = hosts.host(queues=False)
        api.seam.inject(Fault(operation="row.insert", kind="delay", delay=8.0))
        answer = await api.create(background())
        assert (await hosts.finished(answer["id"])).status == "completed"
        dying = hosts.host(queues=False)
        dying.seam.inject(Fault(operation="row.insert", kind="hang"))
        asking = asyncio.create_task(dying.stream(background()), name="asking")
        await asyncio.sleep(1)
        await dying.crash()
        await asyncio.wait({asking})
        asking.exception()
        began = asyncio.get_running_loop().time()
        await hosts.quiet()
        # A first time for the row to come, and a second one for who accepts it to be slower than that.
        assert 170 < asyncio.get_running_loop().time() - began < 210
        assert await hosts.ids() == [answer["id"]]
        assert len(hosts.entries) == 1
        left = await hosts.storage.driver.list_blobs("events", "")
        assert not left
        assert not host.failures


@pytest.mark.parametrize("lasting", [0.25, 125.0])
async def test_an_error_of_storage_is_not_taken_for_a_missing_row(lasting: float) -> None:
    """R2."""
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        response_id = (await api.create(background()))["id"]
        host = hosts.host()
        outage = host.seam.inject(Fault(operation="row.read", kind="before"))
        await asyncio.sleep(lasting)
        outage.remove()
        assert (await hosts.finished(response_id)).status == "completed"
        assert bool(host.failures) == (lasting > 120), "a short one is waited for, a long one gives the message back"


async def poison(hosts: Fleet, response_id: str) -> None:
    host = hosts.host(queues=False)
    await host.inside(host.engine.poison_message(start_message(response_id)))


@STREAM
async def test_a_poison_message_fails_its_response(stream: bool) -> None:
    """R5."""
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        reader = await api.stream(background()) if stream else None
        if reader is None:
            await api.create(background())
        (response_id,) = await hosts.ids()
        await poison(hosts, response_id)
        row = await hosts.finished(response_id)
        assert row.status == "failed"
        seen = [await reader.whole_view()] if reader else []
        stored = await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), seen=seen
        )
        assert (stored.snapshot or {})["error"]["additionalInfo"] == {"shutdown_reason": "attempts_exhausted"}
        assert not hosts.entries
        hosts.host()
        await hosts.quiet()
        assert await hosts.row(response_id) == row


@STREAM
async def test_a_message_that_fails_again_and_again_ends_its_response(stream: bool) -> None:
    """By way of the poison queue; the account answers again by then (R5)."""
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        reader = await api.stream(background()) if stream else None
        if reader is None:
            await api.create(background())
        (response_id,) = await hosts.ids()
        host = hosts.host()
        outage = host.seam.inject(Fault(operation="row.read", kind="before"))
        await until(lambda: host.poisoned, seconds=3_000)
        outage.remove()
        assert [json.loads(text)["id"] for text in host.poisoned] == [response_id]
        assert host.failures
        row = await hosts.finished(response_id)
        assert row.status == "failed"
        seen = [await reader.whole_view()] if reader else []
        stored = await check_response(hosts.storage, PRINCIPAL, response_id, entries=0, seen=seen)
        assert (stored.snapshot or {})["error"]["additionalInfo"] == {"shutdown_reason": "attempts_exhausted"}
        assert not hosts.entries
        await hosts.quiet()
        assert await hosts.row(response_id) == row
        assert await hosts.ids() == [response_id]


async def test_a_poison_watch_message_is_sent_once_more() -> None:
    async with fleet(Teller(20, pause=0.5)) as hosts:
        first = hosts.host()
        response_id = (await first.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        await first.crash()
        second = hosts.host()
        second.seam.inject(Fault(operation="ledger.mark_dead", kind="before", times=6))
        row = await hosts.finished(response_id, seconds=300)
        assert row.status == "completed"
        assert second.poisoned
        await hosts.quiet()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"v":2}', b'{"v":1,"response_id":7}'])
@STREAM
async def test_a_record_that_cannot_be_read_fails_without_an_entry(damage: bytes, stream: bool) -> None:
    """R3."""
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        reader = await api.stream(background()) if stream else None
        if reader is None:
            await api.create(background())
        (response_id,) = await hosts.ids()
        entity = await hosts.storage.driver.get_entity("responses", key_of(response_id), f"response-{response_id}")
        changes: dict[str, Any] = {"request_inline": damage}
        await hosts.storage.driver.update_entity(
            "responses", Update(entity.partition_key, entity.row_key, changes, entity.etag, merge=True)
        )
        host = hosts.host()
        row = await hosts.finished(response_id)
        assert row.status == "failed"
        assert not hosts.entries
        seen = [await reader.whole_view()] if reader else []
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            seen=seen,
            generation_of=hosts.generation_of(response_id),
        )
        assert (await host.get(response_id)) == {**(stored.snapshot or {})}
        await hosts.quiet()


async def test_garbage_leaves_no_trace() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(missing_row_patience=1.0)
        unknown = "resp_" + "a" * 50
        await host.deliver(start_message(unknown))
        await host.inside(host.engine.poison_message(start_message(unknown)))
        await host.inside(host.engine.watch_message('{"v":1,"worker":"wnobody"}'))
        await hosts.quiet()
        await check_nothing_recorded(hosts.storage, PRINCIPAL)


async def test_a_poison_message_without_a_row_is_dropped_at_once() -> None:
    """Waiting for the row would only give its process time to die, and poison messages have no second chance."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        unknown = ids.new_response_id(ids.new_partition())
        began = asyncio.get_running_loop().time()
        await host.inside(host.engine.poison_message(start_message(unknown)))
        assert asyncio.get_running_loop().time() - began < 1
