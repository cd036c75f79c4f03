"""Every event by hand: the snapshot's fields, the message part by part, and the choice of how it ends.

Run it: `RESPONSES_AGENT=samples.full_control:app make start`

A client sees its words come back one delta each. The response carries a metadata entry of the handler's own and token
counts. It is `completed`, or `incomplete` where `max_output_tokens` cut it short; a request without a word is refused
with 400, because the handler raises `ValueError` before its first event.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Say the input's words back, as many as the client allows."""
    words = (await context.get_input_text()).split()
    if not words:
        raise ValueError("There is not a word in the input.")
    allowed = words[: request.get("max_output_tokens")]

    stream = ResponseEventStream(response_id=context.response_id, request=request)
    stream.response["metadata"]["words"] = str(len(words))
    yield stream.emit_created()
    yield stream.emit_in_progress()

    message = stream.add_output_item_message()
    yield message.emit_added()
    text = message.add_text_content()
    yield text.emit_added()
    said = 0
    for word in allowed:
        if cancellation_signal.is_set():
            break
        yield text.emit_delta(word if said == 0 else f" {word}")
        said += 1
    yield text.emit_text_done()
    yield text.emit_done()
    yield message.emit_done()

    usage = {"input_tokens": len(words), "output_tokens": said, "total_tokens": len(words) + said}
    if said == len(words):
        yield stream.emit_completed(usage=usage)
    else:
        yield stream.emit_incomplete(reason="max_output_tokens" if said == len(allowed) else None, usage=usage)
