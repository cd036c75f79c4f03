"""The agent that tests drive: the input's text is a JSON object that says what the handler does.

Keys, all optional:

- `count`, `delay`: so many text deltas `"<n> "`, `delay` seconds apart;
- `pad`: each delta is made so many characters long, with blanks;
- `delay_again`: the same in an entry after the first, to be done sooner;
- `checkpoint_every`: each so many deltas are an item of their own, followed by a checkpoint; a recovered handler goes
  on behind them;
- `end`: `completed` (default), `incomplete`, `failed`, `nothing`, `raise`, `refuse` (a ValueError), `hang`;
- `raise_first`: `true` raises (or refuses, as `end` says) before any event;
- `remember`: put into the chain's metadata before anything else;
- `invalid`: `true` yields something that is no event, after the first delta;
- `on_signal`: `stop` (default) ends without an outcome when the signal is set, `finish` completes with what there is,
  `ignore` goes on;
- `wind_down`: seconds that the handler still takes when the signal was set, and it has nothing more to say.

Setting: `SCRIPTED_JOURNAL`, a file that is told of every entry (`tests.support.turn_journal`).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions
from tests.support.turn_journal import noted

app = ResponsesApp(ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=2))
steerable_app = ResponsesApp(
    ResponsesServerOptions(resilient_background=True, steerable_conversations=True, shutdown_grace_period_seconds=2)
)
fragile_app = ResponsesApp(ResponsesServerOptions(resilient_background=False, shutdown_grace_period_seconds=2))


class ScriptedError(Exception):
    """The script asked for it: secret-canary-of-the-handler."""


async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncIterator[Any]:
    """Do what the input says, and note when."""
    with noted("SCRIPTED_JOURNAL", context):
        script = _script(await context.get_input_text())
        if context.is_recovery and "delay_again" in script:
            script["delay"] = script["delay_again"]
        heeded = asyncio.Event() if script.get("on_signal") == "ignore" else cancellation_signal
        async with aclosing(_events(request, context, heeded, script)) as events:
            async for event in events:
                yield event
        if cancellation_signal.is_set():
            await asyncio.sleep(float(script.get("wind_down", 0)))


async def _events(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event, script: dict[str, Any]
) -> AsyncGenerator[Any]:
    if script.get("raise_first"):
        _raise(script)
    if "remember" in script:
        context.conversation_chain_metadata["remembered"] = script["remember"]
        await context.conversation_chain_metadata.flush()
    done = context.persisted_response if script.get("checkpoint_every") else None
    if done is None:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
    else:
        stream = ResponseEventStream(response=done)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    first = _numbers_in(done)
    count = int(script.get("count", 3))
    size = int(script.get("checkpoint_every") or count or 1)
    for start in range(first, max(count, first + 1), size):
        numbers = range(start, min(start + size, count))
        async for event in _message(stream, numbers, script, cancellation_signal):
            yield event
        if cancellation_signal.is_set():
            if script.get("on_signal") == "finish":
                yield stream.emit_completed()
            return
        if script.get("checkpoint_every"):
            yield stream.checkpoint()
    async for event in _end(stream, script, cancellation_signal):
        yield event


app.response_handler(handler)
steerable_app.response_handler(handler)
fragile_app.response_handler(handler)


async def _message(
    stream: ResponseEventStream, numbers: range, script: dict[str, Any], signal: asyncio.Event
) -> AsyncIterator[Any]:
    message = stream.add_output_item_message()
    yield message.emit_added()
    text = message.add_text_content()
    yield text.emit_added()
    delay = float(script.get("delay", 0))
    for number in numbers:
        if delay:
            await asyncio.sleep(delay)
        if signal.is_set():
            if script.get("on_signal") == "finish":
                break
            return
        yield text.emit_delta(f"{number} ".ljust(int(script.get("pad", 0))))
        if script.get("invalid"):
            yield {"type": "no.such.event"}
    yield text.emit_text_done()
    yield text.emit_done()
    yield message.emit_done()


async def _end(stream: ResponseEventStream, script: dict[str, Any], signal: asyncio.Event) -> AsyncIterator[Any]:
    end = script.get("end", "completed")
    if end == "completed":
        usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
        yield stream.emit_completed(usage=usage)
    elif end == "incomplete":
        yield stream.emit_incomplete(reason="max_output_tokens")
    elif end == "failed":
        yield stream.emit_failed(code="server_error", message="as scripted")
    elif end == "hang":
        await signal.wait()
    elif end != "nothing":
        _raise(script)


def _raise(script: dict[str, Any]) -> None:
    if script.get("end") == "refuse":
        raise ValueError("refused as scripted")
    raise ScriptedError


def _script(text: str) -> dict[str, Any]:
    try:
        script = json.loads(text)
    except ValueError:
        return {}
    return script if isinstance(script, dict) else {}


def _numbers_in(response: Any) -> int:
    """How many deltas an earlier entry made durable."""
    texts = [
        part["text"]
        for item in (response or {}).get("output", [])
        if item["type"] == "message"
        for part in item["content"]
    ]
    return sum(len(text.split()) for text in texts)
