"""Citations: annotations on a message's text.

Run it: `RESPONSES_AGENT=samples.annotations:app make start`

A client sees a text and, on its content part, one `url_citation` for every source: address, title and the characters
of the text that it stands for. A client that streams sees each as `response.output_text.annotation.added`.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

SOURCES = {
    "The Po rises on Monviso.": "https://example.com/rivers/po",
    "It flows through Turin.": "https://example.com/cities/turin",
    "It ends in the Adriatic Sea.": "https://example.com/seas/adriatic",
}

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Tell of a river, and from where it is known."""
    text = " ".join(SOURCES)
    citations = [citation(text, sentence, url) for sentence, url in SOURCES.items()]

    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_message(text, annotations=citations):
        yield event
    yield stream.emit_completed()


def citation(text: str, sentence: str, url: str) -> dict[str, Any]:
    """The source of a sentence in the text; it ends before the character at `end_index`."""
    start = text.index(sentence)
    return {
        "type": "url_citation",
        "url": url,
        "title": url.rpartition("/")[2].capitalize(),
        "start_index": start,
        "end_index": start + len(sentence),
    }
