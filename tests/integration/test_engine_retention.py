"""Responses that ended long enough ago are deleted with everything beside them (V10)."""

import asyncio
import fnmatch
import itertools
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from protocol import ids
from protocol.errors import ConversationLocked
from resilience import conversations
from resilience.context import ResponseContext
from resilience.dispatch import Disposition
from resilience.options import ResponsesServerOptions
from resilience.placement import partition_key, tenant_of
from resilience.record import RequestRecord
from resilience.rows import first_row
from storage.chains import own_chain_key
from storage.connection import Storage
from storage.driver import CONTAINERS, EXPIRY, IDEMPOTENCY, PAYLOADS, RESPONSES, TABLES, StorageDriver
from storage.errors import StorageError, StorageRejected, StorageUnavailable
from storage.expiry import StoredResponse
from storage.log import segment_name
from storage.memory import MemoryDriver
from storage.rows import Segment
from storage.seam import Fault, FaultKind, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_left
from tests.support.turns import Turns, until_opened, until_told
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

HOUR = 3600.0
HOURS = 2 / 24
"""The days of retention in these tests: hours, for waiting costs polls."""

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)

LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""


def left(hosts: Fleet) -> dict[str, list[Any]]:
    """Everything that is stored anywhere, by where it is."""
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    found: dict[str, list[Any]] = {name: list(driver.containers[name]) for name in CONTAINERS}
    found |= {name: list(driver.tables[name]) for name in TABLES}
    found |= {name: [message.text for message in queue] for name, queue in driver.queues.items()}
    return {name: names for name, names in found.items() if names}


async def expire_all(host: Host) -> int:
    """Turns of the timer until nothing is due; how many it took."""
    for turns in itertools.count(1):
        before = len(host.calls)
        await host.inside(host.engine.expire())
        if host.calls[before:] == ["expiry.due"]:
            return turns
    raise AssertionError


@pytest.mark.parametrize("steerable", [False, True])
async def test_nothing_is_left_of_responses_of_any_kind_after_their_time(steerable: bool) -> None:
    options = ResponsesServerOptions(resilient_background=True, steerable_conversations=steerable)
    async with fleet(Teller(3)) as hosts:
        host = hosts.host(options=options, retention_days=HOURS)
        for request in ({"input": "hi"}, {"input": LARGE}, background(), background(LARGE, stream=True)):
            first = await host.create(request)
            await hosts.finished(first["id"])
            await host.create({**request, "previous_response_id": first["id"]})
        await hosts.quiet()
        deleted = await host.create({"input": LARGE})
        await host.inside(host.engine.delete(PRINCIPAL, deleted["id"]))
        await hosts.quiet()
        await asyncio.sleep(1.9 * HOUR)
        await expire_all(host)
        assert len(left(hosts)[RESPONSES]) >= 9
        await asyncio.sleep(1.2 * HOUR)
        await expire_all(host)
        assert left(hosts) == {}


async def test_a_key_goes_with_its_response() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(retention_days=HOURS)
        made = await host.create({"input": "hi"}, idempotency_key="k")
        await hosts.quiet()
        assert left(hosts)[IDEMPOTENCY]
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        await check_nothing_left(hosts.storage, PRINCIPAL, made["id"], expired=True)
        assert left(hosts) == {}


@pytest.mark.parametrize("repeated", [False, True])
async def test_the_key_of_a_refused_background_request_goes_in_its_time(repeated: bool) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = hosts.host(options=ResponsesServerOptions(resilient_background=True), retention_days=HOURS)
        first = await host.create(background("first", conversation="c"))
        await until(lambda: turns.entered("first"))
        with pytest.raises(ConversationLocked):
            await host.create(background("second", conversation="c"), idempotency_key="k")
        for text in ("first", "second"):
            turns.gates[text].set()
        await hosts.finished(first["id"])
        if repeated:
            made = await host.create(background("second", conversation="c"), idempotency_key="k")
            await hosts.finished(made["id"])
            await hosts.quiet()
        assert left(hosts)[IDEMPOTENCY]
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        assert [key for _, key in left(hosts).pop(RESPONSES)] == ["chain"]  # it goes with its conversation
        assert list(left(hosts)) == [RESPONSES]


