"""Conversations under fire: processes killed in the middle, writes that race. In virtual time over memory."""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from protocol.conversations import NewConversation
from protocol.errors import ApiError, ConversationLocked, ConversationNotFound
from protocol.items import ListQuery
from resilience import conversations
from resilience.conversations import key_of
from resilience.options import ResponsesServerOptions
from storage.driver import PAYLOADS, RESPONSES
from storage.errors import StorageUnavailable
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, background, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop
MOST_CALLS = 30
ROUNDS = 40
LOST_AFTER = 20.0
"""Seconds until a reply that is on its way is given up."""


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


async def make(host: Host, *texts: str) -> str:
    new = NewConversation([user(text) for text in texts], {"k": "v"})
    return str((await host.inside(conversations.create(host.engine.runtime, PRINCIPAL, new)))["id"])


async def put(host: Host, conversation: str, *texts: str) -> list[str]:
    """The texts, once they are in."""
    given = [user(text) for text in texts]
    await host.inside(conversations.add_items(host.engine.runtime, PRINCIPAL, conversation, given))
    return list(texts)


async def delete(host: Host, conversation: str) -> None:
    await host.inside(conversations.delete(host.engine.runtime, PRINCIPAL, conversation))


async def texts(host: Host, conversation: str) -> list[str]:
    query = ListQuery(limit=100, order="asc")
    page = await host.inside(conversations.list_items(host.engine.runtime, PRINCIPAL, conversation, query))
    return [item["content"][0]["text"] for item in page["data"]]


async def exists(host: Host, conversation: str) -> bool:
    try:
        await host.inside(conversations.get(host.engine.runtime, PRINCIPAL, conversation))
    except ConversationNotFound:
        return False
    return True


async def check_only_the_marker_is_left(hosts: Fleet, conversation: str) -> None:
    key = key_of(PRINCIPAL, conversation)
    found = await hosts.storage.driver.query_entities(RESPONSES, partition_key=key)
    left = [entity.row_key for entity in found if not entity.row_key.startswith("response-")]
    assert left == ["chain"]
    assert await hosts.storage.driver.list_blobs(PAYLOADS, f"{key}/conversation/") == []


def lose_reply(host: Host, operation: str) -> asyncio.Event:
    """Give the first reply to that operation up after `LOST_AFTER`; the event tells when it was carried out."""
    committed = asyncio.Event()

    async def lose(name: str, moment: Moment) -> None:
        if (name, moment) == (operation, "after") and not committed.is_set():
            committed.set()
            await asyncio.sleep(LOST_AFTER)
            raise StorageUnavailable

    host.seam.hooks.append(lose)
    return committed


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_deletion_whose_process_dies_anywhere_is_completed_or_never_happened(moment: Moment) -> None:
    deleted = 0
    for call in range(1, MOST_CALLS):
        async with fleet(Teller(2)) as hosts:
            survivor, victim = hosts.host(), hosts.host(queues=False)
            conversation = await make(survivor, "x" * 60_000, "two")
            await survivor.create({"input": "turn", "conversation": conversation})
            await put(survivor, conversation, "y" * 60_000)
            await hosts.quiet()
            victim.crash_at(call, moment)
            with suppress(HostGone):
                await delete(victim, conversation)
            if not victim.dead:
                break
            await hosts.quiet()
            if await exists(survivor, conversation):
                assert len(await texts(survivor, conversation)) == 5
            else:
                deleted += 1
                await check_only_the_marker_is_left(hosts, conversation)
    else:
        raise AssertionError("a deletion takes more calls than expected")
    assert deleted >= 4, "most of a deletion comes after its marker"


