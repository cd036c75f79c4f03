"""Blobs that somebody stores for a response that was deleted meanwhile go as well (V10).

Whoever sleeps right before such a call may wake up when the cleanup message was received long ago. The write that
would have pointed to the blob is refused; then it is looked after.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import pytest

from protocol.errors import ApiError
from resilience.options import ResponsesServerOptions
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_left
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LARGE = "x" * 60_000
"""Enough for a request and a snapshot that are stored beside their row."""

LONG = 15.0
"""Seconds: a cleanup message is received and done with."""


NOTICED = 2.0
"""Seconds: an owner has looked at its row meanwhile."""


class Held:
    """The first such call of a host, which otherwise goes on."""

    def __init__(self, host: Host, operation: str) -> None:
        self.reached = asyncio.Event()
        self._released = asyncio.Event()
        self._operation = operation
        host.seam.hooks.append(self._hold)

    async def _hold(self, name: str, moment: Moment) -> None:
        if (name, moment) == (self._operation, "before") and not self.reached.is_set():
            self.reached.set()
            await self._released.wait()

    async def over_the_deletion(self, hosts: Fleet, response_id: str) -> None:
        """Let it go when the deletion is long over; nothing is left."""
        await asyncio.sleep(LONG)
        self._released.set()
        await asyncio.sleep(LONG)
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


async def ended(hosts: Fleet, response_id: str) -> None:
    async def is_terminal() -> bool:
        row = await hosts.row(response_id)
        return row is not None and row.status in ("completed", "failed")

    await until(is_terminal)
    await asyncio.sleep(LONG)


async def deleted(hosts: Fleet, by: Host, response_id: str, sleeper: Host) -> None:
    """Delete, long before the sleeper goes on."""
    await by.delete(response_id)
    await asyncio.sleep(LONG)
    await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
    before = len(sleeper.calls)
    sleeper.resume()
    await asyncio.sleep(LONG)
    await hosts.quiet()
    assert len(sleeper.calls) > before
    await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


@pytest.mark.parametrize("request_fields", [{}, {"conversation": "talk"}], ids=["alone", "turn"])
async def test_a_snapshot_of_an_owner_that_slept_over_the_deletion_goes(request_fields: dict[str, Any]) -> None:
    async with fleet(Teller(3, pause=0.5, ballast=len(LARGE), checkpoints=True)) as hosts:
        sleeper, other = hosts.host(queues=False, eager_start=True), hosts.host()
        asleep = sleeper.pause_at("payload.put")
        response_id = (await sleeper.create(background(**request_fields)))["id"]
        await until(asleep.is_set)
        await ended(hosts, response_id)
        await deleted(hosts, other, response_id, sleeper)
        assert not sleeper.engine.runtime.running


async def test_a_segment_of_an_owner_that_slept_over_the_deletion_goes() -> None:
    async with fleet(Teller(8, pause=0.5)) as hosts:
        sleeper, other = hosts.host(queues=False, eager_start=True, segment_blocks=3), hosts.host()
        reader = await sleeper.stream(background())
        response_id = await reader.response_id()
        asleep = sleeper.pause_at("log.create")
        await until(asleep.is_set)
        await ended(hosts, response_id)
        await deleted(hosts, other, response_id, sleeper)


async def test_a_snapshot_of_a_cancelled_response_whose_owner_slept_over_the_deletion_goes() -> None:
    """The owner is still the one that the row names: it has the response's messages, and they are answered for."""
    async with fleet(Teller(3, pause=0.5, ballast=len(LARGE), checkpoints=True)) as hosts:
        api, owner = hosts.host(queues=False), hosts.host()
        held = Held(owner, "payload.put")
        response_id = (await api.create(background()))["id"]
        await until(held.reached.is_set)
        await api.cancel(response_id)
        await api.delete(response_id)
        await held.over_the_deletion(hosts, response_id)


@pytest.mark.parametrize("request_fields", [{}, {"conversation": "talk"}], ids=["alone", "turn"])
async def test_a_snapshot_of_an_owner_that_knew_of_the_cancel_and_slept_over_the_deletion_goes(
    request_fields: dict[str, Any],
) -> None:
    """What it was told is the cancelled row, not the marker of the deletion that came behind it."""
    async with fleet(Teller(3, pause=0.5, ballast=len(LARGE), checkpoints=True)) as hosts:
        api, owner = hosts.host(queues=False), hosts.host()
        held = Held(owner, "payload.put")
        response_id = (await api.create(background(**request_fields)))["id"]
        await until(held.reached.is_set)
        await api.cancel(response_id)
        await asyncio.sleep(NOTICED)
        await api.delete(response_id)
        await held.over_the_deletion(hosts, response_id)


