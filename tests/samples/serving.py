"""Samples on a loopback port, as `RESPONSES_AGENT` names them; the model behind one of them is a server too."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from api.process import load_app
from resilience import ResponseContext, ResponseEventStream
from samples import several_outputs, streaming_deltas, upstream_model
from tests.support import api_server
from tests.support.api_server import SETTINGS, ApiServer, Script

# Longer than a test waits: a sample that overlooks its cancellation is not stopped by the engine before.
PATIENT = replace(SETTINGS, cancel_grace=60.0)


@asynccontextmanager
async def sample(name: str) -> AsyncGenerator[ApiServer]:
    """A sample, without the pauses that make it look thoughtful."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (several_outputs, streaming_deltas):
            patch.setattr(module, "SECONDS_PER_WORD", 0.001)
        async with api_server.serving(app=load_app(f"samples.{name}:app"), settings=PATIENT) as server:
            yield server


@asynccontextmanager
async def sample_with_model(script: Script) -> AsyncGenerator[tuple[ApiServer, ApiServer]]:
    """A server that plays the model, and the sample that asks it."""
    with pytest.MonkeyPatch.context() as patch:
        async with api_server.serving(script) as asked, sample("upstream_model") as server:
            patch.setenv("OPENAI_API_KEY", "none")
            patch.setenv("OPENAI_BASE_URL", f"{str(asked.client.base_url).rstrip('/')}/v1")
            patch.setenv("OPENAI_MODEL", "small")
            upstream_model.model.cache_clear()
            async with upstream_model.model():
                yield asked, server
            upstream_model.model.cache_clear()


async def talking(stream: ResponseEventStream, context: ResponseContext, signal: object) -> AsyncIterator[Any]:
    """A model that thinks, says two things and counts its tokens."""
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_reasoning_item("Which languages?"):
        yield event
    for event in stream.output_item_message(["Ciao, ", "hello."]):
        yield event
    yield stream.emit_completed(usage={"input_tokens": 7, "output_tokens": 5, "total_tokens": 12})


@asynccontextmanager
async def any_sample(name: str) -> AsyncGenerator[ApiServer]:
    """A sample with all that it needs."""
    if name == "upstream_model":
        async with sample_with_model(talking) as (_, server):
            yield server
    else:
        async with sample(name) as server:
            yield server


def text_in(response: dict[str, Any]) -> str:
    """The text of all messages of a response."""
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def deltas_in(events: list[dict[str, Any]]) -> list[str]:
    """The text deltas among events."""
    return [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
