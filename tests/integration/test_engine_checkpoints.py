"""What checkpoints leave in storage while a run goes on: growing snapshots do not add up (R11)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from storage.driver import PAYLOADS
from storage.errors import StorageRejected
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, Fleet, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response, read_stored
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop

CHECKPOINTS = 20
LARGE = 40_000


async def blobs(hosts: Fleet) -> list[str]:
    return await hosts.storage.driver.list_blobs(PAYLOADS, "")


async def outputs(hosts: Fleet) -> list[Any]:
    (response_id,) = await hosts.ids()
    stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
    return list((stored.snapshot or {}).get("output") or [])


async def checkpoints(hosts: Fleet, count: int) -> None:
    async def enough() -> bool:
        return len(await outputs(hosts)) >= count

    await until(enough, f"{count} checkpoints")


def teller() -> Teller:
    return Teller(CHECKPOINTS, pause=0.2, checkpoints=True, ballast=LARGE)


async def test_large_snapshots_do_not_add_up_and_the_response_can_be_read_all_the_time() -> None:
    async with fleet(teller()) as hosts:
        host, reader = hosts.host(), hosts.host(queues=False)
        response_id = (await host.create(background()))["id"]
        most = reads = 0

        async def look(name: str, moment: str) -> None:
            if (name, moment) == ("payload.get", "before"):
                await asyncio.sleep(0.5)  # two checkpoints go by

        reader.seam.hooks.append(look)
        row = await hosts.row(response_id)
        while row is not None and row.status != "completed":
            seen = await reader.get(response_id)
            reads += 1
            assert len(seen["output"]) <= CHECKPOINTS
            most = max(most, len(await blobs(hosts)))
            await asyncio.sleep(0.05)
            row = await hosts.row(response_id)
        assert reads > 3
        assert 2 <= most <= 4
        await hosts.quiet()
        assert len(await blobs(hosts)) <= 3
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)


async def test_a_worker_dies_and_the_next_one_goes_on_from_a_snapshot_that_is_there() -> None:
    async with fleet(teller()) as hosts:
        for _ in range(3):
            host = hosts.host()
            if not await hosts.ids():
                await host.create(background())
            await checkpoints(hosts, len(await outputs(hosts)) + 4)
            await host.crash()
        hosts.host()
        (response_id,) = await hosts.ids()
        await hosts.finished(response_id)
        stored = await check_response(hosts.storage, PRINCIPAL, response_id, entries=4, crashes=3)
        words = [part["text"].split()[0] for item in (stored.snapshot or {})["output"] for part in item["content"]]
        assert [word.partition("n")[2] for word in words] == [str(number) for number in range(CHECKPOINTS)]
        assert [word.partition("n")[0] for word in (words[0], words[-1])] == ["e1", "e4"]


async def test_a_superseded_snapshot_that_cannot_be_deleted_does_not_hold_up_the_run() -> None:
    async with fleet(teller()) as hosts:
        host = hosts.host()
        fault = host.seam.inject(Fault(operation="payload.delete", kind="before", error=lambda: StorageRejected(409)))
        response_id = (await host.create(background()))["id"]
        assert (await hosts.finished(response_id)).status == "completed"
        assert fault.hits > CHECKPOINTS / 2
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)


@pytest.mark.parametrize("operation", ["payload.put", "row.replace"])
async def test_a_checkpoint_that_storage_rejects_costs_the_checkpoint_and_not_the_run(operation: str) -> None:
    async with fleet(teller()) as hosts:
        host = hosts.host()
        response_id = (await host.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        rejected = Fault(operation=operation, kind="before", error=lambda: StorageRejected(400), times=1)
        fault = host.seam.inject(rejected)
        assert (await hosts.finished(response_id)).status == "completed"
        assert fault.hits == 1
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)


class Noting:
    """Keeps `first`, then `second` while `troubled` is set, then `first` again, and stays; tells what it is given."""

    def __init__(self) -> None:
        self.troubled = asyncio.Event()
        self.over = asyncio.Event()
        self.noted: list[str] = []
        self.found: list[Any] = []

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        if context.is_recovery:
            stream = ResponseEventStream(response=context.persisted_response)
            self.found.append(dict(stream.internal_metadata))
            yield stream.emit_created()
            yield stream.emit_in_progress()
            yield stream.emit_completed()
            return
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for note, moment in (("first", None), ("second", self.troubled), ("first", self.over)):
            if moment is not None:
                await moment.wait()
            stream.internal_metadata["note"] = note
            yield stream.checkpoint()
            self.noted.append(note)
        await asyncio.Event().wait()


async def test_a_checkpoint_like_the_last_known_one_is_stored_over_one_of_unknown_fate() -> None:
    """What was carried out without a reply is what recovery would find."""
    handler = Noting()
    async with fleet(handler) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        response_id = (await host.create(background()))["id"]
        await until(lambda: len(handler.noted) == 1)
        lost = [
            host.seam.inject(Fault(operation="row.replace", kind="after")),
            host.seam.inject(Fault(operation="row.confirm", kind="before")),
        ]
        handler.troubled.set()
        await until(lambda: len(handler.noted) == 2, seconds=300)
        stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
        assert (stored.snapshot or {})["internal_metadata"] == {"note": "second"}, "it was carried out"
        for fault in lost:
            fault.remove()
        handler.over.set()
        await until(lambda: len(handler.noted) == 3)
        await host.crash()
        other.serve_queues()
        await hosts.finished(response_id)
        assert handler.found == [{"note": "first"}]
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=2, crashes=1)
