"""The app that is served. This is the file to edit.

With `OPENAI_API_KEY` set (and, if you like, `OPENAI_MODEL` and `OPENAI_BASE_URL`), or with `AZURE_OPENAI_ENDPOINT`,
`AZURE_OPENAI_API_KEY` and `AZURE_OPENAI_DEPLOYMENT`, a model answers. Without, the app answers by itself: it says your
words back, counts ("count to 20"), and calls the first function it is given. Try killing it while it counts.
"""

import asyncio
import functools
import json
import os
import re
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

if TYPE_CHECKING:
    from openai import AsyncOpenAI

type Event = dict[str, Any]
type Item = dict[str, Any]

SECONDS_PER_NUMBER = 0.3
NUMBERS_PER_MESSAGE = 5
DEFAULT_MODEL = "gpt-5-mini"

# What a model is told of a request and its items; the rest is this server's own business.
FORWARDED = (
    *("instructions", "max_output_tokens", "parallel_tool_calls", "reasoning"),
    *("temperature", "text", "tool_choice", "tools", "top_p"),
)
FORWARDED_ITEMS = ("message", "function_call", "function_call_output")
OWN_FIELDS = ("id", "status", "response_id", "agent_reference")

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[Event]:
    """Answer one request: its events, from `created` to a terminal one."""
    if context.persisted_response is None:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
    else:
        # An earlier worker died or had to leave: go on after what it persisted.
        stream = ResponseEventStream(response_id=context.response_id, response=context.persisted_response)
    yield stream.emit_created()
    yield stream.emit_in_progress()

    items = await context.get_input_items()
    last = items[-1] if items else {}
    text = text_of(last)
    counting = re.search(r"\bcount to (\d{1,4})\b", text, re.IGNORECASE)
    tool: Any = next((tool for tool in request.get("tools") or [] if tool["type"] == "function"), None)

    if model_client() is not None:
        async for event in ask_model(stream, request, context, cancellation_signal):
            yield event
    elif last.get("type") == "function_call_output":
        for event in say(stream, text):
            yield event
    elif tool is not None and request.get("tool_choice") != "none":
        for event in call_function(stream, tool, text):
            yield event
    elif counting is not None:
        async for event in count(stream, int(counting[1]), context, cancellation_signal):
            yield event
    else:
        for event in say(stream, f"You said: {text}"):
            yield event


def say(stream: ResponseEventStream, text: str) -> Iterator[Event]:
    """One message, word by word."""
    yield from stream.output_item_message(re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text))
    yield stream.emit_completed()


def call_function(stream: ResponseEventStream, tool: Item, text: str) -> Iterator[Event]:
    """A call of one of the client's functions, its arguments made out of the text."""
    properties = (tool.get("parameters") or {}).get("properties") or {}
    arguments = {name: argument(schema, text) for name, schema in properties.items()}
    yield from stream.output_item_function_call(tool["name"], f"call_{uuid.uuid4().hex}", json.dumps(arguments))
    yield stream.emit_completed()


