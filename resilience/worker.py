"""This process in the eyes of the others: one ledger and one watch message, whatever the number of runs.

*Ledger* (table ``workers``, partition = worker id): a row ``worker`` whose etag is the fence, and a row per open
entry that says what to do if this process dies. Openings and endings of all runs are group-committed: one
transaction that also merges the ``worker`` row under its etag. Once another process has marked that row dead, every
later transaction of this one is refused.

*Watch message*: hidden for as long as this process lives; who receives it looks after the ledger (`watch`).

Concurrency: everything but the pushes runs on one event loop; one committer task owns the ledger's etag. That a new
watch message counts, the committer learns from its epoch, which the ledger has to be told.

A process that falls idle takes its watch message back after ``idle_close_after`` seconds: nothing is open any more.
Its ledger rests, and is taken up again by the next run; after ``idle_end_after`` seconds it is ended. A process that
dies in between is found by the sweep, which finds nothing but finished runs.

A worker id ends with its ledger, or when somebody declared it dead. After that the process takes a new id and moves
nothing over: the writes of runs claimed under the old id are refused one by one.

An entry of a response is forgotten only after the response was noted in the expiry index, by which retention goes:
`close` hands it to the committer, which notes many at once (every `_NOTE_INTERVAL`, and when the worker falls idle)
and deletes them from the ledger with its next transaction.

Outcomes of a ledger transaction, and what follows:

- committed: the openings are durable; their callers go on.
- refused (the row is marked, changed or missing): declared dead; the openings are made again in the ledger of a new
  id.
- unknown (no answer): the openings fail. Before the next transaction the row is read back: its revision tells
  committed from not committed, and what was opened for nobody is closed.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resilience.incarnation import Doubt, Incarnation, new_worker_id, responses_in
from resilience.log_context import start_anew
from resilience.options import EngineSettings
from resilience.tasks import in_background
from resilience.watch import Watch
from resilience.watch_pusher import PusherFactory, ThreadPusher
from storage.connection import Storage
from storage.errors import NotFound, PreconditionFailed, StorageError, StorageUnavailable
from storage.expiry import MAX_RESPONSES
from storage.ledger import MAX_CHANGES, LedgerEntry, fitting

_log = logging.getLogger("resilience.worker")

_DISCARD_RETRY_SECONDS = 1.0

_NOTE_INTERVAL = 2.0
"""Seconds between two notes of a busy worker: what is not noted is looked at again should this process die."""

_HEARTBEAT_RETRY = 2.0
"""Seconds until a heartbeat without an answer is tried again."""

_EPOCH_RETRY = 0.25
"""Seconds until a transaction that has to tell the ledger a new epoch is tried again: the old message is on its way."""

_NOTED_AT_REST = 20
"""Ended responses that a resting ledger keeps at most; fewer wait for the next run's, or for its end."""


@dataclass(slots=True)
class _Opening:
    entry: LedgerEntry
    done: asyncio.Future[str]


