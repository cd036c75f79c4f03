"""The example agent: what it answers by itself, how it goes on after a hand-over, and how it passes a model on."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import agent
from resilience import ResponseContext, ResponseEventStream
from resilience.engine import Engine
from storage.driver import WORK_QUEUE
from tests.support.api_server import SETTINGS, ApiServer, Script, serving, until
from tests.support.stream_oracle import assert_response, assert_whole

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL")
AZURE_KEYS = ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_DEPLOYMENT")

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "precise": {"type": ["boolean", "null"]},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
    },
}


@pytest.fixture(autouse=True)
def _without_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*KEYS, *AZURE_KEYS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(agent, "SECONDS_PER_NUMBER", 0.005)
    agent.model_client.cache_clear()
    yield
    agent.model_client.cache_clear()


def text_in(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


async def test_words_come_back_as_deltas() -> None:
    async with serving(app=agent.app) as server:
        for text in ("Hello there,  friend", "", " ", "one\ntwo "):
            events = await server.events(input=text)
            assert text_in(assert_whole(events)) == f"You said: {text}"
            assert sum(event["type"] == "response.output_text.delta" for event in events) >= 2


async def test_the_last_message_of_several_is_answered() -> None:
    async with serving(app=agent.app) as server:
        turns = [{"role": "user", "content": "first"}, {"role": "user", "content": "second"}]
        assert text_in((await server.post(input=turns)).json()) == "You said: second"


async def test_first_function_is_called_with_arguments_of_its_types_and_its_output_is_said() -> None:
    async with serving(app=agent.app) as server:
        response = assert_whole(await server.events(input="Turin for 3 days", tools=[WEATHER]))
        (call,) = response["output"]
        assert (call["type"], call["name"]) == ("function_call", "get_weather")
        assert json.loads(call["arguments"]) == {
            "city": "Turin for 3 days",
            "days": 3,
            "precise": True,
            "unit": "celsius",
        }
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "21 degrees"}
        answer = await server.post(input=[output], tools=[WEATHER], previous_response_id=response["id"])
        assert text_in(answer.json()) == "21 degrees"


async def test_no_function_is_called_where_that_is_ruled_out() -> None:
    async with serving(app=agent.app) as server:
        response = (await server.post(input="Turin", tools=[WEATHER], tool_choice="none")).json()
        assert text_in(response) == "You said: Turin"


@pytest.mark.parametrize("last", [0, 1, 5, 12])
async def test_counting_says_every_number_in_a_delta_of_its_own(last: int) -> None:
    async with serving(app=agent.app) as server:
        events = await server.events(input=f"Please count to {last} slowly", background=True)
        assert text_in(assert_whole(events)).split() == [str(number) for number in range(1, last + 1)]
        assert sum(event["type"] == "response.output_text.delta" for event in events) == last


async def test_counting_goes_on_after_the_persisted_messages_in_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "SECONDS_PER_NUMBER", 0.02)
    async with serving(app=agent.app) as server:
        response_id = (await server.post(input="count to 60", background=True)).json()["id"]

        async def counts() -> bool:
            stored = (await server.get(response_id)).json()
            return len(stored["output"]) > 0

        await until(counts)
        await server.engine.drain()
        left = (await server.get(response_id)).json()
        assert left["status"] == "in_progress"
        kept = [item["id"] for item in left["output"]]
        other = Engine(agent.app, server.storage, SETTINGS)
        try:
            await run_messages(server, other)
            final = await other.get("local", response_id)
        finally:
            await other.runtime.stop_tasks()
            await other.runtime.worker.stop()
        assert final["status"] == "completed"
        assert_response(final)
        assert text_in(final).split() == [str(number) for number in range(1, 61)]
        assert [item["id"] for item in final["output"]][: len(kept)] == kept != []


async def run_messages(server: ApiServer, engine: Engine) -> None:
    """Every start message, to another worker."""
    while message := await server.storage.driver.receive_message(WORK_QUEUE, visibility=60):
        await engine.run_message(message.text)


async def test_counting_stops_when_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "SECONDS_PER_NUMBER", 0.05)
    async with serving(app=agent.app) as server:
        response = (await server.post(input="count to 9999", background=True)).json()
        await server.client.post(f"/v1/responses/{response['id']}/cancel")
        assert (await server.get(response["id"])).json()["status"] == "cancelled"
        await until(lambda: not server.engine.runtime.running)


async def test_counting_in_the_foreground_ends_incomplete_when_the_worker_leaves() -> None:
    async with serving(app=agent.app) as server:
        pending = asyncio.create_task(server.post(input="count to 9999"))
        await until(lambda: bool(server.engine.runtime.running))
        await server.engine.drain()
        response = (await pending).json()
        assert response["status"] == "incomplete"


async def model(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    """Stands for a model: a real server of the same interface, that talks, calls and counts its tokens."""
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_reasoning_item("thinking"):
        yield event
    for event in stream.output_item_message(["Let me ", "look."]):
        yield event
    for event in stream.output_item_function_call("get_weather", "call_7", '{"city":"Turin"}'):
        yield event
    yield stream.emit_completed(usage={"input_tokens": 7, "output_tokens": 5, "total_tokens": 12})


@asynccontextmanager
async def answered_by(script: Script, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[ApiServer, ApiServer]]:
    """A server that plays the model, and the agent that asks it."""
    async with serving(script) as asked, serving(app=agent.app) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{str(asked.client.base_url).rstrip('/')}/v1")
        monkeypatch.setenv("OPENAI_MODEL", "small")
        client = agent.model_client()
        assert client is not None
        async with client:
            yield asked, server


async def test_model_is_asked_and_its_words_and_calls_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answered_by(model, monkeypatch) as (asked, server):
        events = await server.events(input="Weather?", tools=[WEATHER], instructions="Be brief.", temperature=0.5)
        final = assert_whole(events)
        message, call = final["output"]
        assert message["content"][0]["text"] == "Let me look."
        assert (call["name"], call["call_id"], call["arguments"]) == ("get_weather", "call_7", '{"city":"Turin"}')
        assert final["usage"]["total_tokens"] == 12
        question = asked.runs[0].request
        assert (question["model"], question["store"], question["stream"]) == ("small", False, True)
        assert (question["instructions"], question["temperature"]) == ("Be brief.", 0.5)
        assert question["tools"][0]["name"] == "get_weather"


async def test_model_is_told_the_earlier_turns_without_this_servers_own_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answered_by(model, monkeypatch) as (asked, server):
        first = (await server.post(input="Weather?")).json()
        output = {"type": "function_call_output", "call_id": "call_7", "output": "21 degrees"}
        await server.post(input=[output], previous_response_id=first["id"])
        told = asked.runs[1].request["input"]
        assert [item["type"] for item in told] == ["message", "message", "function_call", "function_call_output"]
        assert not {"id", "status", "response_id", "agent_reference"} & {name for item in told for name in item}


async def failing(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    message = stream.add_output_item_message()
    yield message.emit_added()
    yield stream.emit_failed(message="a secret of the model")


async def test_failure_of_the_model_is_a_failed_response(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answered_by(failing, monkeypatch) as (_, server):
        events = await server.events(input="x")
        assert events[-1]["type"] == "response.failed"
        assert "secret" not in json.dumps(events)


async def cut_short(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_message("As far as"):
        yield event
    yield stream.emit_incomplete(reason="max_output_tokens")


async def test_model_that_is_cut_short_leaves_the_response_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answered_by(cut_short, monkeypatch) as (_, server):
        final = assert_whole(await server.events(input="x"))
        assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert text_in(final) == "As far as"


async def endless(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    message = stream.add_output_item_message()
    yield message.emit_added()
    text = message.add_text_content()
    yield text.emit_added()
    while not signal.is_set():
        yield text.emit_delta("and ")
        await asyncio.sleep(0.01)


async def test_cancelled_response_stops_asking_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answered_by(endless, monkeypatch) as (asked, server):
        response = (await server.post(input="x", background=True)).json()
        await until(lambda: bool(asked.engine.runtime.running))
        await server.client.post(f"/v1/responses/{response['id']}/cancel")
        await until(lambda: not asked.engine.runtime.running)
        assert asked.runs[0].client_cancelled
        assert (await server.get(response["id"])).json()["status"] == "cancelled"


def test_azure_model_is_reached_at_its_own_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://example.openai.azure.com/")
    assert agent.model_client() is None
    agent.model_client.cache_clear()
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "none")
    client = agent.model_client()
    assert client is not None
    assert str(client.base_url) == "https://example.openai.azure.com/openai/v1/"
