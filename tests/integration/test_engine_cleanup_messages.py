"""Cleanup messages: neither an outage nor a freeze of who deletes leaves anything that they do not lead to (V10)."""

import asyncio
from contextlib import suppress

import pytest

from protocol.conversations import NewConversation
from resilience import conversations
from resilience.conversations import key_of
from storage.driver import PAYLOADS, RESPONSES
from storage.memory import MemoryDriver
from storage.seam import Fault
from tests.support.deaths import die_after
from tests.support.engines import PRINCIPAL, HostGone, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_left
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LARGE = "x" * 60_000
"""Enough for a request, or items, that are stored beside their row."""

OUTAGE = 40.0
"""Seconds: a message is shown again at once, so its five times are over within one."""

FROZEN = 60.0
"""Seconds: the cleanup message, seen after five, is received and done with."""


@pytest.mark.parametrize("operation", ["row.read", "log.list", "payload.list", "chain.delete"])
async def test_a_deletion_whose_process_died_is_completed_after_an_outage(operation: str) -> None:
    async with fleet(Teller(3)) as hosts:
        victim, other = hosts.host(queues=False), hosts.host()
        response_id = (await other.create(background(LARGE, stream=True)))["id"]
        await hosts.finished(response_id)
        await hosts.quiet()
        die_after(hosts, victim, "row.replace")
        with suppress(HostGone):
            await victim.delete(response_id)
        outage = other.seam.inject(Fault(operation=operation, kind="before"))
        await asyncio.sleep(OUTAGE)
        outage.remove()
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


async def test_a_deletion_of_a_conversation_whose_process_died_is_completed_after_an_outage() -> None:
    async with fleet(Teller(1)) as hosts:
        victim, other = hosts.host(queues=False), hosts.host()
        runtime = victim.engine.runtime
        new = NewConversation([{"type": "message", "role": "user", "content": LARGE}], {})
        made = str((await victim.inside(conversations.create(runtime, PRINCIPAL, new)))["id"])
        die_after(hosts, victim, "conversation.delete")
        with suppress(HostGone):
            await victim.inside(conversations.delete(runtime, PRINCIPAL, made))
        outage = other.seam.inject(Fault(operation="conversation.*", kind="before"))
        await asyncio.sleep(OUTAGE)
        outage.remove()
        await hosts.quiet()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        assert [name for key, name in driver.tables[RESPONSES] if key == key_of(PRINCIPAL, made)] == ["chain"]
        assert not driver.containers[PAYLOADS]


async def test_a_deletion_of_a_conversation_that_slept_and_died_behind_its_marker_is_completed() -> None:
    async with fleet(Teller(1)) as hosts:
        sleeper = hosts.host(queues=False)
        hosts.host()
        runtime = sleeper.engine.runtime
        new = NewConversation([{"type": "message", "role": "user", "content": LARGE}], {})
        made = str((await sleeper.inside(conversations.create(runtime, PRINCIPAL, new)))["id"])
        asleep = sleeper.pause_at("conversation.delete")
        die_after(hosts, sleeper, "conversation.delete")
        deleting = asyncio.ensure_future(sleeper.inside(conversations.delete(runtime, PRINCIPAL, made)))
        await until(asleep.is_set)
        await asyncio.sleep(FROZEN)
        sleeper.resume()
        with suppress(HostGone):
            await deleting
        await hosts.quiet()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        assert [name for key, name in driver.tables[RESPONSES] if key == key_of(PRINCIPAL, made)] == ["chain"]
        assert not driver.containers[PAYLOADS]


async def test_a_cleanup_message_of_a_conversation_that_is_not_deleted_is_looked_at_twice_and_does_no_harm() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        runtime = host.engine.runtime
        new = NewConversation([{"type": "message", "role": "user", "content": "hi"}], {})
        made = str((await host.inside(conversations.create(runtime, PRINCIPAL, new)))["id"])
        await host.inside(conversations._send_cleanup(runtime, key_of(PRINCIPAL, made)))
        await hosts.quiet()
        assert sum(host.received.values()) == 2
        await host.inside(conversations.get(runtime, PRINCIPAL, made))