async def count(
    stream: ResponseEventStream, last: int, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[Event]:
    """Count slowly, a few numbers to a message, and persist each message: a crash costs the one it interrupted."""
    stopping = False
    while not stopping and (said := NUMBERS_PER_MESSAGE * len(stream.response["output"])) < last:
        message = stream.add_output_item_message()
        yield message.emit_added()
        text = message.add_text_content()
        yield text.emit_added()
        for number in range(said + 1, min(said + NUMBERS_PER_MESSAGE, last) + 1):
            await asyncio.sleep(SECONDS_PER_NUMBER)
            stopping = await must_stop(context, cancellation_signal)
            if stopping:
                break
            yield text.emit_delta(f"{number} " if number < last else f"{number}")
        for event in (text.emit_text_done(), text.emit_done(), message.emit_done()):
            yield event
        yield stream.checkpoint()
    yield stream.emit_incomplete() if stopping else stream.emit_completed()


async def ask_model(
    stream: ResponseEventStream, request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[Event]:
    """Pass the conversation to a model, and its words and function calls on. After a crash it is asked again."""
    client = model_client()
    assert client is not None
    conversation = [*await context.get_history(), *await context.get_input_items()]
    question: dict[str, Any] = {name: value for name in FORWARDED if (value := request.get(name)) is not None}
    question["model"] = os.environ.get("OPENAI_MODEL") or os.environ.get("AZURE_OPENAI_DEPLOYMENT")
    question["model"] = question["model"] or request.get("model") or DEFAULT_MODEL
    question["input"] = [
        {name: value for name, value in item.items() if name not in OWN_FIELDS}
        for item in conversation
        if item["type"] in FORWARDED_ITEMS
    ]
    message = text = reason = None
    async with await client.responses.create(stream=True, store=False, **question) as answer:
        async for event in answer:
            if await must_stop(context, cancellation_signal):
                break
            if event.type == "response.output_item.added" and event.item.type == "message":
                message = stream.add_output_item_message()
                yield message.emit_added()
                text = message.add_text_content()
                yield text.emit_added()
            elif event.type in ("response.output_text.delta", "response.refusal.delta") and text is not None:
                yield text.emit_delta(event.delta)
            elif event.type == "response.output_item.done" and event.item.type == "function_call":
                call = event.item
                for own in stream.output_item_function_call(call.name, call.call_id, call.arguments):
                    yield own
            elif event.type == "response.output_item.done" and event.item.type == "message" and message and text:
                for own in (text.emit_text_done(), text.emit_done(), message.emit_done()):
                    yield own
                message = text = None
            elif event.type == "response.completed":
                yield stream.emit_completed(usage=event.response.usage and event.response.usage.model_dump())
                return
            elif event.type == "response.incomplete":
                reason = event.response.incomplete_details and event.response.incomplete_details.reason
            elif event.type == "response.failed":
                raise RuntimeError("the model failed")
    if message and text:
        for own in (text.emit_text_done(), text.emit_done(), message.emit_done()):
            yield own
    yield stream.emit_incomplete(reason=reason)


async def must_stop(context: ResponseContext, cancellation_signal: asyncio.Event) -> bool:
    """Whether the client wants no more or this worker has to leave. A run that another worker can resume is left to it
    right here; this does not return then."""
    if context.shutdown.is_set():
        with suppress(RuntimeError):  # not a resilient background response: nobody can resume it
            await context.exit_for_recovery()
    return cancellation_signal.is_set() or context.shutdown.is_set()


@functools.cache
def model_client() -> "AsyncOpenAI | None":
    """The connection to a model, None without a key. It takes its key and base URL from the environment."""
    azure, azure_key = os.environ.get("AZURE_OPENAI_ENDPOINT"), os.environ.get("AZURE_OPENAI_API_KEY")
    if not (os.environ.get("OPENAI_API_KEY") or (azure and azure_key)):
        return None
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=f"{azure.rstrip('/')}/openai/v1/", api_key=azure_key) if azure else AsyncOpenAI()


def text_of(item: Item) -> str:
    """The text of a message or of what a function gave."""
    content = item.get("output") if item.get("type") == "function_call_output" else item.get("content")
    return content if isinstance(content, str) else "".join(str(part.get("text") or "") for part in content or [])


def argument(schema: Item, text: str) -> Any:
    """A value of a JSON schema's type, out of a text where that is possible."""
    number = re.search(r"-?\d+", text)
    values = {"integer": int(number[0]) if number else 0, "boolean": True, "array": [], "object": {}}
    kind = schema.get("type")
    name = kind[0] if isinstance(kind, list) else kind
    chosen = values["integer"] if name == "number" else values.get(str(name), text)
    return next(iter(schema.get("enum") or []), chosen)
