"""An event loop whose clock jumps: where nothing is left to do now, it is at once the time of the next timer.

So tests run with the intervals of production, exactly, and take no time. It serves tests whose only input is memory: a
reply of a real socket or thread would be waited for without the clock moving. A test that nothing can ever wake fails
with `NothingWillHappen` instead of hanging.

A test module chooses it with ``EVENT_LOOP = VirtualTimeLoop``; a conftest has to import
`pytest_asyncio_loop_factories`.
"""

import asyncio
import selectors
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity

START = 1_000.0
EPOCH = 1_700_000_000.0
"""What the loop's zero is on the calendar."""

LONGEST = 200_000.0
"""Seconds after which a test that goes on is one that nothing but its own pollers keeps awake."""

REAL_SECONDS_WITHOUT_TIMERS = 2.0
"""With no timer at all only another thread can wake the loop; so long it may take."""


class NothingWillHappen(RuntimeError):
    """The test waits for something that no task, timer or thread will do."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class _JumpingSelector(selectors.DefaultSelector):
    loop: "VirtualTimeLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self.loop.jump(timeout)
            if self.loop.time() > LONGEST:
                raise NothingWillHappen
            return ready
        ready = super().select(REAL_SECONDS_WITHOUT_TIMERS)
        if not ready:
            raise NothingWillHappen
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time` begins at `START` and only ever jumps."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        selector.loop = self
        self._virtual = START
        super().__init__(selector)
        # Retries count their patience by the same clock.
        self._tenacity_time: Any = vars(tenacity)["time"]
        vars(tenacity)["time"] = SimpleNamespace(monotonic=self.time)

    def time(self) -> float:
        return self._virtual

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._virtual += seconds

    def close(self) -> None:
        if not self.is_closed():
            vars(tenacity)["time"] = self._tenacity_time
        super().close()


class LoopClock:
    """The storage clock that goes with the running loop."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return EPOCH + asyncio.get_running_loop().time()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the test's module chose; the real one without a choice."""
    return {"loop": getattr(getattr(item, "module", None), "EVENT_LOOP", asyncio.new_event_loop)}
