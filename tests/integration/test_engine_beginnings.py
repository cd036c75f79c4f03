"""What a handler says before `response.in_progress` is shown once (R7), and counts in every entry (R9).

The handler is a naive one: it says the same in each of its entries.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.response import strip_internal
from resilience.context import ResponseContext
from tests.support.engines import PRINCIPAL, background, fleet, until
from tests.support.invariants import Stored, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop
CREATED, QUEUED, IN_PROGRESS = "response.created", "response.queued", "response.in_progress"
ADDED, DONE, COMPLETED = "response.output_item.added", "response.output_item.done", "response.completed"

ROUTED = {"model": "router-7b", "metadata": {"route": "a"}, "internal_metadata": {"tried": 1}}
MESSAGE = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}
OTHER = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ho"}]}

ROUTING: list[Json] = [
    {"type": CREATED, "response": ROUTED},
    {"type": IN_PROGRESS, "response": {}},
    {"type": ADDED, "output_index": 0, "item": MESSAGE},
    {"type": DONE, "output_index": 0, "item": MESSAGE},
    {"type": COMPLETED, "response": {}},
]
WAITING: list[Json] = [
    {"type": CREATED, "response": {"status": "queued"}},
    {"type": QUEUED, "response": ROUTED},
    *ROUTING[1:],
]
CHECKPOINT: Json = {"type": "resilience.checkpoint"}


class Saying:
    """Says these events, `pause` seconds apart; a recovered entry those of `again`, the same ones by default."""

    def __init__(self, events: list[Json], *, again: list[Json] | None = None, pause: float = 1.0) -> None:
        self._events = events
        self._again = events if again is None else again
        self._pause = pause
        self.said = 0

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        for event in self._again if context.is_recovery else self._events:
            yield event
            self.said += 1
            await asyncio.sleep(self._pause)


async def recovered(handler: Saying, after: int) -> tuple[Stored, Json]:
    """A stream whose worker is killed when its handler has said so many events: as stored, and as a client gets it."""
    async with fleet(handler) as hosts:
        front = hosts.host(queues=False)
        victim = hosts.host()
        reader = await front.stream(background())
        response_id = await reader.response_id()
        await until(lambda: handler.said >= after)
        await asyncio.sleep(0.5)  # what it said is in the log
        await victim.crash()
        hosts.host()
        await hosts.finished(response_id)
        await reader.whole()
        stored = await check_response(
            hosts.storage, PRINCIPAL, response_id, seen=[reader.view], entries=hosts.entered(response_id), crashes=1
        )
        assert hosts.entered(response_id) == 2
        return stored, await front.get(response_id)


def told(response: Json) -> Json:
    return {name: response[name] for name in ("status", "model", "metadata")}


def routed(status: str) -> Json:
    return {"status": status, **strip_internal(ROUTED)}


@pytest.mark.parametrize("stream", [False, True], ids=["polled", "streamed"])
@pytest.mark.parametrize("crash", [False, True], ids=["undisturbed", "recovered"])
async def test_what_only_created_says_is_in_the_outcome_of_every_mode(crash: bool, stream: bool) -> None:
    handler = Saying(ROUTING)
    async with fleet(handler) as hosts:
        front = hosts.host(queues=False)
        victim = hosts.host()
        if stream:
            response_id = await (await front.stream(background())).response_id()
        else:
            response_id = (await front.create(background()))["id"]
        await until(lambda: handler.said >= 2)
        if crash:
            await victim.crash()
            hosts.host()
        await hosts.finished(response_id)
        assert hosts.entered(response_id) == 1 + crash
        stored = await check_response(hosts.storage, PRINCIPAL, response_id, crashes=int(crash))
        assert (stored.snapshot or {})["internal_metadata"] == {"tried": 1}
        assert told(await front.get(response_id)) == routed("completed")


@pytest.mark.parametrize("events", [ROUTING, WAITING], ids=["created", "queued"])
async def test_the_reset_says_what_the_suppressed_events_before_it_said(events: list[Json]) -> None:
    stored, answer = await recovered(Saying(events), after=len(events) - 1)
    _, reset = [event["response"] for event in stored.events if event["type"] == IN_PROGRESS]
    assert told(reset) == routed("in_progress")
    assert told(answer) == routed("completed")


@pytest.mark.parametrize("after", range(1, len(WAITING)))
async def test_a_recovered_stream_does_not_wait_again(after: int) -> None:
    """B6: wherever its worker died, all that a second entry shows begins with the reset."""
    stored, _ = await recovered(Saying(WAITING), after)
    first = [event["type"] for event in WAITING[:after]]
    assert [event["type"] for event in stored.events] == first + [event["type"] for event in WAITING[2:]]


async def test_another_created_takes_no_output_back_that_readers_have() -> None:
    """R7: only `response.in_progress` is a reset; an item that is added where one is replaces that one."""
    items: list[Json] = [
        {"type": name, "output_index": index, "item": MESSAGE} for index in range(2) for name in (ADDED, DONE)
    ]
    first: list[Json] = [{"type": CREATED, "response": {}}, *items, CHECKPOINT]
    again: list[Json] = [
        {"type": CREATED, "response": {**ROUTED, "output": []}},
        {"type": ADDED, "output_index": 1, "item": OTHER},
        {"type": DONE, "output_index": 1, "item": OTHER},
        {"type": COMPLETED, "response": {}},
    ]
    stored, answer = await recovered(Saying(first, again=again), after=len(first))
    assert [event["type"] for event in stored.events] == [CREATED, *[ADDED, DONE] * 3, COMPLETED]
    assert [item["content"][0]["text"] for item in answer["output"]] == ["hi", "ho"]
    assert told(answer) == routed("completed")


@pytest.mark.parametrize("begun", [0, 1], ids=["first", "recovered"])
@pytest.mark.parametrize(
    "broken",
    [
        {"type": CREATED, "response": {"metadata": "none"}},
        {"type": CREATED, "response": {"output": [{"type": "function_call"}]}},
    ],
    ids=["field", "item"],
)
async def test_an_invalid_created_fails_a_recovered_response_as_it_does_a_new_one(broken: Json, begun: int) -> None:
    """B30."""
    sane, insane = ROUTING, [broken, *ROUTING[1:]]
    handler = Saying(sane if begun else insane, again=insane)
    async with fleet(handler) as hosts:
        front = hosts.host(queues=False)
        victim = hosts.host()
        reader = await front.stream(background())
        if begun:
            await reader.until(2)
            await victim.crash()
            hosts.host()
        await reader.whole()
        (response_id,) = await hosts.ids()
        assert (await hosts.finished(response_id)).status == "failed"
        await check_response(hosts.storage, PRINCIPAL, response_id, seen=[reader.view], crashes=begun)