@pytest.mark.parametrize("in_background", [False, True])
async def test_a_key_whose_process_died_right_behind_its_claim_goes_in_its_time(in_background: bool) -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(queues=False), hosts.host(retention_days=HOURS).serve_timer()

        async def die(name: str, moment: Moment) -> None:
            if (name, moment) == ("key.claim", "after"):
                hosts.kill(host)
                await host.passage()

        host.seam.hooks.append(die)
        with pytest.raises(HostGone):
            await host.create({"input": "hi", "background": in_background}, idempotency_key="k")
        assert left(hosts)[IDEMPOTENCY]
        await asyncio.sleep(3.5 * HOUR)
        await expire_all(other)
        assert left(hosts) == {}


@pytest.mark.parametrize("fields", [{}, {"conversation": "c"}], ids=["alone", "turn"])
async def test_a_large_foreground_request_whose_process_died_before_its_entry_goes_in_its_time(
    fields: dict[str, Any],
) -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(queues=False), hosts.host(retention_days=HOURS).serve_timer()

        async def die(name: str, moment: Moment) -> None:
            if (name, moment) == ("payload.put", "after"):
                hosts.kill(host)
                await host.passage()

        host.seam.hooks.append(die)
        with pytest.raises(HostGone):
            await host.create({"input": LARGE, **fields})
        assert left(hosts)[PAYLOADS]
        await asyncio.sleep(3.5 * HOUR)
        await expire_all(other)
        assert left(hosts) == {}


