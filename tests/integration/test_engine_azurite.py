"""The life, death and neighbours of a run over a real emulator, in real time: what memory cannot vouch for."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from resilience.placement import tenant_of
from storage.azure import AzureDriver
from storage.connection import StorageSettings
from storage.driver import CONTAINERS, QUEUES, TABLES
from tests.support.engines import PRINCIPAL, Fleet, background, fleet, until
from tests.support.handlers import Teller, text_of
from tests.support.invariants import check_nothing_left, check_response, messages

FAST: dict[str, Any] = {
    # Late by seconds is no death on a busy machine.
    "watch_visibility": 5.0,
    "watch_push_interval": 0.5,
    "cancel_poll_interval": 0.4,
    "idle_close_after": 0.5,
    "idle_end_after": 0.5,
    "missing_row_patience": 3.0,
}


@pytest.fixture
def settings(azurite_environment: Mapping[str, str]) -> StorageSettings:
    return StorageSettings.from_environment(azurite_environment)


@asynccontextmanager
async def real_fleet(handler: Any, settings: StorageSettings) -> AsyncIterator[Fleet]:
    async with fleet(handler, lambda: AzureDriver(settings)) as hosts:
        await hosts.storage.driver.ensure(CONTAINERS, TABLES, QUEUES)
        yield hosts


async def test_a_killed_owner_is_replaced_and_the_stream_goes_on(settings: StorageSettings) -> None:
    async with real_fleet(Teller(12, pause=0.2, checkpoints=True), settings) as hosts:
        api = hosts.host(queues=False, **FAST)
        first = hosts.host(**FAST, segment_blocks=5)
        reader = await api.stream(background())
        response_id = await reader.response_id()
        await reader.until(8)
        hosts.host(**FAST, segment_blocks=5)
        await first.crash()
        full = await reader.whole(seconds=60)
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        resumed = await api.replay(response_id, 5)
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view, await resumed.whole_view()],
            entries=hosts.entered(response_id),
            crashes=1,
            generation_of=hosts.generation_of(response_id),
        )
        assert full == stored.frames
        assert full[6:] == resumed.frames
        words = text_of(stored.snapshot or {}).split()
        assert [word.partition("n")[2] for word in words] == [str(number) for number in range(12)]
        await api.delete(response_id)

        async def closed() -> bool:
            """The owner closes a run in its ledger with the next transaction, at the latest when it falls idle."""
            return not await hosts.storage.driver.query_entities("workers", row_key=f"run-{response_id}")

        await until(closed, seconds=20)
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


async def test_a_stopped_owner_that_goes_on_is_refused_by_the_service(settings: StorageSettings) -> None:
    async with real_fleet(Teller(15, pause=0.2), settings) as hosts:
        api = hosts.host(queues=False, **FAST)
        zombie = hosts.host(**FAST)
        reader = await api.stream(background())
        response_id = await reader.response_id()
        await reader.until(5)
        worker = zombie.engine.runtime.worker.id
        zombie.pause()
        zombie.stop_serving()
        rescuer = hosts.host(**FAST)
        await rescuer.inside(rescuer.engine.watch_message(json.dumps({"v": 1, "worker": worker})))
        await until(lambda: reader.types.count("response.in_progress") == 2, "the reset", 30)
        zombie.resume()
        await reader.whole(seconds=60)
        await hosts.finished(response_id)
        await asyncio.sleep(1)
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=2,
            lost_leases=1,
            seen=[reader.view],
            generation_of=hosts.generation_of(response_id),
        )
        assert stored.row.status == "completed"


async def test_every_mode_ends_and_a_cancel_from_elsewhere_arrives(settings: StorageSettings) -> None:
    async with real_fleet(Teller(4, pause=0.05), settings) as hosts:
        host, other = hosts.host(**FAST, eager_start=True), hosts.host(queues=False, **FAST)
        response = await host.create({"input": "x" * 60_000})
        assert response["status"] == "completed"
        assert await other.get(response["id"]) == response
        foreground = await host.stream({"input": "hi"})
        told = await foreground.whole_view()
        foreground_id = await foreground.response_id()
        await check_response(hosts.storage, PRINCIPAL, foreground_id, entries=hosts.entered(foreground_id), seen=[told])
        polled = (await host.create(background()))["id"]
        assert (await hosts.finished(polled)).status == "completed"
        hosts.handler = Teller(200, pause=0.1)
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await other.cancel(response_id)
        # In seconds that is told in virtual time; here the emulator may be slow, but not the owner in asking.
        before = host.calls.count("row.read")
        await until(hosts.entries[response_id][0].signal.is_set, seconds=20)
        assert host.calls.count("row.read") - before <= 3
        told = await reader.whole_view(seconds=20)
        await hosts.finished(response_id, seconds=20)
        await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), cancelled=True, seen=[told]
        )


async def test_a_message_that_was_left_is_seen_by_the_judge_and_stays_where_it_is(settings: StorageSettings) -> None:
    """V10: what the twin shows openly has to be peeked at here."""
    async with real_fleet(Teller(1), settings) as hosts:
        host = hosts.host(queues=False, **FAST)
        response_id = (await host.create({"input": "hi"}))["id"]
        await host.delete(response_id)
        await hosts.storage.work.send_start(tenant_of(PRINCIPAL), response_id)
        for _ in range(2):
            assert any(response_id in text for text in await messages(hosts.storage))
