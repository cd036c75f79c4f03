"""Several output items in one response, each of them kept when the worker dies.

Run it: `RESPONSES_AGENT=samples.several_outputs:app make start`

A client sees a reasoning item and then two messages. In the background (`background: true`) each finished item is
persisted: after a crash, or when the worker has to leave, another one goes on with the next item.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions, aio

SECONDS_PER_WORD = 0.1

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Think, answer, sum up."""
    if context.persisted_response is None:
        stream = aio.ResponseEventStream(response_id=context.response_id, request=request)
    else:
        stream = aio.ResponseEventStream(response=context.persisted_response)
    yield stream.emit_created()
    yield stream.emit_in_progress()

    question = await context.get_input_text()
    outputs = [
        stream.output_item_reasoning_item(
            slowly(f"The question has {len(question.split())} words.", cancellation_signal)
        ),
        stream.output_item_message(slowly(f"You said: {question}", cancellation_signal)),
        stream.output_item_message(slowly("In short: you said something.", cancellation_signal)),
    ]
    # An output takes its place in the response when it begins; those that are persisted already are never begun.
    for output in outputs[len(stream.response["output"]) :]:
        async for event in output:
            yield event
        yield stream.checkpoint()
        if context.shutdown.is_set():
            with suppress(RuntimeError):  # in the foreground nobody could go on: end it here
                await context.exit_for_recovery()
        if cancellation_signal.is_set() or context.shutdown.is_set():
            yield stream.emit_incomplete()
            return
    yield stream.emit_completed()


async def slowly(text: str, cancellation_signal: asyncio.Event) -> AsyncGenerator[str]:
    """The words of a text at the pace of somebody who thinks, as long as somebody listens."""
    for number, word in enumerate(text.split()):
        await asyncio.sleep(SECONDS_PER_WORD)
        if cancellation_signal.is_set():
            return
        yield word if number == 0 else f" {word}"
