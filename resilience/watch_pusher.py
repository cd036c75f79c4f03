"""What keeps the watch message of a busy worker hidden, as long as its process lives.

The message is pushed forward every ``watch_push_interval`` by a thread of its own, with the driver's blocking client:
a handler that blocks the event loop does not look dead.

Answers to a push, and what follows:

- pushed: it has a new receipt; the next push comes after the interval.
- none (``StorageUnavailable``): it may have been carried out, and the new receipt be lost. It is pushed again at once,
  then after each interval.
- refused, after an answer: somebody received the message. `Lost.RECEIVED`; the pushes end.
- refused, after no answer, or when the last answer is so old that the message lay visible: nobody can push this
  message any more. Its receipt was spent by the push whose answer was lost, or by somebody who received it and, if it
  had lain there for long, did not judge by it (`adoption`). `Lost.SUPERSEDED`; a new message has to take its place:
  if its worker was declared dead all the same, its ledger says so. Until the event loop has seen to that, and stops
  this pusher, a pulse takes the place of each push: the old message will be received while the loop is blocked, and
  its receiver has to learn that the process lives. Not beyond a pulse without an answer: a process that storage hears
  and does not answer is cut off, and others must find its runs.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from resilience.options import EngineSettings
from storage.driver import QueueReceipt
from storage.errors import NotFound, PreconditionFailed, StorageError, StorageRejected

_log = logging.getLogger("resilience.worker")


class Lost(Enum):
    """Why a message is pushed no longer."""

    RECEIVED = auto()
    SUPERSEDED = auto()


type Push = Callable[[QueueReceipt, float], QueueReceipt]
type Pulse = Callable[[], None]


class WatchPusher(Protocol):
    """Keeps one watch message hidden until stopped."""

    def start(self) -> None:
        """Begin to push."""

    async def stop(self) -> QueueReceipt:
        """End; the receipt is then the newest that is known."""


class Pushes:
    """The pushes of one message, one after the other, whoever waits in between."""

    def __init__(
        self,
        push: Push,
        pulse: Pulse,
        receipt: QueueReceipt,
        settings: EngineSettings,
        lost: Callable[[Lost], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.receipt = receipt
        self._push = push
        self._pulse = pulse
        self._settings = settings
        self._lost = lost
        self._clock = clock
        self._answered = True
        self._answered_at = clock()
        self._superseded = False

    def once(self) -> float | None:
        """Push, or give a pulse; seconds until the next time, None if there is none."""
        return self._pulse_once() if self._superseded else self._push_once()

    def _push_once(self) -> float | None:
        try:
            self.receipt = self._push(self.receipt, self._settings.watch_visibility)
        except (NotFound, PreconditionFailed, StorageRejected):
            self._superseded = not self._answered or self._lay_visible()
            self._lost(Lost.SUPERSEDED if self._superseded else Lost.RECEIVED)
            return 0.0 if self._superseded else None
        except StorageError as error:
            _log.warning("watch message not pushed: %s", error)
            first, self._answered = self._answered, False
            return 0.0 if first else self._settings.watch_push_interval
        self._answered = True
        self._answered_at = self._clock()
        return self._settings.watch_push_interval

    def _lay_visible(self) -> bool:
        """True if the last push that was answered hid the message no longer, as for a process that was stopped."""
        return self._clock() - self._answered_at > self._settings.watch_visibility

    def _pulse_once(self) -> float | None:
        try:
            self._pulse()
        except (NotFound, PreconditionFailed, StorageRejected):
            return None  # declared dead, or as good as dead
        except StorageError as error:
            _log.warning("no pulse given: %s", error)
            return None
        return self._settings.watch_push_interval


class ThreadPusher:
    """Pushes from a thread, with the driver's blocking client: a blocked event loop does not stop it."""

    def __init__(
        self, push: Push, pulse: Pulse, receipt: QueueReceipt, settings: EngineSettings, lost: Callable[[Lost], None]
    ) -> None:
        self._pushes = Pushes(push, pulse, receipt, settings, lost)
        self._interval = settings.watch_push_interval
        self._stopped = threading.Event()
        self._ended = asyncio.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(loop,), name="watch-pusher", daemon=True).start()

    async def stop(self) -> QueueReceipt:
        self._stopped.set()
        # Not by a thread of the executor that joins this one: handlers may occupy all of them.
        await self._ended.wait()
        return self._pushes.receipt

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            pause: float | None = self._interval
            while pause is not None and not self._stopped.wait(pause):
                pause = self._pushes.once()
        finally:
            try:
                loop.call_soon_threadsafe(self._ended.set)
            except RuntimeError:  # the loop is closed: nobody waits
                pass


PusherFactory = Callable[[Push, Pulse, QueueReceipt, EngineSettings, Callable[[Lost], None]], WatchPusher]
