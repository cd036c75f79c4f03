"""What keeps the watch message of a busy worker hidden, as long as its process lives.

The message is pushed forward every ``watch_push_interval`` by a thread of its own, with the driver's blocking client:
a handler that blocks the event loop does not look dead.

Answers to a push, and what follows:

- pushed: it has a new receipt; the next push comes after the interval.
- none (``StorageUnavailable``): it may have been carried out, and the new receipt be lost. It is pushed again at once,
  then after each interval.
- refused, after an answer: somebody received the message. `Lost.RECEIVED`; the pushes end.
- refused, after no answer: the last receipt is spent, most likely by the push whose answer was lost; nobody can push
  this message any more. `Lost.SUPERSEDED`; the pushes end, and a new message has to take its place.
"""

import asyncio
import logging
import threading
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


class WatchPusher(Protocol):
    """Keeps one watch message hidden until stopped."""

    def start(self) -> None:
        """Begin to push."""

    async def stop(self) -> QueueReceipt:
        """End; the receipt is then the newest that is known."""


class Pushes:
    """The pushes of one message, one after the other, whoever waits in between."""

    def __init__(
        self, push: Push, receipt: QueueReceipt, settings: EngineSettings, lost: Callable[[Lost], None]
    ) -> None:
        self.receipt = receipt
        self._push = push
        self._settings = settings
        self._lost = lost
        self._answered = True

    def once(self) -> float | None:
        """Push; seconds until the next time, None if there is none."""
        try:
            self.receipt = self._push(self.receipt, self._settings.watch_visibility)
        except (NotFound, PreconditionFailed, StorageRejected):
            self._lost(Lost.RECEIVED if self._answered else Lost.SUPERSEDED)
            return None
        except StorageError as error:
            _log.warning("watch message not pushed: %s", error)
            first, self._answered = self._answered, False
            return 0.0 if first else self._settings.watch_push_interval
        self._answered = True
        return self._settings.watch_push_interval


class ThreadPusher:
    """Pushes from a thread, with the driver's blocking client: a blocked event loop does not stop it."""

    def __init__(
        self, push: Push, receipt: QueueReceipt, settings: EngineSettings, lost: Callable[[Lost], None]
    ) -> None:
        self._pushes = Pushes(push, receipt, settings, lost)
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


PusherFactory = Callable[[Push, QueueReceipt, EngineSettings, Callable[[Lost], None]], WatchPusher]
