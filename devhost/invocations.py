"""What is running, and the time limit.

One table per process, guarded by a lock: the event loop enters and leaves, a watchdog thread reads. The watchdog is a
thread because the very handler that has to be stopped may be blocking the loop.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TICK_SECONDS = 0.5
IDLE_TICK_SECONDS = 0.02


@dataclass(frozen=True)
class Running:
    """A function that runs, since when (monotonic seconds)."""

    function: str
    since: float


class Invocations:
    """All invocations of this process, limited to `limit` seconds each (None: unlimited)."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._running: dict[int, Running] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._running)

    @contextlib.contextmanager
    def track(self, function: str) -> Iterator[None]:
        """Counts an invocation as running for as long as the block lasts."""
        number = next(self._numbers)
        with self._lock:
            self._running[number] = Running(function, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._running[number]

    async def idle(self) -> None:
        """Waits until nothing runs."""
        while self._running:  # noqa: ASYNC110 - the table is the watchdog's too, which an asyncio.Event is not made for
            await asyncio.sleep(IDLE_TICK_SECONDS)

    def overdue(self) -> Running | None:
        """The invocation that has run longest, if it is past the limit."""
        with self._lock:
            oldest = next(iter(self._running.values()), None)
        if oldest is None or self.limit is None or time.monotonic() - oldest.since < self.limit:
            return None
        return oldest

    def watch(self, expired: Callable[[Running], None]) -> None:
        """Starts the watchdog; `expired` is called once, on its thread."""
        if self.limit is None:
            return
        tick = min(TICK_SECONDS, self.limit / 10)

        def guard() -> None:
            while (running := self.overdue()) is None:
                time.sleep(tick)
            expired(running)

        threading.Thread(target=guard, name="function-timeout", daemon=True).start()
