"""What was said before: the items of earlier turns.

Run it: `RESPONSES_AGENT=samples.conversation_history:app make start`

A client that names a `previous_response_id` or a `conversation` sees what it said in its earlier turns; one that names
neither begins a conversation. Only stored responses (`store`, the default) are remembered.
"""

import asyncio
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions, TextResponse

# A handler that passes the history to a model will want to bound it: the newest items are kept.
app = ResponsesApp(ResponsesServerOptions(resilient_background=True, default_fetch_history_count=40))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> TextResponse:
    """Say what the user said, now and before."""
    history = await context.get_history()
    earlier = [text_of(item) for item in history if item["type"] == "message" and item["role"] == "user"]
    answer = f"You said: {await context.get_input_text()}"
    if earlier:
        answer += f"\nBefore that: {'; '.join(earlier)}"
    return TextResponse(context, request, text=answer)


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whose content is a list of parts."""
    return " ".join(part["text"] for part in message["content"] if "text" in part)
