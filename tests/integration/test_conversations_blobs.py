"""Items that lie beside their row: whoever dies, sleeps or loses a race leaves none that no row names (V10)."""

import asyncio
from typing import Any

import pytest

from protocol.items import ListQuery
from resilience import conversations
from resilience.conversations import key_of
from storage.driver import PAYLOADS
from storage.errors import ChainMoved, StorageUnavailable
from storage.memory import MemoryDriver
from storage.seam import Fault
from tests.integration.test_conversations import exists, make, put, texts
from tests.support.deaths import die_after
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

SECRET = "secret " * 6_000
OTHER = "other " * 8_000
"""Each of them is stored beside its row."""

FROZEN = 300.0
"""Seconds: longer than anybody waits for a request."""


def blobs_with(hosts: Fleet, text: str) -> list[str]:
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    return [name for name, blob in driver.containers[PAYLOADS].items() if text.encode() in bytes(blob.data)]


async def items_of(host: Host, conversation: str) -> list[str]:
    query = ListQuery(limit=100, order="asc")
    page = await host.inside(conversations.list_items(host.engine.runtime, PRINCIPAL, conversation, query))
    return [item["id"] for item in page["data"]]


async def delete_item(host: Host, conversation: str, item: str) -> None:
    await host.inside(conversations.delete_item(host.engine.runtime, PRINCIPAL, conversation, item))


@pytest.mark.parametrize("died", [False, True], ids=["outage", "death"])
async def test_a_conversation_that_was_never_made_leaves_no_items(died: bool) -> None:
    async with fleet(Teller(1)) as hosts:
        victim = hosts.host(queues=False)
        if died:
            die_after(hosts, victim, "payload.put")
        else:
            victim.seam.inject(Fault(operation="conversation.append", kind="before"))
        with pytest.raises(HostGone if died else StorageUnavailable):
            await make(victim, SECRET)
        assert blobs_with(hosts, "secret")
        hosts.host()
        await hosts.quiet()
        assert blobs_with(hosts, "secret") == []


@pytest.mark.parametrize("died", [False, True], ids=["outage", "death"])
async def test_items_that_were_never_put_in_leave_nothing(died: bool) -> None:
    async with fleet(Teller(1)) as hosts:
        victim, other = hosts.host(queues=False), hosts.host()
        conversation = await make(other, OTHER)
        if died:
            die_after(hosts, victim, "payload.put")
        else:
            victim.seam.inject(Fault(operation="conversation.append", kind="before"))
        with pytest.raises(HostGone if died else StorageUnavailable):
            await put(victim, conversation, SECRET)
        assert blobs_with(hosts, "secret")
        await hosts.quiet()
        assert blobs_with(hosts, "secret") == []
        assert await texts(other, conversation) == [OTHER]


@pytest.mark.parametrize("kept", ["short", OTHER], ids=["inline", "blob"])
async def test_an_item_that_was_taken_out_is_gone_though_its_process_died_behind_that(kept: str) -> None:
    async with fleet(Teller(1)) as hosts:
        victim, other = hosts.host(queues=False), hosts.host()
        conversation = await make(other, kept, SECRET)
        (_, item) = await items_of(other, conversation)
        die_after(hosts, victim, "conversation.remove")
        with pytest.raises(HostGone):
            await delete_item(victim, conversation, item)
        assert blobs_with(hosts, "secret")
        await hosts.quiet()
        assert blobs_with(hosts, "secret") == []
        assert await texts(other, conversation) == [kept]


async def test_an_item_that_was_taken_out_is_gone_though_others_were_put_in_meanwhile() -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(queues=False), hosts.host(queues=False)
        conversation = await make(host, SECRET, OTHER)
        (first, second) = await items_of(host, conversation)
        reached = host.pause_at("conversation.remove")
        deleting = asyncio.ensure_future(delete_item(host, conversation, second))
        await reached.wait()
        await put(other, conversation, "meanwhile")
        host.resume()
        await deleting
        await delete_item(host, conversation, first)
        assert blobs_with(hosts, "secret") == []
        assert await texts(other, conversation) == ["meanwhile"]


async def test_items_whose_blob_was_cleaned_up_while_their_process_slept_are_stored_anew() -> None:
    async with fleet(Teller(1)) as hosts:
        sleeper, other = hosts.host(queues=False), hosts.host()
        conversation = await make(other, "one")
        asleep = sleeper.pause_at("conversation.append")
        putting = asyncio.ensure_future(put(sleeper, conversation, OTHER))
        await asleep.wait()
        await asyncio.sleep(FROZEN)
        assert blobs_with(hosts, "other") == []
        sleeper.resume()
        await putting
        await hosts.quiet()
        assert await texts(other, conversation) == ["one", OTHER]


async def test_a_conversation_whose_items_were_cleaned_up_while_its_process_slept_is_not_made_without_them() -> None:
    async with fleet(Teller(1)) as hosts:
        sleeper = hosts.host(queues=False)
        hosts.host()
        asleep = sleeper.pause_at("conversation.append")
        making = asyncio.ensure_future(make(sleeper, OTHER))
        await asleep.wait()
        await asyncio.sleep(FROZEN)
        sleeper.resume()
        with pytest.raises(ChainMoved):
            await making
        await hosts.quiet()
        assert blobs_with(hosts, "other") == []


async def test_items_that_a_row_names_outlast_every_clean_up() -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        conversation = await make(host, OTHER)
        key = key_of(PRINCIPAL, conversation)
        working: list[asyncio.Task[Any]] = []
        for number in range(10):
            working.append(asyncio.ensure_future(put(other, conversation, f"{number} {OTHER}")))
            working.append(
                asyncio.ensure_future(host.inside(conversations.clean_up(host.engine.runtime, key, late=True)))
            )
            await asyncio.sleep(0)
        await asyncio.gather(*working)
        await hosts.quiet()
        assert await exists(host, conversation)
        assert sorted(await texts(host, conversation)) == sorted(
            [OTHER, *(f"{number} {OTHER}" for number in range(10))]
        )
        assert len(blobs_with(hosts, "other")) == 11
