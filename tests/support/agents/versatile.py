"""The example agent, and what it lacks for a strict client to have something to judge.

- A request for structured output (`text.format` of type `json_schema`) is answered with an object of that schema, made
  out of the text. Functions that the request brings are called first.
- "think" in the text: reasoning with a summary, then a message in two parts, the first with an annotation, and usage.
- "decline": a message that is a refusal. "break": a failed response.
- Everything else is the example agent's.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import agent
from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

type Event = dict[str, Any]

THOUGHTS = ("First this. ", "Then that.")
ANSWER, SOURCE = ("Well ", "considered."), "See the book."
REFUSAL = "I would rather not."
FAILURE = "broken as asked"
CITATION = {
    "type": "url_citation",
    "url": "https://example.com/book",
    "title": "A book",
    "start_index": 0,
    "end_index": 4,
}
USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 18,
}

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[Event]:
    """Answer one request."""
    items = await context.get_input_items()
    events = _own(request, context, agent.text_of(items[-1]) if items else "")
    if events is None:
        async for event in agent.handler(request, context, cancellation_signal):
            yield event
    else:
        for event in events:
            yield event


def _own(request: CreateResponse, context: ResponseContext, text: str) -> Iterator[Event] | None:
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    answer_format: Any = (request.get("text") or {}).get("format") or {}
    if answer_format.get("type") == "json_schema" and not request.get("tools"):
        return _whole(stream, _structured(stream, answer_format["schema"], text))
    for word, events in (("think", _considered), ("decline", _refused), ("break", _failed)):
        if word in text:
            return _whole(stream, events(stream))
    return None


def _whole(stream: ResponseEventStream, events: Iterator[Event]) -> Iterator[Event]:
    yield stream.emit_created()
    yield stream.emit_in_progress()
    yield from events


def _structured(stream: ResponseEventStream, schema: dict[str, Any], text: str) -> Iterator[Event]:
    answer = {name: agent.argument(kind, text) for name, kind in schema["properties"].items()}
    yield from stream.output_item_message(json.dumps(answer))
    yield stream.emit_completed(usage=USAGE)


def _considered(stream: ResponseEventStream) -> Iterator[Event]:
    reasoning = stream.add_output_item_reasoning_item()
    yield reasoning.emit_added()
    for thought in THOUGHTS:
        yield from reasoning.summary_part(thought)
    yield reasoning.emit_done(encrypted_content="c2VhbGVk")
    message = stream.add_output_item_message()
    yield message.emit_added()
    text = message.add_text_content()
    yield text.emit_added()
    for piece in ANSWER:
        yield text.emit_delta(piece)
    yield text.emit_annotation_added(CITATION)
    yield text.emit_text_done()
    yield text.emit_done()
    yield from message.text_content(SOURCE)
    yield message.emit_done()
    yield stream.emit_completed(usage=USAGE)


def _refused(stream: ResponseEventStream) -> Iterator[Event]:
    message = stream.add_output_item_message()
    yield message.emit_added()
    yield from message.refusal_content(REFUSAL)
    yield message.emit_done()
    yield stream.emit_completed()


def _failed(stream: ResponseEventStream) -> Iterator[Event]:
    yield from stream.output_item_message("So far ")
    yield stream.emit_failed(code="server_error", message=FAILURE)
