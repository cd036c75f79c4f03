"""The watch message of a ledger: what leads others there when its process is gone.

*Message* (queue ``responses-watch``): hidden for ``watch_visibility`` seconds and pushed forward every
``watch_push_interval`` by a thread of its own (`watch_pusher`), so that a handler that blocks the event loop does not
look dead. Who receives it knows that the pushes stopped. Each push also writes into the message until when the one
before had hidden it, by the service's clock: so its receiver sees whether it was received as soon as it could be. If it
was not, nobody was there or storage was away for everybody, and that there were no pushes proves nothing. Then it is
sent again once, which gives its worker, if there is one, the time to send another (`adoption`).

*Epoch*: which message counts. Each message of a ledger has one of its own, from 0 on; the row `worker` has that of the
message that counts, and one of a lower epoch is superseded: who receives it does nothing (`adoption`). A message that
cannot be pushed any more although the process lives (this process received it itself, somebody received it when storage
had been away, or the reply to a push was lost, and the new receipt with it) is replaced before it is believed: first
the message n+1 is sent, and pushed from then on, then a transaction takes the epoch n+1 to the ledger. A death between
the two is found by either message, one after them by the second. If somebody received the message n and marked the
ledger before that transaction, it is refused, and this process was declared dead as ever. An epoch is never sent twice:
a send without an answer may have left a message that nobody pushes, and the next one supersedes it. A resting ledger
has no message; the transaction that takes it up has the epoch of the one that is sent next, so that one that could not
be taken back counts no more.

*Pulse* (a row of the ledger that is no part of the fence): given by the pusher's thread when the event loop has made
no transaction for longer than a ``heartbeat_interval``, so that the sweep does not take a blocked worker for a dead
one either; and until the ledger was told which message took the place of one that cannot be pushed, so that the
receiver of that one does not (`adoption`): in place of the pushes until there is another message, then beside them. It
costs nothing while the loop runs. A loop that was silent for ``handover_after`` will not come
back: then the thread stops.

Concurrency: belongs to the event loop; but for the epochs and the times of the last sign of life, which the pusher's
thread reads and, one of them, writes: a number is read and written as a whole. A message is replaced by a task of its
own, so that a slow transaction does not hold up the sending; it acts only while the message that it replaces is the one
that counts.
"""

import asyncio
import logging
from collections.abc import Callable

from resilience.options import EngineSettings
from resilience.tasks import in_background
from resilience.watch_pusher import Lost, PusherFactory, WatchPusher
from storage.connection import Storage
from storage.driver import QueueReceipt
from storage.errors import PreconditionFailed, StorageError, StorageUnavailable
from storage.queues import WatchMessage

_log = logging.getLogger("resilience.worker")

_SEND_RETRY = 0.5
"""Seconds until a message that could not be sent in place of another is sent again."""

_SENDINGS = 3
"""Messages that are sent at most until the process is watched again; each without an answer may be there."""

_LATE_HEARTBEAT = 1.25
"""Heartbeat intervals without a transaction after which the pusher's thread gives a pulse in its place."""


