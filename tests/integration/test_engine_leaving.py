"""A run on its way out of a process: what reaches that process meanwhile must neither stop nor strand it (R13, B24)."""

import asyncio
from typing import Any

import pytest

from resilience.options import ResponsesServerOptions
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, until
from tests.support.handlers import Teller, text_of
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

GRACE = 2.0
OPTIONS = ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=GRACE)

SLOW_REPLY = 3.0
"""Seconds that a reply of storage is on its way."""


async def check_told(hosts: Fleet, response_id: str, count: int, *, left: int) -> None:
    """It ended, every number once, after so many hand-overs, none of which counts as a failed attempt."""
    row = await hosts.finished(response_id, seconds=120)
    entries = len(hosts.entries[response_id])
    assert (row.status, row.attempt, entries) == ("completed", 1, 1 + left)
    stored = await check_response(
        hosts.storage,
        PRINCIPAL,
        response_id,
        entries=entries,
        lost_leases=left,
        generation_of=hosts.generation_of(response_id),
    )
    words = text_of(stored.snapshot or {}).split()
    assert [word.partition("n")[2] for word in words] == [str(number) for number in range(count)]
    await hosts.quiet()


async def test_run_that_comes_back_to_the_process_it_left_is_claimed_at_once() -> None:
    """Its entry in the ledger is closed and opened again, while another run keeps the ledger in use."""
    async with fleet(Teller(12, pause=1.0, checkpoints=True)) as hosts:
        host = hosts.host(options=OPTIONS, handover_after=2.2)
        accepted = []
        for _ in range(2):
            accepted.append((await host.create(background()))["id"])
            await asyncio.sleep(1.5)
        for response_id in accepted:
            assert (await hosts.finished(response_id, seconds=120)).attempt == 1
        assert host.failures == []


async def test_start_message_that_arrives_while_its_run_leaves_starts_it_again() -> None:
    """The message may be there before its sender knows that it was sent."""
    async with fleet(Teller(6, pause=1.0, checkpoints=True)) as hosts:
        host = hosts.host(options=OPTIONS, handover_after=3.5)
        response_id = (await host.create(background()))["id"]

        async def late(name: str, moment: Moment) -> None:
            if (name, moment) == ("queue.send_start", "after"):
                await asyncio.sleep(SLOW_REPLY)

        host.seam.hooks.append(late)
        await check_told(hosts, response_id, 6, left=1)


def slow_checkpoint(host: Host) -> asyncio.Event:
    """The reply to the next status write is late; the event tells when it was carried out."""
    written = asyncio.Event()

    async def late(name: str, moment: Moment) -> None:
        if (name, moment) == ("row.replace", "after") and not written.is_set():
            written.set()
            await asyncio.sleep(SLOW_REPLY)

    host.seam.hooks.append(late)
    return written


async def test_hand_over_in_the_middle_of_a_checkpoint_leaves_to_another_process() -> None:
    """The grace is over while the reply to a checkpoint is on its way."""
    async with fleet(Teller(6, pause=1.0, checkpoints=True)) as hosts:
        first = hosts.host(options=OPTIONS)
        response_id = (await first.create(background()))["id"]
        await asyncio.sleep(1.5)
        written = slow_checkpoint(first)
        await written.wait()
        second = hosts.host(options=OPTIONS)
        first.stop_serving()
        await asyncio.wait_for(first.inside(first.engine.drain()), GRACE + SLOW_REPLY)
        await first.crash()
        assert [entry.host for entry in hosts.entries[response_id][:1]] == [first]
        await check_told(hosts, response_id, 6, left=1)
        assert hosts.entries[response_id][1].host is second


async def test_claim_made_again_during_a_drain_is_handed_over_too() -> None:
    """A status write was refused, though the row still names this process: it goes on, and still has to leave."""
    async with fleet(Teller(30, pause=1.0, checkpoints=True)) as hosts:
        first = hosts.host(options=OPTIONS)
        response_id = (await first.create(background()))["id"]
        await asyncio.sleep(1.5)
        row: Any = await hosts.row(response_id)
        await hosts.storage.rows.replace(row, mark="touched")
        hosts.host(options=OPTIONS)
        first.stop_serving()
        await asyncio.wait_for(first.inside(first.engine.drain()), 3 * GRACE)
        await first.crash()
        assert (await hosts.finished(response_id, seconds=120)).status == "completed"


@pytest.mark.parametrize("store", [True, False])
async def test_a_foreground_run_that_begins_while_the_process_leaves_ends_within_the_grace(store: bool) -> None:
    never = asyncio.Event()
    async with fleet(Teller(3, hold=(1, never))) as hosts:
        host = hosts.host()
        first = asyncio.ensure_future(host.create({"input": "first"}))
        await until(lambda: len(hosts.entries) == 1)
        host.seam.inject(Fault(operation="*.read", kind="delay", delay=3.0, times=1))
        second = asyncio.ensure_future(host.create({"input": "second", "conversation": "c", "store": store}))
        await asyncio.sleep(1)
        async with asyncio.timeout(30):
            await host.inside(host.engine.drain())
            told = [await first, await second]
        for response in told:
            assert response["status"] == "failed"
            assert response["error"]["additionalInfo"] == {"shutdown_reason": "grace_exhausted"}
