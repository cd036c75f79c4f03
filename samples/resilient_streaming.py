"""Long work in phases that outlives its worker.

Run it: `RESPONSES_AGENT=samples.resilient_streaming:app make start`

A client sees one message for each phase. In the background (`background: true`) a finished phase is persisted, with
what it found out: when the worker dies, another one begins at the phase that was interrupted, in the same stream. A
worker that has to stop leaves in the middle of a phase, and another one begins that phase at once. Without
`background` nobody could go on; the work is then finished within the grace period, or fails.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions, aio

SECONDS_PER_WORD = 0.2

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Look at the question, weigh it, answer."""
    if context.persisted_response is None:
        stream = aio.ResponseEventStream(response_id=context.response_id, request=request)
    else:
        stream = aio.ResponseEventStream(response=context.persisted_response)
    yield stream.emit_created()
    yield stream.emit_in_progress()  # on recovery: readers go back to what is persisted

    question = await context.get_input_text()
    found = stream.internal_metadata  # persisted with the phases, and never shown to a client
    phases = [looking, weighing, answering]
    for phase in phases[len(stream.response["output"]) :]:
        async for event in stream.output_item_message(slowly(phase(question, found))):
            yield event
            if context.shutdown.is_set():
                with suppress(RuntimeError):  # in the foreground: hurry up instead
                    await context.exit_for_recovery()
            if cancellation_signal.is_set():
                return  # the response is cancelled already; nobody reads what would come now
        yield stream.checkpoint()
    yield stream.emit_completed()


def looking(question: str, found: dict[str, Any]) -> str:
    """The first phase, which finds out what the others need."""
    found["words"] = question.split()
    return f"The question has {len(found['words'])} words."


def weighing(question: str, found: dict[str, Any]) -> str:
    """The second phase, with what the first one found."""
    found["longest"] = max(found["words"], key=len, default="nothing")
    return f"The longest one is {found['longest']!r}."


def answering(question: str, found: dict[str, Any]) -> str:
    """The last phase, with what the second one found."""
    return f"So you want to know about {found['longest'].strip('?!.,')}."


async def slowly(text: str) -> AsyncGenerator[str]:
    """The words of a text at the pace of hard work."""
    for number, word in enumerate(text.split()):
        await asyncio.sleep(SECONDS_PER_WORD)
        yield word if number == 0 else f" {word}"
