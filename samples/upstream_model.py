"""A model's answer, passed on as it comes, with the model's own token counts.

Run it: `OPENAI_API_KEY=… RESPONSES_AGENT=samples.upstream_model:app make start`; `OPENAI_MODEL` and `OPENAI_BASE_URL`
choose another model or another server of the Responses API.

A client sees the model's text, delta by delta; all earlier turns of the conversation are sent along. An error of the
model ends the response as `failed`, a limit it ran into as `incomplete`. When the client cancels, the request to the
model is closed. After a crash the model is asked again.
"""

import asyncio
import functools
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Any

import openai

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))
log = logging.getLogger(__name__)


@functools.cache
def model() -> openai.AsyncOpenAI:
    """One client for all responses; it takes its key and base URL from the environment."""
    return openai.AsyncOpenAI()


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Ask the model and pass its answer on."""
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()

    message = stream.add_output_item_message()
    text = message.add_text_content()
    began = False
    ending: Any = None
    try:
        question: Any = {
            "model": os.environ.get("OPENAI_MODEL") or request.get("model") or "gpt-5-mini",
            "instructions": request.get("instructions"),
            "input": messages_in([*await context.get_history(), *await context.get_input_items()]),
        }
        answer = await model().responses.create(stream=True, store=False, **question)
        async with answer, aclosing(until_set(cancellation_signal, answer)) as events:
            async for event in events:
                if event.type == "response.output_text.delta":
                    if not began:
                        began = True
                        yield message.emit_added()
                        yield text.emit_added()
                    yield text.emit_delta(event.delta)
                elif event.type in ("response.completed", "response.incomplete", "response.failed"):
                    ending = event
    except openai.OpenAIError:
        # What went wrong between here and the model is for the log, not for the client.
        log.exception("the model could not be asked")

    if began:
        yield text.emit_text_done()
        yield text.emit_done()
        yield message.emit_done()
    usage = ending and ending.response.usage and ending.response.usage.model_dump()
    if cancellation_signal.is_set():
        yield stream.emit_incomplete()
    elif ending is None or ending.type == "response.failed":
        log.error("the model gave no answer: %s", ending and ending.response.error)
        yield stream.emit_failed(message="The model failed.", usage=usage)
    elif ending.type == "response.incomplete":
        details = ending.response.incomplete_details
        yield stream.emit_incomplete(reason=details and details.reason, usage=usage)
    else:
        yield stream.emit_completed(usage=usage)


def messages_in(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages among the items, as the model takes them: without this server's own fields."""
    return [
        {"type": "message", "role": item["role"], "content": item["content"]}
        for item in conversation
        if item["type"] == "message"
    ]


async def until_set(signal: asyncio.Event, source: AsyncIterable[Any]) -> AsyncGenerator[Any]:
    """What the source gives until the signal is set, also while the source is silent."""
    iterator = aiter(source)
    stop = asyncio.ensure_future(signal.wait())
    following = asyncio.ensure_future(anext(iterator, None))
    try:
        while True:
            await asyncio.wait({stop, following}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() or (value := following.result()) is None:
                return
            yield value
            following = asyncio.ensure_future(anext(iterator, None))
    finally:
        stop.cancel()
        following.cancel()
        await asyncio.gather(stop, following, return_exceptions=True)
