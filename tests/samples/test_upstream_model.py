"""The sample that asks a model: a real server of the same interface plays the model."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilience import ResponseContext, ResponseEventStream
from samples import upstream_model
from tests.samples.serving import deltas_in, sample_with_model, talking, text_in
from tests.support.api_server import ApiServer, until
from tests.support.stream_oracle import assert_whole

type Events = AsyncIterator[dict[str, Any]]


async def test_words_and_token_counts_of_the_model_are_passed_on() -> None:
    async with sample_with_model(talking) as (asked, server):
        events = await server.events(input="Say hello", instructions="Be brief.")
        final = assert_whole(events)
        assert deltas_in(events) == ["Ciao, ", "hello."]
        assert final["usage"]["total_tokens"] == 12
        question = asked.runs[0].request
        assert (question["model"], question["instructions"]) == ("small", "Be brief.")
        assert (question["stream"], question["store"]) == (True, False)


async def test_model_is_told_the_earlier_turns() -> None:
    async with sample_with_model(talking) as (asked, server):
        first = (await server.post(input="Say hello")).json()
        await server.post(input="Again", previous_response_id=first["id"])
        told = [(item["role"], item["content"][0]["text"]) for item in asked.runs[1].request["input"]]
        assert told == [("user", "Say hello"), ("assistant", "Ciao, hello."), ("user", "Again")]
        assert {name for item in asked.runs[1].request["input"] for name in item} == {"type", "role", "content"}


async def cut_short(stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event) -> Events:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_message("As far as"):
        yield event
    yield stream.emit_incomplete(reason="max_output_tokens", usage={"output_tokens": 3})


async def test_answer_that_was_cut_short_is_incomplete_for_the_same_reason() -> None:
    async with sample_with_model(cut_short) as (_, server):
        final = assert_whole(await server.events(input="x"))
        assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert text_in(final) == "As far as"
        assert final["usage"]["output_tokens"] == 3


async def failing(stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event) -> Events:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    yield stream.emit_failed(message="a secret of the model")


async def breaking_off(stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event) -> Events:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    message = stream.add_output_item_message()
    yield message.emit_added()
    text = message.add_text_content()
    yield text.emit_added()
    yield text.emit_delta("As far as")
    raise OSError("a secret of the model")


async def refusing(stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event) -> Events:
    if not signal.is_set():
        raise ValueError("a secret of the model")
    yield {}


@pytest.mark.parametrize(("script", "said"), [(failing, ""), (refusing, ""), (breaking_off, "As far as")])
async def test_failure_of_the_model_is_a_failed_response_without_its_details(script: Any, said: str) -> None:
    async with sample_with_model(script) as (_, server):
        events = await server.events(input="x")
        final = assert_whole(events)
        assert (final["status"], final["error"]["code"]) == ("failed", "server_error")
        assert text_in(final) == said
        assert "model" in final["error"]["message"]
        assert "secret" not in json.dumps(events)


async def test_model_without_a_key_is_a_failed_response() -> None:
    # Undone before the sample's own settings are: the other way round would bring its key back for good.
    async with sample_with_model(talking) as (asked, server):
        with pytest.MonkeyPatch.context() as patch:
            await without_a_key(patch, asked, server)


async def without_a_key(patch: pytest.MonkeyPatch, asked: ApiServer, server: ApiServer) -> None:
    upstream_model.model.cache_clear()
    patch.delenv("OPENAI_API_KEY")
    patch.delenv("OPENAI_ADMIN_KEY", raising=False)
    assert (await server.post(input="x")).json()["status"] == "failed"
    assert asked.runs == []


async def silent(stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event) -> Events:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    await signal.wait()


async def test_cancelled_response_leaves_a_model_that_is_silent() -> None:
    async with sample_with_model(silent) as (asked, server):
        response = (await server.post(input="x", background=True)).json()
        await until(lambda: bool(asked.runs))
        await server.client.post(f"/v1/responses/{response['id']}/cancel")
        await until(lambda: not server.engine.runtime.running and not asked.engine.runtime.running)
        assert asked.runs[0].client_cancelled
        assert (await server.get(response["id"])).json()["status"] == "cancelled"
