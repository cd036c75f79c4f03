"""Handlers for tests in one process. A delta names the entry that said it: ``e2n5`` is the second entry's."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext

type Json = dict[str, Any]

_TOLD = re.compile(r"e(\d+)n\d+ ")
_WORD = re.compile(r"e\d+n\d+")


class Teller:
    """Tells a message of `count` deltas, `pause` seconds apart, then completes.

    Naive unless `checkpoints`: then each delta is a message of its own, followed by a checkpoint, and a recovered entry
    goes on behind what is persisted. With `hold` it waits for that event before the delta of that number, in the
    entries that `held` names (all of them by default). With `ballast` the first message has so many characters more:
    every snapshot from there on is too large for its row.
    """

    def __init__(
        self,
        count: int = 3,
        pause: float = 0.0,
        *,
        checkpoints: bool = False,
        hold: tuple[int, asyncio.Event] | None = None,
        held: Callable[[int], bool] = lambda entry: True,
        internal: str = "",
        ballast: int = 0,
    ) -> None:
        self.count = count
        self.pause = pause
        self.checkpoints = checkpoints
        self.hold = hold
        self.held = held
        self.internal = internal
        self.ballast = ballast
        self.entries: Counter[str] = Counter()
        self.contexts: list[ResponseContext] = []

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        self.entries[context.response_id] += 1
        self.contexts.append(context)
        entry = self.entries[context.response_id]
        stream = self._stream(request, context)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        if self.checkpoints:
            async for event in self._messages(stream, entry, context):
                yield event
        else:
            async for event in stream.output_item_message(self._words(entry)):
                yield event
        yield stream.emit_completed(usage={"input_tokens": 1, "output_tokens": self.count})

    def _stream(self, request: Json, context: ResponseContext) -> ResponseEventStream:
        if self.checkpoints and context.is_recovery:
            return ResponseEventStream(response=context.persisted_response)
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        if self.internal:
            stream.internal_metadata["canary"] = self.internal
        return stream

    async def _messages(self, stream: ResponseEventStream, entry: int, context: ResponseContext) -> AsyncIterator[Any]:
        done = len((context.persisted_response or {}).get("output") or []) if context.is_recovery else 0
        for number in range(done, self.count):
            await self._wait(entry, number)
            async for event in stream.output_item_message(self._message(entry, number)):
                yield event
            yield stream.checkpoint()

    async def _message(self, entry: int, number: int) -> AsyncIterator[str]:
        yield f"e{entry}n{number} "
        if self.ballast and number == 0:
            yield "." * self.ballast + " "

    async def _words(self, entry: int) -> AsyncIterator[str]:
        for number in range(self.count):
            await self._wait(entry, number)
            yield f"e{entry}n{number} "

    async def _wait(self, entry: int, number: int) -> None:
        if self.pause:
            await asyncio.sleep(self.pause)
        if self.hold is not None and self.hold[0] == number and self.held(entry):
            await self.hold[1].wait()


def entry_of(event: Json) -> int | None:
    """Which entry said this delta."""
    found = _TOLD.fullmatch(event["delta"]) if event["type"] == "response.output_text.delta" else None
    return int(found[1]) if found else None


def text_of(response: Json) -> str:
    """All output text of a response."""
    return "".join(part["text"] for item in response["output"] for part in item.get("content") or ())


def words_of(response: Json) -> list[str]:
    """What a `Teller` told, without its ballast."""
    return _WORD.findall(text_of(response))
