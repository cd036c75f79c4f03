from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from resilience.text_response import TextResponse, TextSource
from tests.support.stream_oracle import Event, assert_response, assert_whole

RESPONSE_ID = "resp_" + "p" * 18 + "r" * 32
REQUEST = {"model": "m", "input": "hi", "metadata": {"k": "v"}}


@dataclass
class Context:
    response_id: str = RESPONSE_ID


class Words:
    """An async iterable that is not an iterator."""

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "Hel"
        yield "lo"


async def generated() -> AsyncIterator[str]:
    yield "Hel"
    yield "lo"


async def awaited() -> str:
    return "Hello"


def generated_plainly() -> Iterator[str]:
    yield "Hel"
    yield "lo"


async def awaited_words() -> Words:
    return Words()


SOURCES: dict[str, tuple[TextSource, int]] = {
    "str": ("Hello", 1),
    "function": (lambda: "Hello", 1),
    "async function": (awaited, 1),
    "async iterator": (generated(), 2),
    "async generator function": (generated, 2),
    "async iterable": (Words(), 2),
    "function giving an async iterable": (Words, 2),
    "async function giving an async iterable": (awaited_words, 2),
    "list": (["Hel", "lo"], 2),
    "generator function": (generated_plainly, 2),
}


async def events_of(text: Any, **keywords: Any) -> list[Event]:
    return [event async for event in TextResponse(Context(), REQUEST, text=text, **keywords)]


@pytest.mark.parametrize("kind", SOURCES)
async def test_every_kind_of_source_makes_a_whole_response(kind: str) -> None:
    source, deltas = SOURCES[kind]
    events = await events_of(source)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    final = assert_whole(events)
    assert_response(final)
    assert final["output"][0]["content"][0]["text"] == "Hello"
    assert (final["id"], final["model"], final["metadata"]) == (RESPONSE_ID, "m", {"k": "v"})


async def test_response_can_be_configured_before_it_is_created() -> None:
    def configure(response: dict[str, Any]) -> None:
        response["model"] = "configured"
        response["metadata"]["more"] = "1"

    events = await events_of("x", configure=configure)
    for event in (events[0], events[1], events[-1]):
        assert event["response"]["model"] == "configured"
        assert event["response"]["metadata"] == {"k": "v", "more": "1"}
    assert REQUEST["metadata"] == {"k": "v"}


async def test_created_comes_before_the_text_is_asked_for() -> None:
    called = False

    def text() -> str:
        nonlocal called
        called = True
        return "x"

    events = aiter(TextResponse(Context(), REQUEST, text=text))
    assert (await anext(events))["type"] == "response.created"
    assert (await anext(events))["type"] == "response.in_progress"
    assert not called
    assert (await anext(events))["type"] == "response.output_item.added"
    assert called


async def test_error_of_the_source_passes_through() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise ConnectionError("model gone")

    seen: list[str] = []

    async def iterate() -> None:
        async for event in TextResponse(Context(), REQUEST, text=broken()):
            seen.append(event["type"])

    with pytest.raises(ConnectionError, match="model gone"):
        await iterate()
    assert seen[-1] == "response.output_text.delta"


@pytest.mark.parametrize("source", [lambda: None, lambda: 1, lambda: b"bytes"])
async def test_source_that_gives_no_text_is_refused(source: Any) -> None:
    with pytest.raises(TypeError):
        await events_of(source)


async def test_source_is_closed_when_the_response_is_abandoned() -> None:
    closed = False

    async def text() -> AsyncIterator[str]:
        nonlocal closed
        try:
            yield "a"
            yield "b"
        finally:
            closed = True

    events = TextResponse(Context(), REQUEST, text=text()).__aiter__()
    async for event in events:
        if event["type"] == "response.output_text.delta":
            break
    await events.aclose()
    assert closed


async def test_response_of_a_str_can_be_iterated_again() -> None:
    response = TextResponse(Context(), REQUEST, text="again")
    for _ in range(2):
        assert_whole([event async for event in response])
