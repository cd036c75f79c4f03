"""A picture, with previews while it is drawn.

Run it: `RESPONSES_AGENT=samples.image_generation:app make start`

A client sees an `image_generation_call` item whose `result` is a PNG in base64. If it streams and asks for
`partial_images` in the tool, it sees that many coarser pictures before, which do not stay in the response.
"""

import asyncio
import base64
import struct
import zlib
from collections.abc import AsyncGenerator
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

PIXELS = 64

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Draw something in the colour of the input."""
    prompt = await context.get_input_text()
    tools: list[Any] = [tool for tool in request.get("tools") or [] if tool["type"] == "image_generation"]
    previews = (tools[0].get("partial_images") or 0) if tools else 0

    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    picture = stream.add_output_item_image_gen_call()
    yield picture.emit_added()
    yield picture.emit_in_progress()
    yield picture.emit_generating()
    for preview in range(previews):
        if cancellation_signal.is_set():
            yield stream.emit_incomplete()
            return
        # Drawing keeps a processor busy: beside the event loop, or every other response would wait.
        coarse = await asyncio.to_thread(draw, prompt, cells=4 << preview)
        yield picture.emit_partial_image(base64.b64encode(coarse).decode())
    whole = await asyncio.to_thread(draw, prompt, cells=PIXELS)
    yield picture.emit_completed()
    yield picture.emit_done(base64.b64encode(whole).decode())
    yield stream.emit_completed()


def draw(prompt: str, *, cells: int) -> bytes:
    """A PNG of so many cells in a row: a gradient in a colour that follows from the prompt."""
    red, green, blue = zlib.crc32(prompt.encode()).to_bytes(4)[:3]
    levels = [pixel * cells // PIXELS / cells for pixel in range(PIXELS)]
    lines = [
        b"\0" + b"".join(bytes((int(red * x), int(green * y), int(blue * (x + y) / 2))) for x in levels) for y in levels
    ]
    header = struct.pack(">IIBBBBB", PIXELS, PIXELS, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND")
    )


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG: length, kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