class Watch:
    """The watch message of one worker id, or none while it rests.

    `told`: called when the ledger has to be told of a new epoch. `lost`: called when somebody received the message, so
    that this worker was declared dead, or will be.
    """

    def __init__(
        self,
        storage: Storage,
        settings: EngineSettings,
        pusher: PusherFactory,
        worker_id: str,
        *,
        told: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._new_pusher = pusher
        self._worker_id = worker_id
        self._told = told
        self._lost = lost
        self._pusher: WatchPusher | None = None
        self.epoch = 0
        """That of the message that counts; the ledger may have to be told of it."""
        self._newest_epoch = 0  # that was ever sent, or tried to be
        self._told_epoch = 0  # the ledger's
        self._received_own = -1  # the highest epoch of those
        self._heard_at = self._awake_at = asyncio.get_running_loop().time()

    @property
    def rests(self) -> bool:
        """True while nobody has to watch."""
        return self._pusher is None

    def begin_epoch(self) -> None:
        """The message that is sent next is the one that counts, from now on."""
        self.epoch = self._next_epoch()

    def _next_epoch(self) -> int:
        self._newest_epoch += 1
        return self._newest_epoch

    async def begin(self) -> None:
        """Send the message of this epoch, or after no answer of a later one, and push it from then on.

        Raises:
            StorageError: Nobody watches.
        """
        for left in reversed(range(_SENDINGS)):
            try:
                receipt = await self._send(self.epoch)
            except StorageUnavailable:
                if not left:
                    raise
                self.begin_epoch()
                await asyncio.sleep(_SEND_RETRY)
            else:
                self._push_forward(receipt, self.epoch)
                return

    async def _send(self, epoch: int) -> QueueReceipt:
        return await self._storage.watch.send(self._worker_id, delay=self._settings.watch_visibility, epoch=epoch)

    async def end(self) -> QueueReceipt | None:
        """End the pushes; the receipt by which the message can be taken back, if there is one."""
        pusher, self._pusher = self._pusher, None
        return await pusher.stop() if pusher is not None else None

    def give_up(self) -> None:
        """End the pushes, without waiting for that: the message, if there is one, leads others to the ledger."""
        pusher, self._pusher = self._pusher, None
        if pusher is not None:
            in_background(pusher.stop())

    def own_message_received(self, epoch: int | None) -> None:
        """This process received a message of its own.

        If it is the one that is pushed, or will be as soon as its sending is answered, the next push is refused, and a
        new message takes its place. One of another epoch, or of none, is not.
        """
        self._received_own = max(self._received_own, -1 if epoch is None else epoch)

    # -- signs of life ----------------------------------------------------------------------------------------------

    def awake(self) -> None:
        """The event loop came by."""
        self._awake_at = asyncio.get_running_loop().time()

    def heard(self, epoch: int) -> None:
        """A transaction told others that the process lives, and which message counts."""
        self._told_epoch = epoch
        self._heard_at = asyncio.get_running_loop().time()

    def _give_pulse(self, clock: Callable[[], float]) -> None:
        """In the pusher's thread.

        Raises:
            PreconditionFailed: The event loop will not come back.
        """
        self._check_loop(clock)
        self._storage.ledger.pulse_blocking(self._worker_id)
        self._heard_at = clock()

    def _check_loop(self, clock: Callable[[], float]) -> None:
        if clock() - self._awake_at > self._settings.handover_after:
            raise PreconditionFailed("The event loop does not run any more.")

    def _stand_in(self, clock: Callable[[], float]) -> None:
        """A pulse, if the event loop has not said for too long that the process lives, or which message counts now."""
        late = clock() - self._heard_at >= _LATE_HEARTBEAT * self._settings.heartbeat_interval
        if not late and self._told_epoch == self.epoch:
            return
        try:
            self._give_pulse(clock)
        except Exception as error:  # whatever it was: the pushes go on
            _log.warning("no pulse given for worker %s: %s", self._worker_id, error)

    # -- the pushes -------------------------------------------------------------------------------------------------

    def _push_forward(self, receipt: QueueReceipt, epoch: int) -> None:
        loop = asyncio.get_running_loop()
        message = WatchMessage(self._worker_id, epoch)

        def push(newest: QueueReceipt, visibility: float) -> QueueReceipt:
            self._check_loop(loop.time)
            pushed = self._storage.watch.push_blocking(message, newest, visibility)
            self._stand_in(loop.time)
            return pushed

        def pulse() -> None:
            self._give_pulse(loop.time)

        def lost(how: Lost) -> None:
            try:
                loop.call_soon_threadsafe(self._message_lost, epoch, how)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return

        self.give_up()  # what stood in for the message that this one replaces
        self.epoch = epoch
        self._pusher = self._new_pusher(push, pulse, receipt, self._settings, lost)
        self._pusher.start()

    def _message_lost(self, epoch: int, how: Lost) -> None:
        if not self._counts(epoch):
            return
        if how is Lost.SUPERSEDED or self._received_own == epoch:
            in_background(self._replace(epoch))
        else:
            self._lost()

    def _counts(self, epoch: int) -> bool:
        """False where that message is no longer the one that counts, or none has to be."""
        return self.epoch == epoch and not self.rests

    async def _replace(self, epoch: int) -> None:
        """Send a message in the place of the one that nobody can push; the ledger is told of it afterwards."""
        while self._counts(epoch):
            replacement = self._next_epoch()
            try:
                receipt = await self._send(replacement)
            except StorageUnavailable as error:
                _log.warning("worker %s is not watched at this moment: %s", self._worker_id, error)
                await asyncio.sleep(_SEND_RETRY)
                continue
            except StorageError:
                self._lost()
                return
            if self._counts(epoch):
                _log.info("the watch message of worker %s was replaced", self._worker_id)
                self._push_forward(receipt, replacement)
                self._told()
            return
