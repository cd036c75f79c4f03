"""The handlers of the state machine, and who was in which of them when.

Each tells four words. `plain` says one after the other, `checkpoints` makes each a checkpoint, `quick` does not
wait; `steered` ends as soon as its signal is set, `lingering` too, but cleans up for some seconds after its end.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from storage.rows import ResponseRow
from tests.support.engines import Fleet, Host
from tests.support.handlers import Teller
from tests.support.invariants import Span

WORDS = 4
PAUSE = 1.5
"""Seconds between two words: most of what happens, happens to a response that is not over."""

LINGERING = 4.0
TEXTS = ["plain", "checkpoints", "quick", "steered", "lingering"]
CUT_SHORT = ("steered", "lingering")


@dataclass
class _Entry:
    response_id: str
    host: Host
    began: float
    ended: float | None = None


class Tellers:
    """The handler of a fleet: does what the request's input says."""

    def __init__(self) -> None:
        self.fleet: Fleet
        self.disturbed: set[Host] = set()
        """Hosts that may have lost what they ran, and not know it."""
        self._entries: list[_Entry] = []
        self._tellers = {
            "plain": Teller(WORDS, pause=PAUSE),
            "checkpoints": Teller(WORDS, pause=PAUSE, checkpoints=True),
            "quick": Teller(WORDS),
        }

    async def __call__(self, request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        host = self.fleet.entries[context.response_id][-1].host
        entry = _Entry(context.response_id, host, asyncio.get_running_loop().time())
        self._entries.append(entry)
        text = request["input"]
        telling = _steered(request, context, signal) if text in CUT_SHORT else self._tellers[text]
        try:
            async for event in telling if isinstance(telling, AsyncIterator) else telling(request, context, signal):
                yield event
            if text == "lingering":
                await asyncio.sleep(LINGERING)
        finally:
            entry.ended = asyncio.get_running_loop().time()

    def spans(self, rows: Mapping[str, ResponseRow]) -> list[Span]:
        """The entries that count for the order of turns (V9).

        Who lost a response without knowing it may still be in its handler, or even enter it, when the turns behind
        it run: storage refuses whatever comes of it.
        """
        counted: list[Span] = []
        first: dict[str, _Entry] = {}
        newest = 0
        for entry in self._entries:
            row = rows.get(entry.response_id)
            if row is None:
                continue
            begun = entry.response_id in first
            first.setdefault(entry.response_id, entry)
            suspect = entry.host in self.disturbed
            if suspect and row.turn < newest and (begun or row.status in ("cancelled", "failed")):
                continue
            newest = max(newest, row.turn)
            counted.append((entry.response_id, entry.began, None if suspect else entry.ended))
        return counted


async def _steered(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    async for event in stream.output_item_message(_words(signal)):
        yield event
    yield stream.emit_completed()


async def _words(signal: asyncio.Event) -> AsyncIterator[str]:
    for number in range(WORDS):
        try:
            async with asyncio.timeout(PAUSE):
                await signal.wait()
        except TimeoutError:
            yield f"e1n{number} "
        else:
            return
