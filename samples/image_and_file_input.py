"""Images and files in the input: where to find them, and how to read those that came along.

Run it: `RESPONSES_AGENT=samples.image_and_file_input:app make start`

A client that sends `input_image` and `input_file` parts sees one line for each: its media type and size if it came as
a `data:` URL, its address if it has to be fetched. A `data:` URL that is broken is refused with 400.
"""

import asyncio
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponsesApp, ResponsesServerOptions, TextResponse, data_url

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> TextResponse:
    """Say what came with the input."""
    messages = [item for item in await context.get_input_items() if item["type"] == "message"]
    parts = [part for message in messages for part in message["content"]]
    lines = [described(part) for part in parts if part["type"] in ("input_image", "input_file")]
    return TextResponse(context, request, text="\n".join(lines) or "Nothing came with the text.")


def described(part: dict[str, Any]) -> str:
    """One line about an image or a file. ValueError, which the client gets as a 400, if it cannot be read."""
    what = part.get("filename") or ("An image" if part["type"] == "input_image" else "A file")
    address = part.get("image_url") or part.get("file_url")
    source = part.get("file_data") or address
    if source and data_url.is_data_url(source):
        content = data_url.decode_bytes(source)
        return f"{what}: {data_url.get_media_type(source) or 'text/plain'}, {len(content)} bytes"
    if address:
        return f"{what} at {address}"
    if file_id := part.get("file_id"):
        return f"{what} with the id {file_id}"
    raise ValueError(f"{what} came without a data URL, an address or an id.")