class Worker:
    """The liveness of this process."""

    def __init__(
        self,
        storage: Storage,
        settings: EngineSettings,
        pusher: PusherFactory = ThreadPusher,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._now_unix = now
        self._settings = settings
        self._pusher = pusher
        self._now: Incarnation | None = None
        self._openings: list[_Opening] = []
        self._wake = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._unused: deque[str] = deque()

    @property
    def id(self) -> str | None:
        """The current worker id, or None while idle."""
        return self._now.id if self._now else None

    @property
    def rests(self) -> bool:
        """True while nothing of this process has to be watched."""
        return self._now is None or self._now.watch.rests

    def is_current(self, worker_id: str) -> bool:
        """False once this process ended that id or learned that others declared it dead."""
        return self._now is not None and self._now.id == worker_id

    async def until_over(self, worker_id: str) -> None:
        """Return when that id is not this process's any more."""
        if self._now is not None and self._now.id == worker_id:
            await self._now.over.wait()

    async def open(self, entry: LedgerEntry) -> str:
        """Make an entry durable; the id of the worker that answers for it.

        Raises:
            StorageUnavailable: It could not be made durable; it is closed again should it have been.
        """
        opening = _Opening(entry, asyncio.get_running_loop().create_future())
        self._openings.append(opening)
        self._ensure_committer()
        self._wake.set()
        return await opening.done

    def close(self, worker_id: str, key: str) -> None:
        """Forget an entry, once it is noted, with a later transaction.

        A lost closing is found and ignored by whoever adopts.
        """
        now = self._now
        if now is not None and now.id == worker_id and key in now.open:
            now.unnoted[key] = now.open.pop(key)
            now.idle_since = asyncio.get_running_loop().time()
            self._wake.set()

    def own_message_received(self, worker_id: str, epoch: int | None) -> None:
        """This process received a watch message of its own: it was held up, not dead, or the message was a double."""
        if self._now is not None and self._now.id == worker_id:
            self._now.watch.own_message_received(epoch)

    async def stop(self) -> None:
        """End this process's liveness: an idle worker leaves nothing, a busy one is found by its watch message."""
        if self._committer is not None:
            self._committer.cancel()
            await asyncio.gather(self._committer, return_exceptions=True)
            self._committer = None
            # Who asked meanwhile must hear of it: nobody would answer him any more.
            waiting, self._openings = self._openings, []
            self._fail(waiting, StorageUnavailable("This process is stopping."))
        if self._now is not None:
            if self._now.open:
                await self._now.watch.end()
                self._now = None
            else:
                await self._end()

    def _ensure_committer(self) -> None:
        if self._committer is None or self._committer.done():
            self._committer = asyncio.get_running_loop().create_task(self._commit_forever(), name="ledger-committer")

    async def _commit_forever(self) -> None:
        """Serve until idle for long enough; the next opening starts a new task."""
        start_anew()  # it serves all runs, not only the one that came first
        last_commit = last_note = asyncio.get_running_loop().time()
        while True:
            loop_time = asyncio.get_running_loop().time
            if self._now is not None:
                self._now.watch.awake()
            if self._openings:
                await self._commit(self._take_openings())
                last_commit = loop_time()
                continue
            now = self._now
            if now is None:
                return
            if now.open:
                due = last_commit + self._beat_interval(now)
                if loop_time() >= due:
                    await self._commit([])
                    last_commit = loop_time()
                    continue
                if now.unnoted:
                    due = min(due, last_note + _NOTE_INTERVAL)
                    if loop_time() >= last_note + _NOTE_INTERVAL:
                        await self._note(now)
                        last_note = loop_time()
                        continue
            else:
                idle_since = max(now.idle_since, now.begun_at)
                rests = now.watch.rests
                due = idle_since + (self._settings.idle_end_after if rests else self._settings.idle_close_after)
                if loop_time() >= due:
                    await (self._end() if rests else self._rest(now))
                    continue
            await self._sleep_until(due)

    def _beat_interval(self, now: Incarnation) -> float:
        """Seconds between two transactions of a busy worker that has nothing to open."""
        if now.epoch_is_news:
            return _EPOCH_RETRY
        if now.doubtful is not None:  # the sweep must not find it old when storage answers again
            return min(_HEARTBEAT_RETRY, self._settings.heartbeat_interval)
        return self._settings.heartbeat_interval

    async def _sleep_until(self, due: float) -> None:
        self._wake.clear()
        if self._openings:
            return
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _take_openings(self) -> list[_Opening]:
        """As many as one transaction takes, by number and by size."""
        waiting = [opening for opening in self._openings if not opening.done.cancelled()]
        count = fitting([opening.entry for opening in waiting[:MAX_CHANGES]])
        self._openings = waiting[count:]
        return waiting[:count]

    async def _commit(self, batch: Sequence[_Opening]) -> None:
        """One transaction of openings and closings; refused ones are made again under a new id."""
        try:
            now = await self._committed(batch)
        except Exception as error:
            # Whatever it was, the callers must hear of it: nothing that is not durable may be answered.
            self._fail(batch, error)
            return
        except asyncio.CancelledError:
            self._fail(batch, StorageUnavailable("This process is stopping."))
            raise
        if now is None:
            return
        for opening in batch:
            if not opening.done.cancelled():
                now.open[opening.entry.key] = responses_in(opening.entry)
                now.unnoted.pop(opening.entry.key, None)
                opening.done.set_result(now.id)
        now.opened_for_nobody(opening.entry.key for opening in batch)

    async def _committed(self, batch: Sequence[_Opening]) -> Incarnation | None:
        """The incarnation whose ledger has the openings; one that was declared dead meanwhile does not count.

        Two openings of one key are one.
        """
        entries = {opening.entry.key: opening.entry for opening in batch}
        while True:
            now = await self._try_commit(entries)
            if (now is not None and now is self._now) or not batch:
                return now

    def _fail(self, batch: Sequence[_Opening], error: Exception) -> None:
        for opening in batch:
            if not opening.done.done():
                opening.done.set_exception(error)

    async def _try_commit(self, entries: Mapping[str, LedgerEntry]) -> Incarnation | None:
        """Whose ledger has the entries now; None when this id was found dead (the caller then tries a new one)."""
        now = self._now
        if now is None:
            return await self._begin(list(entries.values()))
        if now.doubtful is not None and not await self._settle_doubt(now, now.doubtful):
            return None
        if entries and now.watch.rests:
            return await self._take_up(now, entries)
        return await self._commit_to(now, entries)

    async def _commit_to(self, now: Incarnation, entries: Mapping[str, LedgerEntry]) -> Incarnation | None:
        # What is opened again is not closed before.
        idle = [key for key in now.closed if key not in entries]
        closed = frozenset(idle[: MAX_CHANGES - len(entries)])
        try:
            record = await self._storage.ledger.commit(
                now.record, list(entries.values()), list(closed), epoch=now.watch.epoch
            )
        except (NotFound, PreconditionFailed):
            self._declared_dead(now)
            return None
        except StorageUnavailable:
            now.doubtful = Doubt(frozenset(entries), closed)
            raise
        now.record = record
        now.watch.heard(record.epoch)
        now.closed -= closed | entries.keys()
        return now

    async def _settle_doubt(self, now: Incarnation, doubt: Doubt) -> bool:
        """Read the ledger back after a transaction without an answer; False when this id is dead.

        Its openings were refused to their callers: where they are durable after all, they are closed.
        """
        try:
            record = await self._storage.ledger.read(now.id)
        except NotFound:
            self._declared_dead(now)
            return False
        if record.state != "open" or record.revision not in (now.record.revision, now.record.revision + 1):
            self._declared_dead(now)
            return False
        if record.revision > now.record.revision:
            now.closed -= doubt.closed
            now.opened_for_nobody(doubt.opened)
        now.record = record
        now.doubtful = None
        return True

    async def _begin(self, entries: list[LedgerEntry]) -> Incarnation:
        """Take a new id: its ledger and its watch message exist before anything is said to be open."""
        worker_id = new_worker_id()
        try:
            record = await self._storage.ledger.begin(worker_id, entries)
            watch = self._new_watch(worker_id)
            # Not at the same time: a ledger that takes long would let the message become visible before its first push.
            await watch.begin()
        except BaseException:
            self._discard_later(worker_id)
            raise
        self._now = begun = Incarnation(record, watch, begun_at=asyncio.get_running_loop().time())
        return begun

    def _new_watch(self, worker_id: str) -> Watch:
        def lost() -> None:
            if self._now is not None and self._now.id == worker_id:
                self._declared_dead(self._now)

        return Watch(self._storage, self._settings, self._pusher, worker_id, told=self._wake.set, lost=lost)

    async def _take_up(self, now: Incarnation, entries: Mapping[str, LedgerEntry]) -> Incarnation | None:
        """Open runs in a ledger that rests: durable first, then watched again, and only then answered for."""
        now.watch.begin_epoch()
        committed = await self._commit_to(now, entries)
        if committed is not None:
            try:
                await now.watch.begin()
            except StorageUnavailable:
                now.opened_for_nobody(entries)  # refused to their callers
                raise
        return committed

    async def _rest(self, now: Incarnation) -> None:
        """Take the watch message back. Without an answer it is received by somebody, who takes care of the ledger."""
        receipt = await now.watch.end()
        assert receipt is not None
        if len(now.unnoted) > _NOTED_AT_REST:
            await self._note(now)
        try:
            await self._storage.watch.delete(receipt)
        except StorageError as error:
            _log.info("watch message of idle worker %s left to be received: %s", now.id, error)

    def _discard_later(self, worker_id: str) -> None:
        self._unused.append(worker_id)
        if len(self._unused) == 1:
            in_background(self._discard_all())

    async def _discard_all(self) -> None:
        """Take away what may be there of ledgers whose openings were refused: nobody must act on them."""
        while self._unused:
            worker_id = self._unused[0]
            try:
                await self._storage.ledger.wipe(worker_id)
            except StorageUnavailable:
                await asyncio.sleep(_DISCARD_RETRY_SECONDS)
                continue
            except StorageError as error:
                _log.warning("the unused ledger of %s is left for adoption: %s", worker_id, error)
            self._unused.popleft()

    def _declared_dead(self, now: Incarnation) -> None:
        _log.warning("worker %s was declared dead by another; its %d runs are no longer its own", now.id, len(now.open))
        if self._now is now:
            self._now = None
        now.over.set()
        now.watch.give_up()

    async def _note(self, now: Incarnation) -> None:
        """Note what is over for retention; only then may the ledger forget it. Without an answer it is tried later."""
        keys = list(now.unnoted)
        responses = [response for key in keys for response in now.unnoted[key]]
        try:
            for start in range(0, len(responses), MAX_RESPONSES):
                await self._storage.expiry.note(self._now_unix(), responses[start : start + MAX_RESPONSES])
        except StorageError as error:
            _log.warning("%d ended responses are noted later: %s", len(responses), error)
            return
        for key in keys:
            if now.unnoted.pop(key, None) is not None:
                now.closed.add(key)

    async def _end(self) -> None:
        """Close an idle ledger. Without an answer the watch message stays and leads to whatever is left."""
        now, self._now = self._now, None
        assert now is not None
        receipt = await now.watch.end()
        try:
            await self._note(now)
            if now.unnoted:
                raise StorageUnavailable  # whoever adopts the ledger notes them
            await self._storage.ledger.end(now.record, list(now.closed))
            if receipt is not None:
                await self._storage.watch.delete(receipt)
        except StorageError as error:
            _log.info("ledger of idle worker %s left for adoption: %s", now.id, error)
