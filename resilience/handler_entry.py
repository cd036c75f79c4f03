"""One entry into a handler: its events, whatever form it gives them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from typing import Any

from protocol import jsonio
from protocol.builders import BuilderOrderError
from protocol.errors import ApiError, HandlerRefused, ServerError, ServiceUnavailable
from protocol.events import InvalidEvent
from resilience.app import Handler
from resilience.context import ResponseContext
from storage.errors import StorageUnavailable


class HandlerExited(RuntimeError):
    """The handler wanted to end its process, which serves others as well."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


async def events_of(handler: Handler, context: ResponseContext, signal: asyncio.Event) -> AsyncGenerator[Any]:
    """Enter the handler with a request of its own and yield what it yields.

    Raises:
        InvalidEvent: What it returned holds no events.
        HandlerExited: It raised `SystemExit`: a command line's parser does, for one.
        BaseException: Whatever else it raises.
    """
    try:
        async with aclosing(_events_of(handler, context, signal)) as events:
            async for event in events:
                yield event
    except SystemExit as error:  # out of a task it would end the whole process
        raise HandlerExited from error


async def _events_of(handler: Handler, context: ResponseContext, signal: asyncio.Event) -> AsyncGenerator[Any]:
    result: Any = handler(jsonio.copy(context.request), context, signal)
    if asyncio.iscoroutine(result):
        result = await result
    if isinstance(result, AsyncIterable):
        iterator = aiter(result)
        try:
            async for event in iterator:
                yield event
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
    elif isinstance(result, Iterable) and not isinstance(result, str | bytes | dict):
        for event in result:
            yield event
            # A plain iterable never waits: let others have their turn.
            await asyncio.sleep(0)
    else:
        raise InvalidEvent(f"the handler returned {type(result).__name__}, which holds no events")


def answer_to(error: BaseException | None) -> ApiError:
    """What a client is told of a handler that raised, or ended without an outcome, before it said anything.

    A `ValueError` is the handler's way to refuse a request, its message is for the client; everything else is for
    the log only.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, StorageUnavailable):
        return ServiceUnavailable()
    if isinstance(error, ValueError) and not isinstance(error, BuilderOrderError | jsonio.NotJson):
        return HandlerRefused(str(error))
    return ServerError()
