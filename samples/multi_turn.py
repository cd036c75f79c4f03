"""What the turns of a conversation keep for one another.

Run it: `RESPONSES_AGENT=samples.multi_turn:app make start`

A client that names a `conversation` sees its turns counted, and what it said in them, until it says "done"; then the
count begins anew. The count lies in the conversation's metadata, of which no client sees anything; what was said comes
from the history. A turn counts once it is completed, and only once, however often its worker died.
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
    """Count the turn, or forget them all."""
    metadata = context.conversation_chain_metadata
    said = await context.get_input_text()
    turn = metadata.get("turns", 0) + 1
    if is_done(said):
        answer = f"That was turn {turn}. Let us begin anew."
    else:
        answer = "\n".join([f"Turn {turn}. You said:", *said_since_done(await context.get_history()), said])

    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_message(answer):
        yield event
    # Changed last of all, it is stored together with the outcome. What was changed earlier, a worker that has to leave
    # stores too, and the one that enters this handler next would count the turn again.
    if is_done(said):
        metadata.clear()
    else:
        metadata["turns"] = turn
    yield stream.emit_completed()


def is_done(said: str) -> bool:
    """True for the word that ends the count."""
    return said.strip().lower() == "done"


def said_since_done(history: list[dict[str, Any]]) -> list[str]:
    """The user's earlier messages, oldest first, from behind the last "done"."""
    said: list[str] = []
    for item in history:
        if item["type"] == "message" and item["role"] == "user":
            text = " ".join(part["text"] for part in item["content"] if "text" in part)
            said = [] if is_done(text) else [*said, text]
    return said
