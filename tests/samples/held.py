"""Samples that stop where a request says, so that a test can kill their worker exactly there.

Serves the samples that `HELD_SAMPLES` names (modules, with commas); a request says by `model` which of them it is for.
Chains are steerable, and the pauses by which samples look thoughtful are short.

A request's metadata `hold` stops its first entry at a point: `event:3:before` and `event:3:after` are the third
`yield` of an event, before the engine has it and when it asks for the next one; `checkpoint:…` likewise; `node:2` is in
the middle of the second node of a graph; `steered` is its beginning, until another turn waits behind it. Who has
arrived says so in the file `HELD_JOURNAL`, one JSON line each (`staying`), as does every entry (`entered`) and every
call of a tool (`called`).
"""

import asyncio
import importlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Never

from protocol.event_stream import CHECKPOINT
from resilience import ResponseContext, ResponsesApp, ResponsesServerOptions
from resilience.handler_entry import events_of

SECONDS = 0.01

app = ResponsesApp(ResponsesServerOptions(resilient_background=True, steerable_conversations=True))
_modules: dict[str, Any] = {name: importlib.import_module(name) for name in os.environ["HELD_SAMPLES"].split(",")}
_journal = Path(os.environ["HELD_JOURNAL"])
_current: ContextVar["Entry"] = ContextVar("entry")


class Entry:
    """One entry of a sample's handler."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._passings: Counter[str] = Counter()
        self.hold = None if context.is_recovery else (context.request.get("metadata") or {}).get("hold")
        self.note("entered", is_recovery=context.is_recovery, is_steered_turn=context.is_steered_turn)

    async def passes(self, step: str, moment: str = "") -> None:
        """Stay here for ever, if this is where the request says."""
        if moment != "after":
            self._passings[step] += 1
        if self.hold == f"{step}:{self._passings[step]}{moment and ':'}{moment}":
            self.note("staying", at=self.hold)
            await _for_ever()

    def note(self, what: str, **more: Any) -> None:
        """Write a line into the journal."""
        metadata = self._context.request.get("metadata") or {}
        line = {"what": what, "response_id": self._context.response_id, "metadata": metadata, "pid": os.getpid()}
        with _journal.open("a") as journal:
            journal.write(json.dumps({**line, **more}) + "\n")


async def _for_ever() -> Never:
    while True:
        await asyncio.Event().wait()


@app.response_handler
async def handler(request: Any, context: ResponseContext, cancellation_signal: asyncio.Event) -> AsyncIterator[Any]:
    """The handler of the sample that is asked for, with every step past `Entry.passes`."""
    entry = Entry(context)
    _current.set(entry)
    if entry.hold == "steered":
        await cancellation_signal.wait()
    async with aclosing(events_of(_modules[request["model"]].app.handler, context, cancellation_signal)) as events:
        async for event in events:
            step = "checkpoint" if event["type"] == CHECKPOINT else "event"
            await entry.passes(step, "before")
            yield event
            await entry.passes(step, "after")


async def _think() -> None:
    """In place of a node's work."""
    await _current.get().passes("node")


class _Watched(dict[str, int]):
    """What a tool reads."""

    def __getitem__(self, key: str) -> int:
        _current.get().note("called", key=key)
        return super().__getitem__(key)


def _adapt() -> None:
    for name, module in _modules.items():
        if hasattr(module, "SECONDS_PER_WORD"):
            module.SECONDS_PER_WORD = SECONDS
        if name.endswith("langgraph_agent"):
            module.think = _think
        if name.endswith("agents_session"):
            module.TEMPERATURES = _Watched(module.TEMPERATURES)


_adapt()
