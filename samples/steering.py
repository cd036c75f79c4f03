"""A long answer that the next message cuts short.

Run it: `RESPONSES_AGENT=samples.steering:app make start`

A client that sends a turn while an earlier one of the same chain still runs is not refused: its turn is `queued`. The
running one ends after the point it is at, `incomplete`, with what it has said; then the queued ones run in their order.
A turn that begins so is told how far the earlier one came. What `/cancel` stops has no output, as everywhere.

In the background each point is persisted: after a crash another worker goes on with the next one, and the turns that
wait lose neither their place nor their input.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions, aio

SECONDS_PER_WORD = 0.2
POINTS = 8

app = ResponsesApp(ResponsesServerOptions(resilient_background=True, steerable_conversations=True))


@app.response_acceptor
async def acceptor(request: CreateResponse, context: ResponseContext) -> dict[str, Any] | None:
    """What a turn that has to wait gets as its first answer; it has status `queued` whatever this says."""
    if not (await context.get_input_text()).strip():
        raise ValueError("There is nothing to wait for: the input is empty.")  # refused with 400, and not queued
    return {"metadata": {**(request.get("metadata") or {}), "waits_for": "an earlier turn"}}


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Speak point by point, as long as nobody has something else to say."""
    if context.persisted_response is None:
        stream = aio.ResponseEventStream(response_id=context.response_id, request=request)
    else:
        stream = aio.ResponseEventStream(response=context.persisted_response)
    yield stream.emit_created()
    yield stream.emit_in_progress()

    points = [f"Point {number} about {await context.get_input_text()}." for number in range(1, POINTS + 1)]
    if context.is_steered_turn:
        points[0] = f"As you wish, after {points_of_the_last_turn(await context.get_history())} points. {points[0]}"
    for point in points[len(stream.response["output"]) :]:
        async for event in stream.output_item_message(slowly(point)):
            yield event
            if context.client_cancelled:
                return  # the response is cancelled already; nobody reads what would come now
        yield stream.checkpoint()
        # Between two points: what is said so far can stand by itself.
        if cancellation_signal.is_set():
            yield stream.emit_incomplete()
            return
        if context.shutdown.is_set():
            with suppress(RuntimeError):  # in the foreground: hurry up instead
                await context.exit_for_recovery()
    yield stream.emit_completed()


def points_of_the_last_turn(history: list[dict[str, Any]]) -> int:
    """How many messages of ours stand behind the user's last one."""
    roles = [item["role"] for item in history if item["type"] == "message"]
    return next((count for count, role in enumerate(reversed(roles)) if role == "user"), len(roles))


async def slowly(text: str) -> AsyncGenerator[str]:
    """The words of a text at the pace of somebody who talks."""
    for number, word in enumerate(text.split()):
        await asyncio.sleep(SECONDS_PER_WORD)
        yield word if number == 0 else f" {word}"