async def test_a_segment_of_an_owner_that_knew_of_the_cancel_and_slept_over_the_deletion_goes() -> None:
    async with fleet(Teller(8, pause=0.5)) as hosts:
        api, owner = hosts.host(queues=False), hosts.host(segment_blocks=3)
        held = Held(owner, "log.create")
        response_id = await (await api.stream(background())).response_id()
        await until(held.reached.is_set)
        await api.cancel(response_id)
        await asyncio.sleep(NOTICED)
        await api.delete(response_id)
        await held.over_the_deletion(hosts, response_id)


async def test_a_snapshot_of_a_canceller_that_slept_over_the_deletion_goes() -> None:
    async with fleet(Teller(3, pause=2.0)) as hosts:
        sleeper, other = hosts.host(queues=False), hosts.host()
        response_id = (await sleeper.create(background(instructions=LARGE)))["id"]
        await until(lambda: hosts.entries[response_id])
        asleep = sleeper.pause_at("payload.put")
        cancelling = asyncio.ensure_future(sleeper.cancel(response_id))
        await until(asleep.is_set)
        await ended(hosts, response_id)
        await deleted(hosts, other, response_id, sleeper)
        with pytest.raises(ApiError) as refused:
            await cancelling
        assert refused.value.status == 404


@pytest.mark.parametrize("steerable", [False, True])
async def test_a_snapshot_of_an_adopter_that_slept_over_the_deletion_goes(steerable: bool) -> None:
    options = ResponsesServerOptions(steerable_conversations=steerable)
    async with fleet(Teller(1, pause=30.0)) as hosts:
        victim = hosts.host(queues=False, options=options)
        call = asyncio.ensure_future(victim.create({"input": "hi", "instructions": LARGE}))
        await until(lambda: hosts.entries)
        (response_id,) = hosts.entries
        await asyncio.sleep(1)
        await victim.crash()
        await gone(call)
        sleeper = hosts.host(options=options)
        asleep = sleeper.pause_at("payload.put")
        await until(asleep.is_set)
        other = hosts.host(options=options).serve_timer()
        await ended(hosts, response_id)
        await deleted(hosts, other, response_id, sleeper)


async def gone(call: Awaitable[Any]) -> None:
    with suppress(HostGone):
        await call


@pytest.mark.parametrize("operation", ["payload.put", "log.create", "row.insert"])
async def test_what_an_acceptance_that_slept_over_the_deletion_has_made_goes(operation: str) -> None:
    """The same request, by its key, was accepted elsewhere."""
    async with fleet(Teller(1)) as hosts:
        sleeper, other = hosts.host(queues=False), hosts.host()
        body = background(LARGE, stream=True)
        asleep = sleeper.pause_at(operation)
        asking = asyncio.ensure_future(sleeper.create(body, idempotency_key="k"))
        await until(asleep.is_set)
        response_id = (await other.create(body, idempotency_key="k"))["id"]
        await ended(hosts, response_id)
        await deleted(hosts, other, response_id, sleeper)
        with pytest.raises(ApiError):
            await asking


@pytest.mark.parametrize("request_fields", [{}, {"conversation": "talk"}], ids=["alone", "turn"])
async def test_a_snapshot_of_a_foreground_run_that_slept_over_the_deletion_goes(request_fields: dict[str, Any]) -> None:
    async with fleet(Teller(1, ballast=len(LARGE), checkpoints=True)) as hosts:
        sleeper = hosts.host(queues=False)
        asleep = sleeper.pause_at("payload.put")
        call = sleeper.spawn(sleeper.create({"input": "hi", **request_fields}), "asking")
        call.add_done_callback(lambda done: done.cancelled() or done.exception())
        await until(asleep.is_set)
        (response_id,) = hosts.entries
        other = hosts.host()
        await ended(hosts, response_id)
        await deleted(hosts, other, response_id, sleeper)
