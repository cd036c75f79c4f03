"""A handler for chains: it tells what it was asked, and keeps what V9 has to know of its entries."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from tests.support.invariants import Span

type Json = dict[str, Any]
type Act = Callable[["Turns", Json, ResponseContext, asyncio.Event], Awaitable[None]]


async def at_once(turns: "Turns", request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
    """Nothing before the answer."""


async def until_told(turns: "Turns", request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
    """Wait for the gate that the input names, or for the signal."""
    waits = [asyncio.ensure_future(turns.gates[request["input"]].wait()), asyncio.ensure_future(signal.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()


async def until_opened(turns: "Turns", request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
    """Wait for the gate that the input names, whatever the signal says."""
    await turns.gates[request["input"]].wait()


def lasting(seconds: float) -> Act:
    """Take that long."""

    async def act(turns: "Turns", request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        await asyncio.sleep(seconds)

    return act


class Turns:
    """Says ``answer to {input}``, after `act`, and cleans up for `cleanup` seconds behind its last event.

    Attributes:
        spans: each entry, by a counter of beginnings and ends.
        contexts: of the entries, in their order, by the input.
        signals: likewise.
        gates: to let turns go on, by the input.
    """

    def __init__(self, act: Act = at_once, *, cleanup: float = 0.0) -> None:
        self.act = act
        self.cleanup = cleanup
        self.contexts: defaultdict[str, list[ResponseContext]] = defaultdict(list)
        self.signals: defaultdict[str, list[asyncio.Event]] = defaultdict(list)
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.spans: list[Span] = []
        self._moments = itertools.count()

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        self.contexts[str(request["input"])].append(context)
        self.signals[str(request["input"])].append(signal)
        place = len(self.spans)
        began = float(next(self._moments))
        self.spans.append((context.response_id, began, float("inf")))
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        try:
            yield stream.emit_created()
            yield stream.emit_in_progress()
            await self.act(self, request, context, signal)
            async for event in stream.output_item_message(f"answer to {request['input']}"):
                yield event
            yield stream.emit_completed()
            if self.cleanup:
                await asyncio.sleep(self.cleanup)
        finally:
            self.spans[place] = (context.response_id, began, float(next(self._moments)))

    def entered(self, text: str) -> bool:
        """True once a turn with that input was entered."""
        return bool(self.contexts[text])

    @property
    def order(self) -> list[str]:
        """The ids of the responses, in the order of their entries."""
        return [span[0] for span in self.spans]
