"""What a claim that storage does not answer leaves to do is done when it answers again (S5, R3, R13)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.driver import RESPONSES, Update
from storage.errors import MalformedRecord
from storage.rows import row_key
from storage.seam import Fault
from tests.support.deaths import die_after
from tests.support.engines import background, fleet, key_of, start_message, until
from tests.support.handlers import Teller
from tests.support.turns import Turns, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
TIME_LIMIT = 1_800.0
"""Seconds after which the platform ends the whole process."""


async def test_a_blob_outage_while_a_finished_turn_is_looked_after_strands_no_next_turn() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        victim = api = hosts.host(options=STEERABLE, queues=False, eager_start=True)
        other = hosts.host(options=STEERABLE)  # takes the start message: the run is elsewhere
        await victim.stream(background("first", conversation="talk"))
        first = (await hosts.ids())[0]
        await until(lambda: turns.entered("first"))
        await asyncio.sleep(3)
        second = (await api.create(background("second", conversation="talk")))["id"]
        turns.gates["second"].set()
        die_after(hosts, victim, "row.replace")  # the outcome of the first one is there, and nothing after it
        turns.gates["first"].set()
        await until(lambda: victim.dead)
        assert (await hosts.finished(first)).status == "completed"
        other.serve_timer()
        outage = other.seam.inject(Fault(operation="log.*", kind="before"))
        await asyncio.sleep(40)  # blobs only; tables and queues answer
        outage.remove()
        await asyncio.sleep(900)
        assert (await hosts.finished(second)).status == "completed"


async def test_a_claim_that_met_an_outcome_is_not_closed_before_that_is_looked_after() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=False)
        victim = hosts.host(options=STEERABLE)
        # The victim claims the first turn, and blobs stop to answer at its lease.
        outage = victim.seam.inject(Fault(operation="log.*", kind="before"))
        await api.stream(background("first", conversation="talk"))
        first = (await hosts.ids())[0]

        async def claimed() -> bool:
            row = await hosts.row(first)
            return row is not None and bool(row.owner)

        await until(claimed)
        second = (await api.create(background("second", conversation="talk")))["id"]
        turns.gates["second"].set()
        await api.cancel(first)
        await asyncio.sleep(60)
        await victim.crash()
        outage.remove()
        hosts.host(options=STEERABLE).serve_timer()
        await asyncio.sleep(900)
        assert (await hosts.finished(second)).status == "completed"


async def test_a_response_whose_record_is_unreadable_never_enters_its_handler() -> None:
    """R3, also where the claim has to be made again."""
    requests: list[Any] = []
    teller = Teller(2)

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        requests.append(request)
        async for event in teller(request, context, signal):
            yield event

    async with fleet(handler) as hosts:
        api, worker = hosts.host(queues=False), hosts.host(queues=False)
        response_id = (await api.create(background(stream=False)))["id"]
        driver, key = hosts.storage.driver, key_of(response_id)
        entity = await driver.get_entity(RESPONSES, key, row_key(response_id))
        damaged = {**entity.properties, "request_inline": b"{", "generation": 1}
        await driver.update_entity(RESPONSES, Update(key, row_key(response_id), damaged, entity.etag))
        # It was entered before (a recovery): the chain's metadata is read, and that takes too long.
        fault = worker.seam.inject(Fault(operation="chain.read", kind="before"))
        worker.spawn(worker.engine.run_message(start_message(response_id)), "message")
        await asyncio.sleep(31)
        fault.remove()
        row = await hosts.finished(response_id)
        assert requests == []
        assert row.status == "failed"


@pytest.mark.parametrize("after_claim", [False, True])
async def test_an_invocation_that_waited_for_storage_is_over_within_the_platforms_limit(after_claim: bool) -> None:
    options = ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=10.0)
    async with fleet(Teller(400, pause=10.0)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host(options=options, queues=False)
        await api.stream(background())
        response_id = (await hosts.ids())[0]
        outage = worker.seam.inject(Fault(operation="log.acquire" if after_claim else "row.read", kind="before"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        invocation = worker.spawn(worker.engine.run_message(start_message(response_id)), "message")
        await asyncio.sleep(100 if not after_claim else 300)
        outage.remove()
        await until(invocation.done, "the end", 4000)
        took = loop.time() - began
        assert took < TIME_LIMIT


async def test_what_storage_refuses_behind_a_declined_claim_is_not_tried_without_end() -> None:
    """A damaged chain, say: its message has to tell, for nothing gets better by waiting (R13)."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(options=STEERABLE)
        response_id = (await host.create(background(conversation="talk")))["id"]
        await hosts.finished(response_id)
        await hosts.quiet()
        other = hosts.host(options=STEERABLE, queues=False)
        other.seam.inject(Fault(operation="chain.*", kind="before", error=MalformedRecord))
        call = other.spawn(other.engine.run_message(start_message(response_id)), "message")
        await until(call.done, "an answer", 30)
        assert isinstance(call.exception(), MalformedRecord)
