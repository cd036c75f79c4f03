"""A whole response out of one text: what a handler returns when it has nothing more to say than that."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from protocol.aio import ResponseEventStream

type Text = Iterable[str] | AsyncIterable[str]
"""A str, whole, or chunks of text, each of which is sent on as it comes."""

type TextSource = Text | Callable[[], Text | Awaitable[Text]]
"""A text, or a function that gives one; the function may be asynchronous, or an async generator."""


class TextResponse:
    """The events of a response with one message: created, in_progress, the message, completed.

    A text that comes in chunks is streamed, one delta for each; a str is one delta. A source that raises ends the
    events with its exception, after `response.created`. On recovery the text is made again from its beginning (R9).

    Args:
        context: of the handler's call.
        request: the create request.
        text: the text or where it comes from. A plain iterable holds up the event loop while it makes a chunk.
        configure: called with the response before `response.created`; what it changes stands in the snapshots.

    Example:
        ```
        async def handler(request, context, cancellation_signal):
            return TextResponse(context, request, text="Hello")
        ```

    Raises:
        TypeError: while iterating, when the source gives something that is no text.
    """

    def __init__(
        self,
        context: "HasResponseId",
        request: Mapping[str, Any],
        *,
        text: TextSource,
        configure: Callable[[Any], None] | None = None,
    ) -> None:
        self._response_id = context.response_id
        self._request = request
        self._text = text
        self._configure = configure

    def __aiter__(self) -> AsyncGenerator[dict[str, Any]]:
        return self._events()

    async def _events(self) -> AsyncGenerator[dict[str, Any]]:
        stream = ResponseEventStream(response_id=self._response_id, request=self._request)
        if self._configure is not None:
            self._configure(stream.response)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        async with aclosing(stream.output_item_message(await _resolved(self._text))) as events:
            async for event in events:
                yield event
        yield stream.emit_completed()


class HasResponseId(Protocol):
    """The part of a response context that a text response needs."""

    @property
    def response_id(self) -> str:
        """The response's id."""


async def _resolved(source: TextSource) -> Text:
    if isinstance(source, Iterable | AsyncIterable):
        return source
    text = source()
    return await text if inspect.isawaitable(text) else text
