"""What a handler is told of the turns before its own (S6)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.items import ListQuery
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.seam import Fault, Moment, Operation
from tests.support.engines import Fleet, Host, background, fleet, until
from tests.support.handlers import Teller, text_of
from tests.support.turns import Turns, at_once
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

BOTH = pytest.mark.parametrize("steerable", [False, True], ids=["locking", "steerable"])
OVER = pytest.mark.parametrize("over", ["conversation", "predecessors"])

type Json = dict[str, Any]


def host_of(hosts: Fleet, *, steerable: bool = False, count: int = -1) -> Host:
    return hosts.host(
        options=ResponsesServerOptions(
            resilient_background=True, steerable_conversations=steerable, default_fetch_history_count=count
        ),
        eager_start=True,
    )


class Talk:
    """A client that says one thing after another."""

    def __init__(self, host: Host, over: str) -> None:
        self.host = host
        self.over = over
        self.ids: list[str] = []

    async def say(self, text: Any, **fields: Any) -> Json:
        """The response, when it has ended."""
        joins: Json = {"conversation": "conv_a"} if self.over == "conversation" else {}
        if self.over == "predecessors" and self.ids:
            joins = {"previous_response_id": self.ids[-1]}
        response = await self.host.create({"input": text, **joins, **fields})
        if fields.get("background"):
            await self.host.fleet.finished(response["id"])
            response = await self.host.get(response["id"])
        self.ids.append(response["id"])
        return response


def told(items: list[Json]) -> list[tuple[str, str]]:
    """Role and text of each message."""
    return [(item["role"], "".join(part["text"] for part in item["content"])) for item in items]


class Listener(Turns):
    """Keeps what each turn was told, by its input."""

    def __init__(self) -> None:
        super().__init__(self._listen)
        self.heard: dict[str, list[tuple[str, str]]] = {}

    async def _listen(self, turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        self.heard[str(request["input"])] = told(await context.get_history())


@BOTH
@OVER
@pytest.mark.parametrize("mode", [{}, {"background": True}], ids=["C1", "C3"])
async def test_earlier_turns_are_told_oldest_first_with_input_and_output(
    over: str, steerable: bool, mode: Json
) -> None:
    listener = Listener()
    async with fleet(listener) as hosts:
        talk = Talk(host_of(hosts, steerable=steerable), over)
        for text in ("one", "two", "three"):
            await talk.say(text, **mode)
        one = [("user", "one"), ("assistant", "answer to one")]
        two = [("user", "two"), ("assistant", "answer to two")]
        assert listener.heard == {"one": [], "two": one, "three": one + two}


@OVER
@pytest.mark.parametrize("count", [0, 1, 3, 4, 99])
async def test_the_newest_items_are_told_where_they_are_limited(over: str, count: int) -> None:
    listener = Listener()
    async with fleet(listener) as hosts:
        talk = Talk(host_of(hosts, count=count), over)
        for text in ("one", "two", "three"):
            await talk.say(text)
        everything = [("user", "one"), ("assistant", "answer to one"), ("user", "two"), ("assistant", "answer to two")]
        assert listener.heard["three"] == everything[max(0, 4 - count) :]


async def test_forks_are_told_of_their_own_branch_only() -> None:
    listener = Listener()
    async with fleet(listener) as hosts:
        host = host_of(hosts)
        one = await host.create({"input": "one"})
        left = await host.create({"input": "left", "previous_response_id": one["id"]})
        right = await host.create({"input": "right", "previous_response_id": one["id"]})
        for name, each in (("left", left), ("right", right)):
            await host.create({"input": f"after {name}", "previous_response_id": each["id"]})
            assert [text for role, text in listener.heard[f"after {name}"] if role == "user"] == ["one", name]


async def test_a_response_that_is_not_stored_is_told_and_never_tells() -> None:
    listener = Listener()
    async with fleet(listener) as hosts:
        talk = Talk(host_of(hosts), "conversation")
        await talk.say("one")
        await talk.say("unstored", store=False)
        await talk.say("two")
        assert [text for role, text in listener.heard["unstored"] if role == "user"] == ["one"]
        assert listener.heard["two"] == listener.heard["unstored"]


@OVER
async def test_a_deleted_turn_tells_nothing_and_those_before_it_do(over: str) -> None:
    listener = Listener()
    async with fleet(listener) as hosts:
        talk = Talk(host_of(hosts), over)
        for text in ("one", "two", "three"):
            await talk.say(text)
        await talk.host.delete(talk.ids[1])
        await talk.say("four")
        assert [text for role, text in listener.heard["four"] if role == "user"] == ["one", "three"]


async def test_a_turn_is_not_told_of_those_that_wait_behind_it() -> None:
    heard: dict[str, list[str]] = {}

    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        await turns.gates["all"].wait()
        heard[request["input"]] = [text for role, text in told(await context.get_history()) if role == "user"]

    turns = Turns(act)
    async with fleet(turns) as hosts:
        host = host_of(hosts, steerable=True)
        ids = [
            (await host.create({"input": text, "conversation": "conv_a", "background": True}))["id"]
            for text in ("one", "two", "three")
        ]
        await until(lambda: turns.entered("one"))
        turns.gates["all"].set()
        await hosts.finished(ids[-1])
        assert heard == {"one": [], "two": ["one"], "three": ["one", "two"]}


@OVER
async def test_a_reference_to_an_item_of_an_earlier_turn_is_resolved(over: str) -> None:
    seen: list[list[Json]] = []

    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        seen.append(await context.get_input_items())

    async with fleet(Turns(act)) as hosts:
        talk = Talk(host_of(hosts), over)
        said = await talk.say([{"type": "message", "role": "user", "content": "look at this"}])
        [answer] = said["output"]
        page = await talk.host.input_items(said["id"])
        [question] = page["data"]
        await talk.say("in between")
        references = [{"type": "item_reference", "id": item["id"]} for item in (question, answer)]
        last = await talk.say([*references, {"type": "item_reference", "id": "msg_unknown"}])
        assert [item["id"] for item in seen[-1]] == [question["id"], answer["id"], "msg_unknown"]
        assert told(seen[-1][:2])[0] == ("user", "look at this")
        assert text_of({"output": seen[-1][1:2]}) == text_of(said)
        shown = (await talk.host.input_items(last["id"]))["data"]
        assert {item["id"]: item["type"] for item in shown} == {
            question["id"]: "message",
            answer["id"]: "message",
            "msg_unknown": "item_reference",
        }


async def test_references_into_many_chains_are_resolved_a_few_reads_at_a_time() -> None:
    async with fleet(Turns(at_once)) as hosts:
        host = host_of(hosts)
        said = [(await host.create({"input": f"turn {number}"}))["output"][0]["id"] for number in range(40)]
        last = await host.create({"input": [{"type": "item_reference", "id": item_id} for item_id in said]})
        under_way: list[int] = [0]

        async def count(name: str, moment: Moment) -> None:
            if name == Operation.ROW_LIST:
                under_way.append(under_way[-1] + (1 if moment == "before" else -1))
                await asyncio.sleep(0.01)

        host.seam.hooks.append(count)
        page = await host.input_items(last["id"], ListQuery(limit=100, order="asc"))
        assert [item["content"][0]["text"] for item in page["data"]] == [f"answer to turn {n}" for n in range(40)]
        assert 4 <= max(under_way) <= 20
        assert under_way.count(0) <= 1 + 40 / 4


@OVER
async def test_the_history_of_a_hundred_turns_costs_one_operation(over: str) -> None:
    costs: list[list[str]] = []
    lengths: list[int] = []

    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        before = len(host.calls)
        lengths.append(len(await context.get_history()))
        await context.get_history()
        await context.get_input_items()
        costs.append(host.calls[before:])

    turns = Turns(at_once)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        talk = Talk(host, over)
        for number in range(100):
            await talk.say(f"turn {number}")
        turns.act = act
        await hosts.quiet()
        await talk.say("last")
        assert lengths == [200]
        [calls] = costs
        assert [name for name in calls if not name.startswith(("ledger.", "queue."))] == [Operation.ROW_LIST]


@pytest.mark.parametrize("mode", ["background", "foreground"])
@pytest.mark.parametrize("operation", ["row.list", "payload.get"])
async def test_a_handler_that_asks_for_its_history_in_a_hiccup_of_storage_gets_it(operation: str, mode: str) -> None:
    told: list[int] = []

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        told.append(len(await context.get_history()))
        async for event in Teller(2)(request, context, signal):
            yield event

    async with fleet(handler) as hosts:
        host = hosts.host()
        first = await host.create(background("x" * 40_000, conversation="t"))
        await hosts.finished(first["id"])
        hiccup = host.seam.inject(Fault(operation=operation, kind="before", times=1))
        made = await host.create({"input": "more", "conversation": "t", "background": mode == "background"})
        assert (await hosts.finished(made["id"])).status == "completed"
        assert (told, hiccup.hits) == ([0, 2], 1)
