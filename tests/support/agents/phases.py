"""An agent that works in phases, each of which says which of its entries did it: `L<lifetime>_phase<n>`.

A lifetime is one entry of the handler for a response, counted from zero. With checkpoints it is kept in the
response's internal metadata; without, `is_recovery` tells the first from the others.

The input's text is a JSON object. Keys, all optional:

- `phases`, `pace`: so many phases (3), each of so many seconds (0);
- `leaves`: before that lifetime (0) it never comes to an end, but begins one phase after another;
- `checkpoints`: `true` persists every phase and goes on after the last persisted one; otherwise nothing is kept;
- `stay_in`: the phase that the first lifetime does not leave by itself, with half of its text said;
- `on_shutdown`: `ignore` (default), `finish` (hurry to the end), `exit` (for recovery), `raise`;
- `block`: seconds for which the first lifetime blocks the event loop in phase `stay_in`, instead of staying there.

Settings: `PHASES_GRACE`, the apps' shutdown grace in seconds (2); `PHASES_JOURNAL`, a file that gets a JSON line for
every entry (`entered`, with what the handler was given) and every phase in which one stays (`staying`).
"""

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

GRACE = float(os.environ.get("PHASES_GRACE", "2"))

app = ResponsesApp(ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=GRACE))
fragile_app = ResponsesApp(ResponsesServerOptions(resilient_background=False, shutdown_grace_period_seconds=GRACE))


async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncIterator[Any]:
    """Go through the phases that are left."""
    script = json.loads(await context.get_input_text())
    persisted = context.persisted_response if script.get("checkpoints") else None
    if persisted is None:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
    else:
        stream = ResponseEventStream(response=persisted)
    lifetime = _lifetime(stream, context, bool(script.get("checkpoints")))
    _note(context, "entered", lifetime, given=await _given(context))
    yield stream.emit_created()
    yield stream.emit_in_progress()
    if script.get("checkpoints"):
        yield stream.checkpoint()
    for phase in itertools.count(len(stream.response["output"])):
        if phase >= int(script.get("phases", 3)) and lifetime >= int(script.get("leaves", 0)):
            break
        message = stream.add_output_item_message()
        yield message.emit_added()
        text = message.add_text_content()
        yield text.emit_added()
        yield text.emit_delta(f"L{lifetime}_")
        await _work(script, context, lifetime, phase)
        yield text.emit_delta(f"phase{phase}")
        for event in (text.emit_text_done(), text.emit_done(), message.emit_done()):
            yield event
        if script.get("checkpoints"):
            yield stream.checkpoint()
    yield stream.emit_completed()


app.response_handler(handler)
fragile_app.response_handler(handler)


def _lifetime(stream: ResponseEventStream, context: ResponseContext, counted: bool) -> int:
    if not counted:
        return int(context.is_recovery)
    notes = stream.internal_metadata
    notes["lifetime"] = max(int(notes.get("lifetime", -1)) + 1, int(context.is_recovery))
    return int(notes["lifetime"])


async def _work(script: dict[str, Any], context: ResponseContext, lifetime: int, phase: int) -> None:
    seconds: float | None = float(script.get("pace", 0))
    if lifetime == 0 and phase == script.get("stay_in"):
        _note(context, "staying", lifetime)
        if "block" in script:
            time.sleep(float(script["block"]))  # noqa: ASYNC251 (blocking the loop is what is tested)
            return
        seconds = None
    if await _is_shut_down(script, context, seconds):
        if script["on_shutdown"] == "exit":
            await context.exit_for_recovery()
        if script["on_shutdown"] == "raise":
            raise ConnectionError("what the handler worked with is gone already")


async def _is_shut_down(script: dict[str, Any], context: ResponseContext, seconds: float | None) -> bool:
    """Wait so many seconds, or for ever; True as soon as a shutdown that the script does not ignore is announced."""
    ignored = script.get("on_shutdown", "ignore") == "ignore"
    try:
        async with asyncio.timeout(seconds):
            await (asyncio.Event() if ignored else context.shutdown).wait()
    except TimeoutError:
        return False
    return True


async def _given(context: ResponseContext) -> dict[str, Any]:
    return {
        "request": context.request,
        "client_headers": context.client_headers,
        "query_parameters": context.query_parameters,
        "principal": context.principal,
        "created_at": context.created_at,
        "items": await context.get_input_items(),
        "unresolved_items": await context.get_input_items(resolve_references=False),
    }


def _note(context: ResponseContext, what: str, lifetime: int, **more: Any) -> None:
    path = os.environ.get("PHASES_JOURNAL")
    if not path:
        return
    line = {
        "what": what,
        "response_id": context.response_id,
        "metadata": context.request.get("metadata") or {},
        "lifetime": lifetime,
        "is_recovery": context.is_recovery,
        "pid": os.getpid(),
        **more,
    }
    with Path(path).open("a") as journal:
        journal.write(json.dumps(line) + "\n")
