"""Dying at a named point, so that a test can kill a process at exactly one instruction.

Setting: ``CRASH_AT=POINT:N`` ends the process, as SIGKILL does, when it passes that point for the N-th time. Points:

- ``OPERATION:before`` and ``OPERATION:after`` for each storage operation (`storage.seam.Operation`): nothing of the
  call has reached storage, or it was carried out and nobody has seen the reply. A call that storage refused has no
  ``after``: the next one that was carried out is it;
- ``event:before``, ``event:after``: the handler's ``yield`` of an event, before the engine sees it and when the engine
  asks for the next one; ``checkpoint:before``, ``checkpoint:after`` likewise;
- ``handler.enter``, ``handler.exit``: the handler is about to be called; it has said all it had to say.

Never set in production; without it there is no cost.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import product
from typing import Any, NoReturn

from protocol.event_stream import CHECKPOINT
from resilience.app import Handler, ResponsesApp
from resilience.context import ResponseContext
from resilience.handler_entry import events_of
from storage.seam import Fault, Operation, Seam

SETTING = "CRASH_AT"

MOMENTS = ("before", "after")
STORAGE_POINTS = tuple(f"{operation}:{moment}" for operation, moment in product(Operation, MOMENTS))
HANDLER_POINTS = (
    "handler.enter",
    *(f"{step}:{moment}" for step, moment in product(("event", "checkpoint"), MOMENTS)),
    "handler.exit",
)
POINTS = STORAGE_POINTS + HANDLER_POINTS


class UnknownCrashPoint(ValueError):
    """The setting does not name a point and how often it is passed."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{SETTING}={text!r} is not POINT:N, with one of the points of resilience.crash_points")
        self.text = text


@dataclass(frozen=True, slots=True)
class CrashAt:
    """A point, and at which passing of it (from 1) the process dies."""

    point: str
    passing: int

    @classmethod
    def parse(cls, text: str) -> "CrashAt":
        """Read the setting.

        Raises:
            UnknownCrashPoint: It names no point, or no passing.
        """
        point, _, passing = text.rpartition(":")
        if point not in POINTS or not passing.isdecimal() or int(passing) < 1:
            raise UnknownCrashPoint(text)
        return cls(point, int(passing))

    def install(self, seam: Seam, app: ResponsesApp) -> ResponsesApp:
        """Arm the point; the app to serve in place of `app`."""
        if self.point in HANDLER_POINTS:
            return app.with_handler(_watched(app.handler, self))
        operation, _, moment = self.point.rpartition(":")
        # A fault that never gets as far as failing: this way the call of the pusher's thread has points too.
        kind: Any = moment
        seam.inject(Fault(operation=operation, kind=kind, error=die, after=self.passing - 1))
        return app


def die() -> NoReturn:
    """End this process as the platform does: no clean-up, not one further instruction."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable: nobody survives SIGKILL")


def _watched(handler: Handler, crash: CrashAt) -> Handler:
    """The handler, with every step through `crash`."""
    passings: Counter[str] = Counter()

    def passed(point: str) -> None:
        passings[point] += 1
        if point == crash.point and passings[point] == crash.passing:
            die()

    async def watched(request: Any, context: ResponseContext, cancellation_signal: asyncio.Event) -> AsyncIterator[Any]:
        passed("handler.enter")
        async with aclosing(events_of(handler, context, cancellation_signal)) as events:
            async for event in events:
                step = "checkpoint" if isinstance(event, dict) and event.get("type") == CHECKPOINT else "event"
                passed(f"{step}:before")
                yield event
                passed(f"{step}:after")
        passed("handler.exit")

    return watched
