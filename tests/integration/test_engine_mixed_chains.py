"""Turns of one chain that name their conversation, and turns that name the one before them (S1, S4, S6)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.errors import ConversationForkNotSupported, PreviousResponseNotFound
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from tests.support.engines import Host, fleet, key_of
from tests.support.turns import Turns, until_told
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

type Json = dict[str, Any]


class Remembering(Turns):
    """Turns that look at what was said before them."""

    def __init__(self) -> None:
        super().__init__()
        self.histories: dict[str, list[str]] = {}
        """The user's texts that a turn found, by its input."""

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        items = await context.get_history()
        self.histories[request["input"]] = [item["content"][0]["text"] for item in items if item.get("role") == "user"]
        async for event in super().__call__(request, context, signal):
            yield event


def options(steerable: bool) -> ResponsesServerOptions:
    return ResponsesServerOptions(resilient_background=True, steerable_conversations=steerable)


async def say(host: Host, text: str, *, previous: str = "") -> str:
    """A turn of the conversation "c", or the one that continues `previous`."""
    place = {"previous_response_id": previous} if previous else {"conversation": "c"}
    made = await host.create({"input": text, **place})
    assert made["status"] == "completed"
    return str(made["id"])


@pytest.mark.parametrize("steerable", [False, True])
async def test_turns_that_continue_a_turn_of_a_conversation_know_all_that_it_was_told(steerable: bool) -> None:
    turns = Remembering()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options(steerable))
        await say(host, "one")
        second = await say(host, "two")
        third = await say(host, "three", previous=second)
        await say(host, "four", previous=third)
        assert turns.histories["three"] == ["one", "two"]
        assert turns.histories["four"] == ["one", "two", "three"]


async def test_a_branch_off_a_conversation_does_not_know_what_was_said_there_later() -> None:
    turns = Remembering()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options(steerable=False))
        first = await say(host, "one")
        second = await say(host, "two")
        await say(host, "three")
        branch = await say(host, "branch", previous=second)
        await say(host, "leaf", previous=branch)
        assert turns.histories["branch"] == ["one", "two"]
        assert turns.histories["leaf"] == ["one", "two", "branch"]
        await say(host, "another", previous=first)
        assert turns.histories["another"] == ["one"]


async def test_after_the_newest_turn_of_a_conversation_was_deleted_the_one_before_it_is_continued() -> None:
    turns = Remembering()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options(steerable=True))
        first, second = await say(host, "one"), await say(host, "two")
        await host.delete(second)
        with pytest.raises(PreviousResponseNotFound):
            await say(host, "three", previous=second)
        third = await say(host, "three", previous=first)
        assert turns.histories["three"] == ["one"]
        assert (await hosts.storage.chains.read(key_of(first))).last == third


async def test_after_several_turns_of_a_conversation_were_deleted_the_newest_that_is_left_is_continued() -> None:
    turns = Remembering()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options(steerable=True))
        ids = [await say(host, text) for text in ("one", "two", "three", "four")]
        for number in (1, 3, 2):
            await host.delete(ids[number])
        await say(host, "five", previous=ids[0])
        assert turns.histories["five"] == ["one"]


async def test_behind_a_deleted_turn_that_named_its_predecessor_its_conversation_is_continued() -> None:
    turns = Remembering()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options(steerable=True))
        first, second = await say(host, "one"), await say(host, "two")
        third = await say(host, "three", previous=second)
        await host.delete(second)
        await host.delete(third)
        await say(host, "four", previous=first)
        assert turns.histories["four"] == ["one"]


async def test_behind_a_deleted_turn_a_retracted_one_is_passed_over() -> None:
    """Its client went away, and may not know of it."""
    turns = Turns(until_told)
    for text in ("one", "three", "four"):
        turns.gates[text].set()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options(steerable=True))
        first = await say(host, "one")
        reader = await host.stream({"input": "two", "conversation": "c"})
        second = await reader.response_id()
        await reader.leave()
        assert (await hosts.finished(second)).status == "cancelled"
        await host.delete(await say(host, "three"))
        await say(host, "four", previous=first)


async def test_turns_of_one_conversation_deleted_at_the_same_time_leave_the_one_before_them_to_continue() -> None:
    async with fleet(Turns()) as hosts:
        host, other = (hosts.host(options=options(steerable=True)) for _ in range(2))
        ids = [await say(host, text) for text in ("one", "two", "three", "four")]
        await asyncio.gather(host.delete(ids[3]), other.delete(ids[2]), host.delete(ids[1]))
        await say(other, "five", previous=ids[0])


async def test_a_conversation_with_no_turn_left_goes_on_under_its_name() -> None:
    turns = Remembering()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options(steerable=True))
        first, second = await say(host, "one"), await say(host, "two")
        await host.delete(first)
        await host.delete(second)
        assert (await hosts.storage.chains.read(key_of(first))).last == ""
        third = await say(host, "three")
        assert turns.histories["three"] == []
        assert (await hosts.storage.chains.read(key_of(first))).last == third


async def test_deleting_an_earlier_turn_of_a_conversation_leaves_the_newest_one_to_continue() -> None:
    async with fleet(Turns()) as hosts:
        host = hosts.host(options=options(steerable=True))
        first, second, third = [await say(host, text) for text in ("one", "two", "three")]
        await host.delete(second)
        with pytest.raises(ConversationForkNotSupported):
            await say(host, "four", previous=first)
        await say(host, "four", previous=third)
