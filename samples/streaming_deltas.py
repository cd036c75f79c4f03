"""A text that comes in pieces: an async generator in place of a str.

Run it: `RESPONSES_AGENT=samples.streaming_deltas:app make start`

A client that streams sees one `response.output_text.delta` for each piece, as soon as it is there; one that does not
stream sees the whole text. After a crash the text is made again from its beginning, in the same stream.
"""

import asyncio
from collections.abc import AsyncGenerator

from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions, TextResponse

SECONDS_PER_WORD = 0.2

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> TextResponse:
    """Say the input back, word by word."""
    question = await context.get_input_text()
    return TextResponse(context, request, text=words(f"You said: {question}", cancellation_signal))


async def words(text: str, cancellation_signal: asyncio.Event) -> AsyncGenerator[str]:
    """The words of a text at the pace of somebody who thinks, as long as somebody listens."""
    for number, word in enumerate(text.split()):
        await asyncio.sleep(SECONDS_PER_WORD)
        if cancellation_signal.is_set():
            return
        yield word if number == 0 else f" {word}"
