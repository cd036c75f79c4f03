"""What keeps the watch message of a busy worker hidden, as long as its process lives.

The message is pushed forward every ``watch_push_interval`` by a thread of its own, with the driver's blocking client:
a handler that blocks the event loop does not look dead. A push that is refused ends it: somebody received the message.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from resilience.options import EngineSettings
from storage.driver import QueueReceipt
from storage.errors import NotFound, PreconditionFailed, StorageError, StorageRejected

_log = logging.getLogger("resilience.worker")


class WatchPusher(Protocol):
    """Keeps one watch message hidden until stopped."""

    def start(self) -> None:
        """Begin to push."""

    async def stop(self) -> QueueReceipt:
        """End; the receipt is then the newest."""


class ThreadPusher:
    """Pushes from a thread, with the driver's blocking client: a blocked event loop does not stop it."""

    def __init__(
        self,
        push: Callable[[QueueReceipt, float], QueueReceipt],
        receipt: QueueReceipt,
        settings: EngineSettings,
        refused: Callable[[], None],
    ) -> None:
        self._push = push
        self._receipt = receipt
        self._settings = settings
        self._refused = refused
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch-pusher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> QueueReceipt:
        self._stopped.set()
        await asyncio.to_thread(self._thread.join)
        return self._receipt

    def _run(self) -> None:
        while not self._stopped.wait(self._settings.watch_push_interval):
            try:
                self._receipt = self._push(self._receipt, self._settings.watch_visibility)
            except (NotFound, PreconditionFailed, StorageRejected):
                self._refused()
                return
            except StorageError as error:
                _log.warning("watch message not pushed: %s", error)


PusherFactory = Callable[
    [Callable[[QueueReceipt, float], QueueReceipt], QueueReceipt, EngineSettings, Callable[[], None]], WatchPusher
]