async def gathered(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """What came of each, errors included."""
    return list(await asyncio.gather(*works, return_exceptions=True))


@pytest.mark.parametrize("steerable", [False, True])
async def test_a_deletion_and_turns_at_the_same_moment_leave_no_turn_in_a_deleted_conversation(steerable: bool) -> None:
    outcomes = set()
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        options = ResponsesServerOptions(resilient_background=True, steerable_conversations=steerable)
        # A turn lasts: one that was accepted still runs when the deletion is decided.
        async with fleet(Teller(1, pause=60.0)) as hosts:
            host = hosts.host(options=options)
            conversation = await make(host, "one")

            async def dawdle(name: str, moment: Moment, rng: random.Random = rng) -> None:
                await asyncio.sleep(rng.random() * 0.1)

            host.seam.hooks.append(dawdle)
            ended, turn, item = await gathered(
                delete(host, conversation),
                host.create(background("turn", conversation=conversation)),
                put(host, conversation, "two"),
            )
            assert item == ["two"] or isinstance(item, ConversationNotFound)
            if ended is None:
                assert isinstance(turn, ConversationNotFound)
                await hosts.quiet()
                assert not await exists(host, conversation)
                await check_only_the_marker_is_left(hosts, conversation)
            else:
                assert isinstance(ended, ConversationLocked)
                await hosts.finished(turn["id"])
                assert "turn" in await texts(host, conversation)
            outcomes.add((type(ended), type(turn)))
    assert len(outcomes) >= 2, "one side always wins: the round does not race"


async def test_items_put_in_from_many_processes_all_land_once_and_in_order() -> None:
    async with fleet(Teller(1)) as hosts:
        many = [hosts.host(), *(hosts.host(queues=False) for _ in range(3))]
        conversation = await make(many[0])

        async def one(number: int) -> None:
            for part in range(4):
                await put(many[number % 4], conversation, f"{number}.{part}")

        async def turns() -> None:
            for number in range(4):
                with suppress(ApiError):
                    await many[0].create({"input": f"turn {number}", "conversation": conversation})

        await asyncio.gather(*map(one, range(8)), turns())
        found = [text for text in await texts(many[1], conversation) if "." in text]
        for number in range(8):
            assert [text for text in found if text.startswith(f"{number}.")] == [f"{number}.{p}" for p in range(4)]
        assert len(found) == 32


async def test_a_chain_that_was_made_anew_goes_on_counting_behind_the_items() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        conversation = await make(host, "one")
        await put(host, conversation, "two")
        await hosts.storage.chains.delete(key_of(PRINCIPAL, conversation), "chain")
        await put(host, conversation, "three")
        assert await texts(host, conversation) == ["one", "two", "three"]


async def test_history_of_a_turn_is_what_was_there_when_it_came() -> None:
    teller = Teller(3, pause=5.0)
    async with fleet(teller) as hosts:
        host = hosts.host()
        conversation = await make(host, "before")
        response_id = (await host.create(background("turn", conversation=conversation)))["id"]
        await put(host, conversation, "during")
        await hosts.finished(response_id)
        (context,) = teller.contexts
        assert [item["content"][0]["text"] for item in await context.get_history()] == ["before"]
        assert (await texts(host, conversation))[-1] == "during"


async def test_a_handlers_history_costs_one_operation_with_items_and_turns() -> None:
    teller = Teller(1)
    async with fleet(teller) as hosts:
        host = hosts.host()
        conversation = await make(host, "one")
        for number in range(5):
            await put(host, conversation, f"{number}")
            await host.create({"input": "turn", "conversation": conversation})
        before = len(host.calls)
        assert len(await host.inside(teller.contexts[-1].get_history())) == 14
        assert host.calls[before:] == ["row.list"]


async def test_an_item_whose_blob_goes_while_it_is_read_is_read_again() -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        conversation = await make(host, "x" * 60_000, "two")
        (first, _) = await _ids(host, conversation)
        reached = other.pause_at("payload.get")
        reading = other.spawn(texts(other, conversation), "reading")
        await reached.wait()
        await host.inside(conversations.delete_item(host.engine.runtime, PRINCIPAL, conversation, first))
        other.resume()
        assert await reading == ["two"]


async def test_items_are_put_in_once_though_one_was_taken_out_before_the_lost_reply_was_noticed() -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        conversation = await make(host)
        committed = lose_reply(host, "conversation.append")
        putting = asyncio.ensure_future(put(host, conversation, "one", "two"))
        await committed.wait()
        (first, _) = await _ids(other, conversation)
        await other.inside(conversations.delete_item(other.engine.runtime, PRINCIPAL, conversation, first))
        await putting
        assert await texts(other, conversation) == ["two"]


async def test_a_deletion_succeeds_though_a_response_was_deleted_before_its_lost_reply_was_noticed() -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        conversation = await make(host, "one")
        turn = await host.create({"input": "turn", "conversation": conversation})
        committed = lose_reply(host, "conversation.delete")
        deleting = asyncio.ensure_future(delete(host, conversation))
        await committed.wait()
        await other.delete(turn["id"])
        await deleting
        assert not await exists(other, conversation)
        await check_only_the_marker_is_left(hosts, conversation)


async def _ids(host: Host, conversation: str) -> list[str]:
    page = await host.inside(
        conversations.list_items(host.engine.runtime, PRINCIPAL, conversation, ListQuery(order="asc"))
    )
    return [item["id"] for item in page["data"]]
