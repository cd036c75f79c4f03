"""The smallest app: a handler that returns one text.

Run it: `RESPONSES_AGENT=samples.getting_started:app make start`

A client sees a response with one message. Nothing else is to be done for the other modes: the same handler answers
streamed, in the background, and again on another worker after a crash.
"""

import asyncio

from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions, TextResponse

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> TextResponse:
    """Say the input back."""
    question = await context.get_input_text()
    return TextResponse(context, request, text=f"You said: {question}")
