"""The agent under chaos. Every entry has a name of its own, and every delta says which entry said it: ``ab12.7 ``.

The input's text is a JSON object: `count` deltas, `delay` seconds apart; with `checkpoint_every` so many deltas are an
item of their own, followed by a checkpoint, and a recovered entry goes on behind them. What else it holds is ignored.

Settings: `CHAOS_JOURNAL`, a file that gets a JSON line for every entry.
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from protocol.aio import ResponseEventStream
from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions

GRACE = 2.0

app = ResponsesApp(ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=GRACE))
fragile_app = ResponsesApp(ResponsesServerOptions(resilient_background=False, shutdown_grace_period_seconds=GRACE))


async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncIterator[Any]:
    """Count."""
    script = json.loads(await context.get_input_text())
    entry = secrets.token_hex(4)
    _note(context, entry)
    size = int(script.get("checkpoint_every") or 0)
    if size and context.persisted_response is not None:
        stream = ResponseEventStream(response=context.persisted_response)
    else:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
    count = int(script["count"])
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for start in range(len(stream.response["output"]) * size, count, size or count):
        words = _words(entry, range(start, min(start + (size or count), count)), script["delay"], cancellation_signal)
        async for event in stream.output_item_message(words):
            yield event
        if cancellation_signal.is_set():
            return
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


def _note(context: ResponseContext, entry: str) -> None:
    line = {
        "response_id": context.response_id,
        "entry": entry,
        "pid": os.getpid(),
        "at": time.time(),
        "is_recovery": context.is_recovery,
    }
    # One short write to a file opened for appending: lines of several processes do not mix.
    with Path(os.environ["CHAOS_JOURNAL"]).open("a") as journal:
        journal.write(json.dumps(line) + "\n")