class LateUpload:
    """A line on which uploads get no answer; storage carries them out a minute later."""

    def __init__(self, inner: StorageDriver) -> None:
        self._inner = inner
        self._late: list[asyncio.Task[None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def upload_blob(self, container: str, name: str, data: bytes) -> None:
        self._late.append(asyncio.get_running_loop().create_task(self._carry_out(container, name, data)))
        raise StorageUnavailable

    async def _carry_out(self, container: str, name: str, data: bytes) -> None:
        await asyncio.sleep(60)
        await self._inner.upload_blob(container, name, data)


async def test_a_large_foreground_request_that_storage_took_when_it_was_given_up_goes_in_its_time() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(retention_days=HOURS, line=LateUpload)
        with pytest.raises(StorageUnavailable):
            await host.create({"input": LARGE})
        await asyncio.sleep(2 * 60)
        assert left(hosts)[PAYLOADS]
        await asyncio.sleep(3.5 * HOUR)
        await expire_all(host)
        assert left(hosts) == {}


async def test_zero_days_keep_everything() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(retention_days=0.0)
        await host.create({"input": "hi"})
        await hosts.quiet()
        await asyncio.sleep(4 * HOUR)
        before = len(host.calls)
        await host.inside(host.engine.expire())
        assert host.calls[before:] == []
        assert left(hosts)[RESPONSES]


async def test_a_response_in_flight_is_kept_and_noted_anew() -> None:
    async with fleet(Teller(3, pause=0.8 * HOUR)) as hosts:
        host = hosts.host(retention_days=HOURS / 4, handover_after=100 * HOUR)
        response = await host.create(background())
        await hosts.storage.expiry.note(
            hosts.now(), [StoredResponse(partition_key(tenant_of(PRINCIPAL), response["id"]), response["id"])]
        )
        await asyncio.sleep(1.6 * HOUR)
        await expire_all(host)
        row = await hosts.row(response["id"])
        assert row is not None
        assert row.status == "in_progress"
        await hosts.finished(response["id"], seconds=20 * HOUR)
        await hosts.quiet()
        await asyncio.sleep(1.6 * HOUR)
        await expire_all(host)
        assert left(hosts) == {}


@pytest.mark.parametrize("damaged", ["row", "chain", "key"])
async def test_what_cannot_be_read_of_one_response_does_not_keep_the_others(damaged: str) -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False, retention_days=HOURS)
        bad = await host.create({"input": "hi", "conversation": "talk"}, idempotency_key="k")
        good = await host.create({"input": "hi"})
        await hosts.quiet()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        table, name, column = {
            "row": (RESPONSES, f"response-{bad['id']}", "status"),
            "chain": (RESPONSES, "chain", "active"),
            "key": (IDEMPOTENCY, "", "body_hash"),
        }[damaged]
        (entity,) = [each for (_, key), each in driver.tables[table].items() if key == name or not name]
        whole, entity.properties[column] = entity.properties[column], 0
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        assert await hosts.row(good["id"]) is None
        entity.properties[column] = whole
        assert await hosts.row(bad["id"]) is not None
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        assert await hosts.row(bad["id"]) is None
        assert IDEMPOTENCY not in left(hosts)


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("name", ["row.*", "log.*", "payload.*", "expiry.*", "chain.*"])
async def test_a_turn_of_the_timer_that_fails_anywhere_is_made_good_by_the_next(name: str, kind: FaultKind) -> None:
    async with fleet(Teller(2)) as hosts:
        host = hosts.host(queues=False)
        await stored_long_ago(hosts.storage, 8, hosts.now() - 31 * 24 * HOUR)
        before = len(host.calls)
        await host.inside(host.engine.expire())
        assert left(hosts) == {}
        calls = fnmatch.filter(host.calls[before:], name)
        assert calls
        for spared in range(len(calls)):
            await stored_long_ago(hosts.storage, 8, hosts.now() - 31 * 24 * HOUR)
            fault = host.seam.inject(Fault(operation=name, kind=kind, after=spared))
            with suppress(StorageUnavailable):
                await host.inside(host.engine.expire())
            assert fault.hits
            fault.remove()
            await expire_all(host)
            assert left(hosts) == {}


async def stored_long_ago(storage: Storage, count: int, ended: float) -> None:
    """Responses as they are after their end; every fortieth has a log and large payloads, every seventh metadata."""
    noted: list[StoredResponse] = []
    for number in range(count):
        large = number % 40 == 0
        record = RequestRecord(
            response_id=ids.new_response_id(ids.new_partition()),
            created_at=int(ended),
            principal=PRINCIPAL,
            request={"input": LARGE if large else "hi", "background": large, "stream": large},
            client_headers={},
            query_parameters={},
            agent_reference=None,
        )
        key = partition_key(tenant_of(PRINCIPAL), record.response_id)
        request = await storage.payloads.put(key, record.response_id, "request", record.to_bytes())
        row = first_row(key, record, Disposition.RESILIENT, request, status="completed")
        if large:
            name = segment_name(key, record.response_id, 0, 1)
            await storage.log.create(name)
            await storage.log.acquire(name, "11111111-2222-3333-4444-555555555555")
            row = replace(row, segments=(Segment(name=name, first_sequence=0),))
        await storage.rows.insert(row)
        if number % 7 == 0:
            await storage.chains.replace(await storage.chains.read(key, own_chain_key(row.id)))
        noted.append(StoredResponse(key, record.response_id))
    for start in range(0, count, 250):
        await storage.expiry.note(ended, noted[start : start + 250])


@pytest.mark.timeout(240)
async def test_ten_thousand_expired_responses_are_deleted_in_bounded_batches_and_leave_nothing() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False, retention_batch=1_000)
        await stored_long_ago(hosts.storage, 10_000, hosts.now() - 31 * 24 * HOUR)
        stored = left(hosts)
        assert sum(row.startswith("response-") for _, row in stored[RESPONSES]) == 10_000
        before = len(left(hosts)[RESPONSES])
        await host.inside(host.engine.expire())
        assert 0 < before - len(left(hosts)[RESPONSES]) <= 5_000
        assert await expire_all(host) <= 12
        assert left(hosts) == {}
        assert EXPIRY not in left(hosts)


async def keep_a_note(turns: Turns, request: dict[str, Any], context: ResponseContext, signal: asyncio.Event) -> None:
    context.conversation_chain_metadata["note"] = "what the user said"


async def two_turns_the_first_due(host: Host) -> tuple[str, str]:
    """A turn and one that continues it, which ended later: it is not due when the first one is."""
    first = (await host.create({"input": "first"}))["id"]
    await host.fleet.quiet()
    await asyncio.sleep(2 * HOUR)
    second = (await host.create({"input": "second", "previous_response_id": first}))["id"]
    await host.fleet.quiet()
    await asyncio.sleep(1.2 * HOUR)
    return first, second


