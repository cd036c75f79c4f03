"""A process killed at the storage operations that only something rare leads to: a lost reply, a failed acceptance, a
key that is used again. In virtual time over memory.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from protocol.requests import parse_create
from resilience.context import ResponseContext
from resilience.engine import Call
from storage.errors import StorageError
from storage.seam import Fault, Moment, Operation
from tests.support.engines import PRINCIPAL, Doubling, Fleet, Host, HostGone, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop
MOMENTS: tuple[Moment, ...] = ("before", "after")
MOST_WRITES = 40
A_DAY = 86_400.0

KEYED = {"model": "m", "input": "keyed"}


def die_at(hosts: Fleet, host: Host, operation: Operation, moment: Moment) -> None:
    """Kill the host when it first passes that point."""

    async def passed(name: str, when: Moment) -> None:
        if (name, when) == (operation, moment) and not host.dead:
            hosts.kill(host)
        await host.passage()

    host.seam.hooks.append(passed)


async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
    """Tells three words; refuses to when asked to; looks at what was said before."""
    await context.get_history()
    if request["input"] == "refuse":
        raise ValueError("as asked")
    async for event in Teller(3, pause=0.5)(request, context, signal):
        yield event


async def _keyed(host: Host, body: Json) -> Json:
    call = Call(
        request=parse_create(json.dumps(body).encode()),
        principal=PRINCIPAL,
        client_headers={},
        query_parameters={},
        idempotency_key="the key",
    )
    return await host.inside(host.engine.create(call, _connected))


async def _connected() -> bool:
    return False


async def _accept(victim: Host) -> None:
    await (await victim.stream(background())).whole()


async def _accept_in_vain(victim: Host) -> None:
    # Stored, but the reply is lost, and storage is gone before anybody can ask.
    victim.seam.inject(Fault(operation="row.insert", kind="after", times=1))
    victim.seam.inject(Fault(operation="row.insert", kind="before", after=1, times=1))
    with suppress(StorageError):
        await victim.create(background())


async def _use_key_twice(victim: Host) -> None:
    await _keyed(victim, KEYED)
    await _keyed(victim, KEYED)


async def _use_key_after_a_day(victim: Host) -> None:
    await _keyed(victim, KEYED)
    await asyncio.sleep(A_DAY + 60)
    await _keyed(victim, KEYED)


async def _refuse_with_key(victim: Host) -> None:
    await _keyed(victim, {**KEYED, "input": "refuse"})


async def _continue(victim: Host) -> None:
    first = await victim.create({"model": "m", "input": "first"})
    await _wait_for(victim, await victim.create(background(previous_response_id=first["id"])))


async def _wait_for(victim: Host, accepted: Json) -> None:
    async def ended() -> bool:
        return victim.dead or (await victim.get(accepted["id"]))["status"] in ("completed", "failed")

    await until(ended)


async def _survive(
    lead: Callable[[Host], Awaitable[None]], operation: Operation, moment: Moment, doubled: int | None = None
) -> bool:
    """Lead a host to its death, and see that others finish what it began; False if it did not come there."""
    async with fleet(handler) as hosts:
        victim = (
            hosts.host(queues=not operation.startswith("key."))  # a silent day is quickly over
            if doubled is None
            else hosts.host(line=partial(Doubling, write=doubled), eager_start=True)
        )
        die_at(hosts, victim, operation, moment)
        with suppress(HostGone, StorageError, AssertionError):
            await lead(victim)
        if doubled is None:
            await until(lambda: victim.dead, f"the death at {operation}:{moment}")
        if not victim.dead:
            return False
        rescuer = hosts.host().serve_timer()
        if operation.startswith("key."):
            assert (await _keyed(rescuer, KEYED))["status"] in ("completed", "failed")
        await hosts.quiet()
        for response_id in await hosts.ids():
            await check_response(hosts.storage, PRINCIPAL, response_id)
        return True


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("operation", "lead"),
    [
        (Operation.ROW_LIST, _continue),
        (Operation.ROW_DELETE, _accept_in_vain),
        (Operation.KEY_TIME, _use_key_twice),
        (Operation.KEY_REPLACE, _use_key_after_a_day),
    ],
)
async def test_a_death_on_a_rare_way_is_survived(
    operation: Operation, lead: Callable[[Host], Awaitable[None]], moment: Moment
) -> None:
    assert await _survive(lead, operation, moment)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("operation", [Operation.ROW_CONFIRM, Operation.LEDGER_CONFIRM])
async def test_a_death_while_a_lost_reply_is_looked_after_is_survived(operation: Operation, moment: Moment) -> None:
    deaths = [await _survive(_accept, operation, moment, write) for write in range(1, MOST_WRITES)]
    assert any(deaths)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_death_while_a_key_is_given_up_leaves_the_key_usable(moment: Moment) -> None:
    """The claim was for a response that was refused: after a while it stands for another one, or is free."""
    async with fleet(handler) as hosts:
        victim = hosts.host()
        die_at(hosts, victim, Operation.KEY_RELEASE, moment)
        with suppress(HostGone):
            await _refuse_with_key(victim)
        assert victim.dead
        rescuer = hosts.host().serve_timer()
        again = await _keyed(rescuer, {**KEYED, "input": "refuse"} if moment == "before" else KEYED)
        assert again["status"] == ("failed" if moment == "before" else "completed")
        await hosts.quiet()
