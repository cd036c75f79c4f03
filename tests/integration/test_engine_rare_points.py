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
from resilience.options import ResponsesServerOptions
from storage.errors import StorageError
from storage.seam import Fault, Moment, Operation
from tests.support.engines import PRINCIPAL, Doubling, Fleet, Host, HostGone, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import assert_chain, check_nothing_left, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop
MOMENTS: tuple[Moment, ...] = ("before", "after")
MOST_WRITES = 40
A_DAY = 86_400.0
AN_HOUR = 3_600.0
STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)

RETENTION = 2 / 24
"""Days: two hours."""

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


async def _steer_and_cancel(victim: Host) -> None:
    # The handler is still there: when it is gone, a write to the chain alone lets the next turn begin.
    first = await victim.create(background(conversation="talk"))
    second = await victim.create(background(conversation="talk"))
    await asyncio.sleep(0.7)
    await victim.cancel(first["id"])
    await _wait_for(victim, second)


async def _finish(victim: Host) -> None:
    await victim.create({"model": "m", "input": "hi"})


async def _expire(victim: Host) -> None:
    await _finish(victim)
    await asyncio.sleep(RETENTION * A_DAY + 2 * AN_HOUR)
    await victim.inside(victim.engine.expire())


async def _wait_for(victim: Host, accepted: Json) -> None:
    async def ended() -> bool:
        return victim.dead or (await victim.get(accepted["id"]))["status"] in ("completed", "failed")

    await until(ended)


async def _survive(
    lead: Callable[[Host], Awaitable[None]], operation: Operation, moment: Moment, doubled: int | None = None
) -> bool:
    """Lead a host to its death, and see that others finish what it began; False if it did not come there."""
    async with fleet(handler) as hosts:
        settings: dict[str, Any] = {"options": STEERABLE, "retention_days": RETENTION}
        victim = (
            # Without queues a silent day is quickly over.
            hosts.host(queues=not operation.startswith(("key.", "expiry.")), **settings)
            if doubled is None
            else hosts.host(line=partial(Doubling, write=doubled), eager_start=True, **settings)
        )
        die_at(hosts, victim, operation, moment)
        with suppress(HostGone, StorageError, AssertionError):
            await lead(victim)
        if doubled is None:
            await until(lambda: victim.dead, f"the death at {operation}:{moment}")
        if not victim.dead:
            return False
        rescuer = hosts.host(**settings).serve_timer()
        if operation.startswith("key."):
            assert (await _keyed(rescuer, KEYED))["status"] in ("completed", "failed")
        await hosts.quiet()
        ids = await hosts.ids()
        for response_id in ids:
            await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), crashes=1)
        if operation is Operation.CHAIN_CONFIRM:
            spans = [(each, float(place), float(place)) for place, each in enumerate(hosts.entries)]
            await assert_chain(hosts.storage, PRINCIPAL, ids[0], spans, accepted=ids, crashes=1)
        if operation.startswith("expiry."):
            await _expires(hosts, rescuer)
        return True


async def _expires(hosts: Fleet, host: Host) -> None:
    """What is over goes with its time, whoever died on the way."""
    ids = {*await hosts.ids(), *hosts.entries}
    assert ids
    await asyncio.sleep(RETENTION * A_DAY + 2 * AN_HOUR)
    for _ in ids:
        await host.inside(host.engine.expire())
    assert not await hosts.ids()
    for response_id in ids:
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


LEADS: dict[Operation, Callable[[Host], Awaitable[None]]] = {
    Operation.ROW_LIST: _continue,
    Operation.ROW_DELETE: _accept_in_vain,
    Operation.KEY_TIME: _use_key_twice,
    Operation.KEY_REPLACE: _use_key_after_a_day,
    Operation.EXPIRY_NOTE: _finish,
    Operation.EXPIRY_DUE: _expire,
    Operation.EXPIRY_DONE: _expire,
}
LOST_REPLIES: dict[Operation, Callable[[Host], Awaitable[None]]] = {
    Operation.ROW_CONFIRM: _accept,
    Operation.LEDGER_CONFIRM: _accept,
    Operation.CHAIN_CONFIRM: _steer_and_cancel,
}
KILLED_HERE = frozenset({*LEADS, *LOST_REPLIES, Operation.KEY_RELEASE})
"""At which operations a process dies in this module; the crash points of real processes leave these to it."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("operation", "lead"), LEADS.items())
async def test_a_death_on_a_rare_way_is_survived(
    operation: Operation, lead: Callable[[Host], Awaitable[None]], moment: Moment
) -> None:
    assert await _survive(lead, operation, moment)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("operation", "lead"), LOST_REPLIES.items())
async def test_a_death_while_a_lost_reply_is_looked_after_is_survived(
    operation: Operation, lead: Callable[[Host], Awaitable[None]], moment: Moment
) -> None:
    deaths = [await _survive(lead, operation, moment, write) for write in range(1, MOST_WRITES)]
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
