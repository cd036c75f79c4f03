"""Stories that the state machine found, told on purpose."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from protocol import sse
from resilience.log_end import read_log_end
from resilience.options import ResponsesServerOptions
from resilience.ownership import CONTINUED
from storage.rows import Segment
from storage.seam import Fault
from tests.chaos.tellers import Tellers
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, start_message, until
from tests.support.invariants import assert_chain, check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop
OPTIONS = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
TALK = {"conversation": "one"}


@pytest.fixture
async def hosts() -> AsyncIterator[Fleet]:
    tellers = Tellers()
    async with fleet(tellers) as made:
        tellers.fleet = made
        yield made


def host(hosts: Fleet) -> Host:
    return hosts.host(options=OPTIONS)


async def judge(hosts: Fleet, *turns: str, lost_leases: int = 0) -> None:
    tellers = hosts.handler
    assert isinstance(tellers, Tellers)
    rows = {turn: row for turn in turns if (row := await hosts.row(turn)) is not None}
    await assert_chain(hosts.storage, PRINCIPAL, turns[0], tellers.spans(rows), accepted=turns, lost_leases=lost_leases)


async def test_a_start_message_for_a_foreground_turn_in_flight_is_left_alone(hosts: Fleet) -> None:
    one, other = host(hosts), host(hosts)
    reader = await one.stream({"model": "m", "input": "plain", **TALK})
    response_id = await reader.response_id()
    await other.deliver(start_message(response_id))
    await reader.whole()
    assert len(hosts.entries[response_id]) == 1
    await check_response(hosts.storage, PRINCIPAL, response_id, seen=[reader.frames], entries=1)
    await judge(hosts, response_id)


@pytest.mark.parametrize("foreground", [False, True])
async def test_the_next_turn_waits_for_a_handler_that_cleans_up_after_its_last_event(
    hosts: Fleet, foreground: bool
) -> None:
    one, other = host(hosts), host(hosts)
    first = (await one.create(background("lingering", **TALK)))["id"]
    await until(lambda: hosts.entries[first], "the first turn's handler")
    if foreground:
        second = str((await other.create({"model": "m", "input": "quick", **TALK}))["id"])
    else:
        second = (await other.create(background("quick", **TALK)))["id"]
    assert (await hosts.finished(first)).status == "completed"
    assert (await hosts.finished(second)).status == "completed"
    await asyncio.sleep(10)
    await judge(hosts, first, second)


async def test_a_displaced_worker_does_not_begin_the_next_turn_while_the_handler_of_its_successor_runs(
    hosts: Fleet,
) -> None:
    one = host(hosts)
    first = (await one.create(background("plain", **TALK)))["id"]
    await until(lambda: hosts.entries[first], "the first turn's handler")
    tellers = hosts.handler
    assert isinstance(tellers, Tellers)
    tellers.disturbed.add(one)
    one.stop_serving()
    await asyncio.sleep(3)  # so that its handler is gone some time before the other's
    successor = host(hosts)
    worker = one.engine.runtime.worker.id
    assert worker is not None
    await hosts.storage.watch.send(worker, delay=0)
    await until(lambda: len(hosts.entries[first]) == 2, "the other's entry")
    assert first in one.engine.runtime.running, "it knows already"
    second = (await successor.create(background("plain", **TALK)))["id"]
    assert (await one.cancel(first))["status"] == "cancelled"
    assert (await hosts.finished(second)).status == "completed"
    await judge(hosts, first, second, lost_leases=1)


async def test_a_start_message_that_meets_a_run_which_was_lost_without_its_knowledge_is_not_spent(hosts: Fleet) -> None:
    one = host(hosts)
    response_id = (await one.create(background("plain", stream=False)))["id"]
    await until(lambda: hosts.entries[response_id], "the handler")
    one.stop_serving()
    worker = one.engine.runtime.worker.id
    assert worker is not None
    await hosts.storage.watch.send(worker, delay=0)
    successor = host(hosts)
    await until(lambda: len(hosts.entries[response_id]) == 2, "the other's entry")
    dead = successor.engine.runtime.worker.id
    assert dead is not None
    await successor.crash()
    await hosts.storage.watch.send(dead, delay=0)
    # Somebody else learns of this death: the first worker has no reason to look at its own ledger.
    hosts.host(options=OPTIONS, queues=False).serve_queues("responses-watch")
    one.serve_queues("responses-work")
    assert one.engine.runtime.worker.is_current(worker), "it knows already"
    assert (await hosts.finished(response_id)).status == "completed"
    assert len(hosts.entries[response_id]) == 3


async def test_a_worker_that_lost_a_turn_begins_the_next_one_when_its_successor_died_before_it_could(
    hosts: Fleet,
) -> None:
    one = host(hosts)
    first = (await one.create(background("plain", **TALK)))["id"]
    await until(lambda: hosts.entries[first], "the first turn's handler")
    second = (await one.create(background("quick", **TALK)))["id"]
    tellers = hosts.handler
    assert isinstance(tellers, Tellers)
    tellers.disturbed.add(one)
    one.stop_serving()
    worker = one.engine.runtime.worker.id
    assert worker is not None
    successor = host(hosts)
    await hosts.storage.watch.send(worker, delay=0)
    await until(lambda: len(hosts.entries[first]) == 2, "the other's entry")
    one.pause()
    successor.seam.inject(Fault(operation="queue.send_start", kind="hang"))

    async def has_ended() -> bool:
        row = await hosts.row(first)
        return row is not None and row.status == "completed"

    await until(has_ended, "the first turn's end")
    one.resume()
    await until(lambda: first not in one.engine.runtime.running, "the first worker to learn of its loss")
    dead = successor.engine.runtime.worker.id
    assert dead is not None
    await successor.crash()
    await hosts.storage.watch.send(dead, delay=0)
    one.serve_queues()
    assert (await hosts.finished(second)).status == "completed"
    await judge(hosts, first, second, lost_leases=1)


@pytest.mark.parametrize("text", ["x", "x" * 50_000])
async def test_the_end_of_a_segment_that_was_closed_meanwhile_is_its_last_event(hosts: Fleet, text: str) -> None:
    """A reader has read the row before the log went on in another segment."""
    storage = hosts.storage
    one = host(hosts)
    reader = await one.stream(background("quick"))
    await reader.whole()
    row = await hosts.row(await reader.response_id())
    assert row is not None
    name, lease = "closed-segment", "00000000-0000-0000-0000-000000000001"
    await storage.log.create(name)
    await storage.log.acquire(name, lease)
    frame = sse.encode({"type": "response.output_text.delta", "delta": text, "sequence_number": 7})
    stale = replace(row, segments=(Segment(name=name, first_sequence=7),))
    await storage.log.append(name, CONTINUED, position=0, lease_id=lease)
    assert (await read_log_end(storage.log, stale)).last_sequence == 6
    await storage.log.append(name, frame + CONTINUED, position=len(CONTINUED), lease_id=lease)
    assert (await read_log_end(storage.log, stale)).last_sequence == 7
