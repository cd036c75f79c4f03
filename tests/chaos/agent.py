"""The agent under chaos. Every entry has a name of its own, and every delta says which entry said it: ``ab12.7 ``.

The input's text is a JSON object: `count` deltas, `delay` seconds apart; with `checkpoint_every` so many deltas are an
item of their own, followed by a checkpoint, and a recovered entry goes on behind them. When a newer turn waits it
completes with what it has, unless it is `stubborn`; when its signal was set it takes `wind_down` seconds to clean up.
What else the object holds is ignored.

Settings: `CHAOS_JOURNAL`, a file that is told of every entry (`tests.support.turn_journal`). The log is told as well:
there the claim stands beside it (`tests.chaos.evidence`).
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from protocol.aio import ResponseEventStream
from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions
from tests.chaos.evidence import ATTEMPT, ENTERED, LEFT, LEFT_AT_SHUTDOWN
from tests.support.turn_journal import noted

GRACE = 2.0

_log = logging.getLogger("chaos.agent")


def _say_attempt(attributes: dict[str, Any]) -> None:
    _log.info(ATTEMPT.format(attributes["responses.attempt"]))


app, fragile_app = (
    ResponsesApp(
        ResponsesServerOptions(
            resilient_background=resilient,
            steerable_conversations=True,
            shutdown_grace_period_seconds=GRACE,
            create_span_hook=_say_attempt,
        )
    )
    for resilient in (True, False)
)


async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncIterator[Any]:
    """Count, and note when."""
    with noted("CHAOS_JOURNAL", context) as entry:
        _log.info(ENTERED.format(entry))
        try:
            script = json.loads(await context.get_input_text())
            async with aclosing(_counted(request, context, cancellation_signal, script, entry)) as events:
                async for event in events:
                    yield event
            if cancellation_signal.is_set():
                await asyncio.sleep(float(script.get("wind_down", 0)))
        finally:
            _log.info((LEFT_AT_SHUTDOWN if context.shutdown.is_set() else LEFT).format(entry))


async def _counted(
    request: CreateResponse,
    context: ResponseContext,
    cancellation_signal: asyncio.Event,
    script: dict[str, Any],
    entry: str,
) -> AsyncGenerator[Any]:
    signal = asyncio.Event() if script.get("stubborn") else cancellation_signal
    size = int(script.get("checkpoint_every") or 0)
    if size and context.persisted_response is not None:
        stream = ResponseEventStream(response=context.persisted_response)
    else:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
    count = int(script["count"])
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for start in range(len(stream.response["output"]) * size, count, size or count):
        words = _words(entry, range(start, min(start + (size or count), count)), script["delay"], signal)
        async for event in stream.output_item_message(words):
            yield event
        if signal.is_set():
            break
        if size:
            yield stream.checkpoint()
    yield stream.emit_completed()


app.response_handler(handler)
fragile_app.response_handler(handler)


async def _words(entry: str, numbers: range, delay: float, signal: asyncio.Event) -> AsyncIterator[str]:
    for number in numbers:
        await asyncio.sleep(delay)
        if signal.is_set():
            return
        yield f"{entry}.{number} "
