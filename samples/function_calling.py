"""A call of one of the client's functions, over two turns.

Run it: `RESPONSES_AGENT=samples.function_calling:app make start`

First turn: the client offers `get_weather` and asks; it sees a `function_call` item and no text. It runs the function
itself and sends what it gave as `function_call_output`, with `previous_response_id` or with all earlier items in the
input. Second turn: it sees the answer. The output of a call that nobody made is refused with 400.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Call the function, or tell what it gave."""
    items = await context.get_input_items()
    last = items[-1] if items else {}
    offered = {tool.get("name") for tool in request.get("tools") or []}

    stream = ResponseEventStream(response_id=context.response_id, request=request)
    if last.get("type") == "function_call_output":
        city = city_asked_for(last["call_id"], [*await context.get_history(), *items])
        output = stream.output_item_message(f"The weather in {city}: {text_of(last['output'])}")
    elif "get_weather" in offered:
        words = (await context.get_input_text()).split() or ["Turin"]
        arguments = json.dumps({"city": words[-1].strip("?!. ")})
        output = stream.output_item_function_call("get_weather", f"call_{uuid.uuid4().hex}", arguments)
    else:
        output = stream.output_item_message("I can only tell the weather, and only if you offer me get_weather.")

    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in output:
        yield event
    yield stream.emit_completed()


def city_asked_for(call_id: str, conversation: list[dict[str, Any]]) -> str:
    """The argument of an earlier call. ValueError, which the client gets as a 400, if there was no such call."""
    for item in conversation:
        if item["type"] == "function_call" and item["call_id"] == call_id:
            return str(json.loads(item["arguments"])["city"])
    raise ValueError(f"No function was called with the call_id {call_id!r}.")


def text_of(output: str | list[dict[str, Any]]) -> str:
    """What a function gave: a text, or a list of parts."""
    return output if isinstance(output, str) else " ".join(part["text"] for part in output if "text" in part)
