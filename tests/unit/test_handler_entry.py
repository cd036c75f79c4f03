"""One entry into a handler, and what a client is told of its errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol.builders import BuilderOrderError
from protocol.errors import ApiError, ConversationLocked, HandlerRefused, ServerError, ServiceUnavailable
from protocol.events import InvalidEvent
from protocol.jsonio import NotJson
from resilience.handler_entry import answer_to, events_of
from storage.errors import PreconditionFailed, StorageUnavailable

CONTEXT = cast("Any", SimpleNamespace(request={"input": ["x"]}))


async def collected(handler: Any) -> list[Any]:
    async with aclosing(events_of(handler, CONTEXT, asyncio.Event())) as events:
        return [event async for event in events]


async def test_the_handler_gets_a_request_of_its_own() -> None:
    async def handler(request: Any, context: Any, signal: Any) -> list[int]:
        request["input"].append("changed")
        return [1]

    assert await collected(handler) == [1]
    assert CONTEXT.request == {"input": ["x"]}


async def test_a_plain_iterable_lets_others_have_their_turn() -> None:
    async def handler(request: Any, context: Any, signal: Any) -> Any:
        return iter(range(100))

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await collected(handler) == list(range(100))
    task.cancel()
    assert turns > 50


@pytest.mark.parametrize("thing", [None, 7, "text", b"bytes", {"a": 1}])
async def test_what_holds_no_events_is_invalid(thing: Any) -> None:
    async def handler(request: Any, context: Any, signal: Any) -> Any:
        return thing

    with pytest.raises(InvalidEvent):
        await collected(handler)


async def test_a_generator_that_is_left_early_is_closed() -> None:
    closed: list[str] = []

    async def handler(request: Any, context: Any, signal: Any) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append("handler")

    async with aclosing(events_of(handler, CONTEXT, asyncio.Event())) as events:
        async for _ in events:
            break
    assert closed == ["handler"]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ValueError("mine"), HandlerRefused),
        (UnicodeError("mine"), HandlerRefused),
        (BuilderOrderError("x", "y", "z"), ServerError),
        (NotJson("x"), ServerError),
        (InvalidEvent("x"), ServerError),
        (RuntimeError("x"), ServerError),
        (asyncio.CancelledError(), ServerError),
        (None, ServerError),
        (StorageUnavailable(), ServiceUnavailable),
        (PreconditionFailed(), ServerError),
        (ConversationLocked(), ConversationLocked),
    ],
)
def test_each_error_has_its_answer(error: BaseException | None, answer: type[ApiError]) -> None:
    told = answer_to(error)
    assert type(told) is answer
    if answer is HandlerRefused:
        assert told.message == "mine"
    if answer is ServerError:
        assert told.message == ServerError().message
