"""The event stream and builders for asynchronous handlers.

Same names, events and order as the synchronous ones. Only the generators differ: `output_item_*` of the stream, and
`text_content`, `refusal_content`, `summary_part`, `arguments`, `input` and `code` of its builders are iterated with
`async for`, and take text from an async iterable as well, which is closed when the handler stops before its end.
"""

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing

from protocol import builders
from protocol.builders import (
    BaseOutputItemBuilder,
    BuilderLifecycleState,
    BuilderOrderError,
    OutputItemBuilder,
    OutputItemFileSearchCallBuilder,
    OutputItemFunctionCallOutputBuilder,
    OutputItemImageGenCallBuilder,
    OutputItemMcpListToolsBuilder,
    OutputItemWebSearchCallBuilder,
    ReasoningSummaryPartBuilder,
    RefusalContentBuilder,
    TextContentBuilder,
)
from protocol.builders.script import AsyncEvents, AsyncText, Each, Script, chunks_of
from protocol.event_stream import EventStream

__all__ = [
    "BaseOutputItemBuilder",
    "BuilderLifecycleState",
    "BuilderOrderError",
    "OutputItemBuilder",
    "OutputItemCodeInterpreterCallBuilder",
    "OutputItemCustomToolCallBuilder",
    "OutputItemFileSearchCallBuilder",
    "OutputItemFunctionCallBuilder",
    "OutputItemFunctionCallOutputBuilder",
    "OutputItemImageGenCallBuilder",
    "OutputItemMcpCallBuilder",
    "OutputItemMcpListToolsBuilder",
    "OutputItemMessageBuilder",
    "OutputItemReasoningItemBuilder",
    "OutputItemWebSearchCallBuilder",
    "ReasoningSummaryPartBuilder",
    "RefusalContentBuilder",
    "ResponseEventStream",
    "TextContentBuilder",
]

OutputItemCodeInterpreterCallBuilder = builders.OutputItemCodeInterpreterCallBuilder[AsyncEvents, AsyncText]
OutputItemCustomToolCallBuilder = builders.OutputItemCustomToolCallBuilder[AsyncEvents, AsyncText]
OutputItemFunctionCallBuilder = builders.OutputItemFunctionCallBuilder[AsyncEvents, AsyncText]
OutputItemMcpCallBuilder = builders.OutputItemMcpCallBuilder[AsyncEvents, AsyncText]
OutputItemMessageBuilder = builders.OutputItemMessageBuilder[AsyncEvents, AsyncText]
OutputItemReasoningItemBuilder = builders.OutputItemReasoningItemBuilder[AsyncEvents, AsyncText]


class ResponseEventStream(EventStream[AsyncEvents, AsyncText]):
    """The stream for handlers that write `async for`. Texts are a str, an iterable of str or an async iterable of str.

    Example:
        ```
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        async for event in stream.output_item_message(tokens()):
            yield event
        yield stream.emit_completed()
        ```
    """

    def play(self, script: Script) -> AsyncEvents:
        """The events of a script, as an async iterator."""
        return _play(script)


async def _play(script: Script) -> AsyncEvents:
    for step in script:
        if isinstance(step, Each):
            async with aclosing(_chunks(step.source)) as chunks:
                async for chunk in chunks:
                    yield step.emit(chunk)
        else:
            yield step


async def _chunks(source: object) -> AsyncGenerator[str]:
    if not isinstance(source, AsyncIterable):
        for chunk in chunks_of(source):
            yield chunk
        return
    chunks = aiter(source)
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
