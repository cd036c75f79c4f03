"""A recovered handler says an item anew at an index that is taken: it has that place, for the server and its clients.

The handlers yield plain events, and leave the final output to what these add up to; the judge adds up the log by a
fold of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from tests.support.engines import PRINCIPAL, Fleet, background, fleet
from tests.support.invariants import Stored, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop
CREATED, IN_PROGRESS, ADDED = "response.created", "response.in_progress", "response.output_item.added"


def message(context: ResponseContext, index: int, words: Iterable[str]) -> Iterator[Json]:
    """All events of one message at that index."""
    text = ""
    item = f"msg_{index}of{'second' if context.is_recovery else 'first'}"
    place = {"item_id": item, "output_index": index, "content_index": 0}
    whole = {"id": item, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    yield {"type": ADDED, "output_index": index, "item": whole}
    yield {"type": "response.content_part.added", **place, "part": part("")}
    for word in words:
        text += word
        yield {"type": "response.output_text.delta", **place, "delta": word}
    yield {"type": "response.output_text.done", **place, "text": text}
    yield {"type": "response.content_part.done", **place, "part": part(text)}
    done = {**whole, "status": "completed", "content": [part(text)]}
    yield {"type": "response.output_item.done", "output_index": index, "item": done}


def part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Dying:
    """Its first entry dies (its host does) where `first` ends; the second one tells what `second` has."""

    def __init__(self) -> None:
        self.fleet: Fleet | None = None
        self.contexts: list[ResponseContext] = []

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        self.contexts.append(context)
        async for event in self.second(context) if context.is_recovery else self.first(request, context):
            yield event
        if not context.is_recovery:
            await asyncio.sleep(0.5)  # what it said is in the log
            assert self.fleet is not None
            self.fleet.kill(self.fleet.entries[context.response_id][-1].host)
            await asyncio.Event().wait()

    def first(self, request: Json, context: ResponseContext) -> AsyncIterator[Any]:
        raise NotImplementedError

    def second(self, context: ResponseContext) -> AsyncIterator[Any]:
        raise NotImplementedError


async def survived(handler: Dying) -> Stored:
    async with fleet(handler) as hosts:
        handler.fleet = hosts
        api = hosts.host(queues=False)
        hosts.host()
        hosts.host()
        reader = await api.stream(background())
        response_id = await reader.response_id()
        await reader.whole()
        row = await hosts.finished(response_id)
        assert (row.status, row.generation) == ("completed", 2)
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view],
            entries=hosts.entered(response_id),
            crashes=1,
        )
        assert await api.get(response_id) == stored.events[-1]["response"]
        await hosts.quiet()
        return stored


def output_of(stored: Stored) -> list[tuple[str, str]]:
    """Each final item: its id and its text."""
    assert stored.snapshot is not None
    return [(item["id"], item["content"][0]["text"]) for item in stored.snapshot["output"]]


def count(stored: Stored, name: str) -> int:
    return [event["type"] for event in stored.events].count(name)


class WithoutProgress(Dying):
    """Knows nothing of recovery (R9), and never says that it is in progress: two items, dies within the other one."""

    async def first(self, request: Json, context: ResponseContext) -> AsyncIterator[Any]:
        yield {"type": CREATED, "response": {"id": context.response_id}}
        for event in message(context, 0, ["first ", "half "]):
            yield event
        for event in [*message(context, 1, ["first ", "and "])][:4]:
            yield event

    async def second(self, context: ResponseContext) -> AsyncIterator[Any]:
        yield {"type": CREATED, "response": {"id": context.response_id}}
        for index in range(2):
            for event in message(context, index, ["second ", f"{index} "]):
                yield event
        yield {"type": "response.completed", "response": {"id": context.response_id}}


async def test_entries_without_progress_get_no_reset_and_the_second_one_has_every_place() -> None:
    """R7: the server never invents a reset; R9."""
    stored = await survived(WithoutProgress())
    assert count(stored, IN_PROGRESS) == 0
    assert count(stored, CREATED) == 1
    added = [event["output_index"] for event in stored.events if event["type"] == ADDED]
    assert added == [0, 1, 0, 1]
    assert output_of(stored) == [("msg_0ofsecond", "second 0 "), ("msg_1ofsecond", "second 1 ")]


class Rewriting(Dying):
    """Keeps two items at a checkpoint, dies within a third; then goes on from both and says the second one anew."""

    async def first(self, request: Json, context: ResponseContext) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for index in range(2):
            async for event in stream.output_item_message(f"first {index} "):
                yield event
        yield stream.checkpoint()
        for event in [*message(context, 2, ["first ", "and "])][:4]:
            yield event

    async def second(self, context: ResponseContext) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response=context.persisted_response)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for event in message(context, 1, ["second ", "1 "]):
            yield event
        yield {"type": "response.completed", "response": {"id": context.response_id}}


async def test_an_item_that_the_reset_kept_gives_its_place_to_one_that_is_added_there() -> None:
    """R7."""
    handler = Rewriting()
    stored = await survived(handler)
    _, reset = (event["response"]["output"] for event in stored.events if event["type"] == IN_PROGRESS)
    assert [item["content"][0]["text"] for item in reset] == ["first 0 ", "first 1 "], "the third is gone"
    assert (handler.contexts[1].persisted_response or {})["output"] == reset
    added = [event["output_index"] for event in stored.events if event["type"] == ADDED]
    assert added == [0, 1, 2, 1]
    kept = (reset[0]["id"], "first 0 ")
    assert output_of(stored) == [kept, ("msg_1ofsecond", "second 1 ")]
