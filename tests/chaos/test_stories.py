"""Stories that the state machine found, told on purpose."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from resilience.options import ResponsesServerOptions
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


async def judge(hosts: Fleet, *turns: str) -> None:
    tellers = hosts.handler
    assert isinstance(tellers, Tellers)
    rows = {turn: row for turn in turns if (row := await hosts.row(turn)) is not None}
    await assert_chain(hosts.storage, PRINCIPAL, turns[0], tellers.spans(rows), accepted=turns)


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
