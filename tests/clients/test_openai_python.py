"""The official Python client, unmodified, through a whole session in every mode (C1–C6)."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.clients.conftest import served
from tests.support import stream_oracle
from tests.support.servers import frames_of

TERMINAL = ("completed", "failed", "incomplete", "cancelled")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The example agent, as `make start` runs it."""
    with served(request, "agent:app") as address:
        yield address


@pytest.fixture
async def client(server: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server}/v1", api_key="local", max_retries=0) as made:
        yield made


def plain(model: BaseModel) -> dict[str, Any]:
    """What the client received, as JSON, with nothing added."""
    return model.model_dump(mode="json", exclude_unset=True, by_alias=True)


def assert_complete(response: dict[str, Any]) -> None:
    """Strictly of the client's own type, and not one of its fields left out (W1)."""
    stream_oracle.assert_response(response)
    missing = set(Response.model_fields) - set(response)
    assert not missing, f"left out: {sorted(missing)}"


async def polled(client: AsyncOpenAI, response_id: str, *, seconds: float = 60) -> Response:
    """The response once it has ended."""
    deadline = time.monotonic() + seconds
    while True:
        response = await client.responses.retrieve(response_id)
        if response.status in TERMINAL:
            return response
        assert time.monotonic() < deadline, f"still {response.status}"
        await asyncio.sleep(0.05)


async def test_create_answers_with_a_complete_response_that_a_get_repeats(client: AsyncOpenAI) -> None:
    created = await client.responses.create(model="m", input="Hello there", metadata={"k": "v"})
    assert created.status == "completed"
    assert "Hello there" in created.output_text
    raw = await client.responses.with_raw_response.create(model="m", input="Hello there")
    assert_complete(raw.http_response.json())
    assert raw.headers["x-request-id"]
    stored = await client.responses.with_raw_response.retrieve(created.id)
    assert stored.http_response.json() == plain(created)


async def test_a_foreground_stream_is_whole_and_its_end_equals_a_later_get(client: AsyncOpenAI) -> None:
    events = [plain(event) async for event in await client.responses.create(model="m", input="Hello", stream=True)]
    final = stream_oracle.assert_whole(events)
    assert_complete(final)
    stored = await client.responses.with_raw_response.retrieve(final["id"])
    assert stored.http_response.json() == final


async def test_the_streaming_helper_collects_the_final_response(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="m", input="Hello helper") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "Hello helper" in final.output_text


async def test_background_is_answered_at_once_and_polled_to_its_end(client: AsyncOpenAI) -> None:
    accepted = await client.responses.with_raw_response.create(model="m", input="count to 3", background=True)
    first = accepted.http_response.json()
    assert first["status"] in ("queued", "in_progress")
    assert first["output"] == []
    assert_complete(first)
    ended = await polled(client, first["id"])
    assert ended.status == "completed"
    assert ended.output_text.split() == ["1", "2", "3"]


async def test_a_dropped_background_stream_is_resumed_without_a_gap(client: AsyncOpenAI) -> None:
    seen: list[dict[str, Any]] = []
    stream = await client.responses.create(model="m", input="count to 5", background=True, stream=True)
    async for event in stream:
        seen.append(plain(event))
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    response_id = seen[0]["response"]["id"]
    resumed = await client.responses.retrieve(response_id, stream=True, starting_after=seen[-1]["sequence_number"])
    seen += [plain(event) async for event in resumed]
    final = stream_oracle.assert_whole(seen)
    whole = await client.responses.retrieve(response_id, stream=True)
    assert [plain(event) async for event in whole] == seen
    assert (await client.responses.with_raw_response.retrieve(response_id)).http_response.json() == final


async def test_a_cancel_ends_a_background_stream_and_stays(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="m", input="count to 500", background=True, stream=True)
    events = aiter(stream)
    response_id = plain(await anext(events))["response"]["id"]
    began = time.monotonic()
    cancelled = await client.responses.cancel(response_id)
    assert cancelled.status == "cancelled"
    assert cancelled.output == []
    last = [event async for event in events][-1]
    assert last.type == "response.failed"
    assert last.response.status == "cancelled"
    assert time.monotonic() - began < 30, "it went on counting"
    assert (await client.responses.cancel(response_id)).status == "cancelled"
    assert (await client.responses.retrieve(response_id)).status == "cancelled"


async def test_a_finished_or_synchronous_response_cannot_be_cancelled(client: AsyncOpenAI) -> None:
    done = await client.responses.create(model="m", input="Hello")
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        await client.responses.cancel(done.id)
    ended = await polled(client, (await client.responses.create(model="m", input="Hello", background=True)).id)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a completed response"):
        await client.responses.cancel(ended.id)


async def test_a_deleted_response_is_gone(client: AsyncOpenAI) -> None:
    done = await client.responses.create(model="m", input="Hello")
    await client.responses.delete(done.id)
    with pytest.raises(openai.BadRequestError, match="deleted"):
        await client.responses.retrieve(done.id)
    with pytest.raises(openai.BadRequestError, match="deleted"):
        await client.responses.input_items.list(done.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(done.id)


async def test_input_items_are_listed_both_ways(client: AsyncOpenAI) -> None:
    texts = [f"item {number}" for number in range(25)]
    done = await client.responses.create(model="m", input=[{"role": "user", "content": text} for text in texts])
    forwards = [item async for item in client.responses.input_items.list(done.id, order="asc", limit=10)]
    assert [item.content[0].text for item in forwards if item.type == "message"] == texts  # type: ignore[union-attr]
    backwards = [item.id async for item in client.responses.input_items.list(done.id, limit=7)]
    assert backwards == [item.id for item in reversed(forwards)]


async def test_a_conversation_over_two_turns_knows_the_first(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="m", input="My name is Ada")
    second = await client.responses.create(model="m", input="Hello again", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.status == "completed"


async def test_a_tool_is_called_and_its_output_answered(client: AsyncOpenAI) -> None:
    tool: Any = {
        "type": "function",
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": False,
    }
    call = await client.responses.create(model="m", input="What is the weather?", tools=[tool])
    (item,) = [item for item in call.output if item.type == "function_call"]
    assert item.name == "get_weather"
    answer = await client.responses.create(
        model="m",
        previous_response_id=call.id,
        tools=[tool],
        input=[{"type": "function_call_output", "call_id": item.call_id, "output": "21 degrees"}],
    )
    assert "21 degrees" in answer.output_text


async def test_nothing_unstored_can_be_read(client: AsyncOpenAI) -> None:
    done = await client.responses.create(model="m", input="Hello", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(done.id)
    events = [e async for e in await client.responses.create(model="m", input="Hello", store=False, stream=True)]
    stream_oracle.assert_whole([plain(event) for event in events])


async def test_a_bare_base_url_is_served_too_with_the_same_bytes(server: str, client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="m", input="count to 2", background=True, stream=True)
    events = [plain(event) async for event in stream]
    response_id = events[0]["response"]["id"]
    async with httpx.AsyncClient(base_url=server) as http:
        bare = await http.get(f"/responses/{response_id}", params={"stream": "true"})
        versioned = await http.get(f"/v1/responses/{response_id}", params={"stream": "true"})
    assert bare.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert frames_of(bare.content) == frames_of(versioned.content) != []
