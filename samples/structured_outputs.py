"""Data in place of prose: as JSON text in the shape that the client asked for, or as an item of its own.

Run it: `RESPONSES_AGENT=samples.structured_outputs:app make start`

A client that sends a JSON schema in `text.format` (the `openai` package does so in `responses.parse`) sees a message
whose text is JSON. One that does not sees a `structured_outputs` item whose `output` is the object itself. A schema
that requires what this handler does not know is refused with 400.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Find names and a date in the input."""
    found = appointment(await context.get_input_text())
    wanted = (request.get("text") or {}).get("format") or {}

    stream = ResponseEventStream(response_id=context.response_id, request=request)
    if wanted.get("type") == "json_schema":
        output = stream.output_item_message(json.dumps(fitted(found, wanted["schema"])))
    else:
        output = stream.output_item_structured_outputs(found)

    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in output:
        yield event
    yield stream.emit_completed()


def appointment(text: str) -> dict[str, Any]:
    """Who meets when: the words in capitals but the first one, and a date like 2027-03-14."""
    date = re.search(r"\b\d{4}-\d{2}-\d{2}\b", text)
    return {"names": re.findall(r"(?<!^)\b[A-Z]\w+", text), "date": date[0] if date else None}


def fitted(found: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What the schema has room for. ValueError, which the client gets as a 400, if it requires something else."""
    missing = set(schema.get("required") or ()) - set(found)
    if missing:
        raise ValueError(f"This agent knows {sorted(found)}, not {sorted(missing)}.")
    return {name: value for name, value in found.items() if name in (schema.get("properties") or found)}