async def test_nothing_is_left_of_a_chain_whose_newest_turn_is_deleted_after_the_one_before_it_expired() -> None:
    async with fleet(Turns(keep_a_note)) as hosts:
        host = hosts.host(options=STEERABLE, retention_days=HOURS)
        first, second = await two_turns_the_first_due(host)
        await expire_all(host)
        assert await hosts.row(first) is None
        await host.delete(second)
        await hosts.quiet()
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        assert left(hosts) == {}


async def test_nothing_is_left_of_a_chain_whose_newest_turn_is_deleted_while_the_one_before_it_expires() -> None:
    async with fleet(Turns(keep_a_note)) as hosts:
        host, other = (hosts.host(options=STEERABLE, retention_days=HOURS) for _ in range(2))
        first, second = await two_turns_the_first_due(host)
        reached = host.pause_at("row.replace")
        deleting = asyncio.ensure_future(host.delete(second))
        await reached.wait()
        await expire_all(other)
        assert await hosts.row(first) is None
        host.resume()
        await deleting
        await hosts.quiet()
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        assert left(hosts) == {}


async def test_nothing_is_left_of_a_chain_whose_newest_turn_is_taken_back_after_the_one_before_it_expired() -> None:
    gone = asyncio.Event()

    async def disconnected() -> bool:
        return gone.is_set()

    turns = Turns(keep_a_note)
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE, retention_days=HOURS, handover_after=100 * HOUR)
        first = (await host.create({"input": "first"}))["id"]
        await asyncio.sleep(2 * HOUR)
        turns.act = until_told
        request = {"input": "second", "previous_response_id": first}
        asking = asyncio.ensure_future(host.create(request, disconnected=disconnected))
        await asyncio.sleep(1.2 * HOUR)
        await expire_all(host)
        assert await hosts.row(first) is None
        assert not asking.done()
        gone.set()
        await asyncio.gather(asking, return_exceptions=True)
        await hosts.quiet()
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        assert left(hosts) == {}


@pytest.mark.parametrize("how", ["deleted", "followed"])
async def test_a_conversation_outlives_its_turns_though_the_newest_one_does_not_name_it(how: str) -> None:
    async with fleet(Turns(keep_a_note)) as hosts:
        host = hosts.host(options=STEERABLE, retention_days=HOURS)
        made = [(await host.create({"input": "first", "conversation": "talk"}))["id"]]
        if how == "deleted":
            await host.delete(made[0])
        else:
            made.append((await host.create({"input": "second", "previous_response_id": made[0]}))["id"])
        await hosts.quiet()
        await asyncio.sleep(3.1 * HOUR)
        await expire_all(host)
        assert [await hosts.row(each) for each in made] == [None] * len(made)
        shown = await host.inside(conversations.get(host.engine.runtime, PRINCIPAL, "talk"))
        assert shown["id"] == "talk"
        chain = await hosts.storage.chains.read(conversations.key_of(PRINCIPAL, "talk"))
        assert b"what the user said" in chain.metadata


class Protecting:
    """A line to an account that protects some blobs: a legal hold, a snapshot that somebody took."""

    def __init__(self, inner: StorageDriver, protected: set[str]) -> None:
        self._inner = inner
        self._protected = protected

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def delete_blob(self, container: str, name: str) -> None:
        if any(each in name for each in self._protected):
            raise StorageRejected(409)
        await self._inner.delete_blob(container, name)


async def test_what_storage_refuses_to_delete_of_one_response_does_not_keep_the_others_and_is_tried_again() -> None:
    protected: set[str] = set()
    async with fleet(Teller(1)) as hosts:

        def line(inner: StorageDriver) -> StorageDriver:
            protecting: Any = Protecting(inner, protected)
            return protecting  # type: ignore[no-any-return]

        host = hosts.host(queues=False, retention_days=1.5 / 24, line=line)
        kept = (await host.create({"input": LARGE}))["id"]
        await asyncio.sleep(HOUR)
        other = (await host.create({"input": LARGE}))["id"]
        await hosts.quiet()
        protected.add(kept)
        for _ in range(4):
            await asyncio.sleep(HOUR)
            with suppress(StorageError):
                await host.inside(host.engine.expire())
        await check_nothing_left(hosts.storage, PRINCIPAL, other, expired=True)
        protected.clear()
        await asyncio.sleep(3.1 * HOUR)
        await host.inside(host.engine.expire())
        await check_nothing_left(hosts.storage, PRINCIPAL, kept, expired=True)
