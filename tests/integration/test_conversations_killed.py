"""A process killed at each storage call of a change to a conversation: all of the change is there, or nothing of it.

In virtual time over memory; what the process was asked for next, another one does.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from protocol.conversations import ConversationItemNotFound, NewConversation
from protocol.items import ListQuery
from resilience import conversations
from storage.driver import RESPONSES
from storage.memory import MemoryDriver
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]
type Seen = tuple[list[str], Json]
type Change = Callable[[Host, str, list[str]], Awaitable[Any]]

EVENT_LOOP = VirtualTimeLoop
MOST_CALLS = 30
BEFORE = ["a" * 40_000, "b"]
"""The first is too large for a row."""
METADATA = {"k": "v"}


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


async def create(host: Host) -> str:
    new = NewConversation([user(text) for text in BEFORE], METADATA)
    return str((await host.inside(conversations.create(host.engine.runtime, PRINCIPAL, new)))["id"])


async def put(host: Host, conversation: str, item_ids: list[str]) -> None:
    given = [user("c" * 40_000), user("d")]
    await host.inside(conversations.add_items(host.engine.runtime, PRINCIPAL, conversation, given))


async def describe(host: Host, conversation: str, item_ids: list[str]) -> None:
    await host.inside(conversations.update(host.engine.runtime, PRINCIPAL, conversation, {"other": "value"}))


async def take_out(host: Host, conversation: str, item_ids: list[str]) -> None:
    await host.inside(conversations.delete_item(host.engine.runtime, PRINCIPAL, conversation, item_ids[0]))


async def items_in(host: Host, conversation: str) -> list[Json]:
    query = ListQuery(limit=100, order="asc")
    page = await host.inside(conversations.list_items(host.engine.runtime, PRINCIPAL, conversation, query))
    return list(page["data"])


async def seen(host: Host, conversation: str) -> Seen:
    shown = await host.inside(conversations.get(host.engine.runtime, PRINCIPAL, conversation))
    return [item["content"][0]["text"] for item in await items_in(host, conversation)], shown["metadata"]


def made(hosts: Fleet) -> list[str]:
    """The conversations that are on record."""
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    rows = driver.tables[RESPONSES]
    found = [str(row.properties["id"]) for (_, key), row in rows.items() if key == "conversation"]
    owned = {partition for partition, key in rows if key == "conversation"}
    assert {partition for partition, _ in rows} == owned, "there are items or a chain of no conversation"
    return found


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_process_that_dies_while_it_makes_a_conversation_leaves_all_of_it_or_nothing(moment: Moment) -> None:
    outcomes = []
    for number in range(1, MOST_CALLS):
        async with fleet(Teller(1)) as hosts:
            victim, other = hosts.host(queues=False), hosts.host(queues=False)
            victim.crash_at(number, moment)
            with suppress(HostGone):
                await create(victim)
            found = made(hosts)
            assert len(found) <= 1
            for conversation in found:
                assert await seen(other, conversation) == (BEFORE, METADATA)
            outcomes.append(bool(found))
            if not victim.dead:
                break
    else:
        pytest.fail("it makes more calls than were tried")
    assert outcomes == sorted(outcomes), f"it was there, and after a later death it was not: {outcomes}"
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("change", "after"),
    [
        (put, ([*BEFORE, "c" * 40_000, "d"], METADATA)),
        (describe, (BEFORE, {"other": "value"})),
        (take_out, (BEFORE[1:], METADATA)),
    ],
)
async def test_a_process_that_dies_while_it_changes_a_conversation_leaves_all_of_the_change_or_nothing(
    change: Change, after: Seen, moment: Moment
) -> None:
    outcomes = []
    for number in range(1, MOST_CALLS):
        async with fleet(Teller(1)) as hosts:
            victim, other = hosts.host(queues=False), hosts.host(queues=False)
            conversation = await create(other)
            item_ids = [item["id"] for item in await items_in(other, conversation)]
            victim.crash_at(number, moment)
            with suppress(HostGone):
                await change(victim, conversation, item_ids)
            found = await seen(other, conversation)
            assert found in ((BEFORE, METADATA), after), f"after a death {moment} call {number}"
            outcomes.append(found == after)
            if found != after:
                await change(other, conversation, item_ids)
            elif change is take_out:
                with pytest.raises(ConversationItemNotFound):
                    await change(other, conversation, item_ids)
            assert await seen(other, conversation) == after, "another process did not get it done"
            if not victim.dead:
                break
    else:
        pytest.fail("it makes more calls than were tried")
    assert outcomes == sorted(outcomes), f"it was done, and after a later death it was not: {outcomes}"
    assert set(outcomes) == {False, True}
