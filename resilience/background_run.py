"""A background run: one owned response from a handler entry to its end in this process.

Nothing here decides who owns the response; every write goes through `Ownership`, and the first refusal ends the
run's right to go on. What can end it, strongest first:

- storage refuses a write: the row says why (`OwnershipLost`);
- a client cancels: the outcome stands in the row already, the terminal frame follows at once, the handler winds down;
- the handler's terminal event, its error, or its end without either;
- a hand-over: the worker has to stop, another one continues.

Order at the end (V1): log flushed → row to its outcome, by CAS → terminal frame. A crash between them is completed
by `log_repair`.
"""

import asyncio
import logging
from contextlib import aclosing
from enum import Enum, auto
from typing import Any

from protocol import jsonio
from protocol.errors import ApiError, HandlerRefused
from protocol.response import TERMINAL_STATUSES, failed
from resilience import chain
from resilience.attempt import background_attempt
from resilience.chain_metadata import ConversationChainMetadata
from resilience.context import ExitForRecovery, ResponseContext
from resilience.dispatch import Disposition
from resilience.feed import Feed
from resilience.handler_entry import answer_to, events_of
from resilience.history import History
from resilience.log_repair import complete_log
from resilience.outcome import GENERIC_FAILURE
from resilience.ownership import Ownership
from resilience.placement import tenant_in
from resilience.record import RequestRecord
from resilience.response_row import ChainUnreadable, OwnershipLost
from resilience.retry import STORAGE_RETRY_SECONDS, patiently
from resilience.run_context import context_of
from resilience.run_output import RunOutput
from resilience.runtime import Runtime
from resilience.stamper import Ending, Stamper
from resilience.tasks import settled
from resilience.verdict import ATTEMPTS_EXHAUSTED, UNREADABLE, Verdict, verdict_on
from storage.chains import ChainRow
from storage.errors import MalformedRecord, NotFound, StorageRejected, StorageUnavailable
from storage.payloads import StoredPayload
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.run")


class RunEnd(Enum):
    """How a run left this process."""

    ENDED = auto()
    HANDED_OVER = auto()
    LOST = auto()
    RECLAIM = auto()
    """Refused although the row still names us, deleted, or ended without its chain: it must be claimed again, or nobody
    would look after it."""


class BackgroundRun:
    """Executes one owned background response."""

    def __init__(
        self,
        runtime: Runtime,
        ownership: Ownership,
        record: RequestRecord,
        feed: Feed | None,
        verdict: Verdict | None = None,
    ) -> None:
        self._runtime = runtime
        self._verdict = verdict or verdict_on(ownership, runtime.settings.max_attempts)
        self._ownership = ownership
        self._worker_id = ownership.row.owner
        self._attempt = background_attempt(runtime, ownership, record)
        self._record = record
        self._feed = feed
        if feed is not None:
            feed.local = True  # its readers wait for this run, nobody needs to poll
        self._signal = asyncio.Event()
        self._handler: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[Ending] = loop.create_future()
        self._cancelled: asyncio.Future[ResponseRow] = loop.create_future()
        self._must_leave: asyncio.Future[None] = loop.create_future()
        self._displaced: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[OwnershipLost] = loop.create_future()
        self._muted = False
        self._pending = 0
        self.leaving = False
        """True from when it is given up for another claim: nobody may rely on it to go on here."""
        self._context: ResponseContext
        self._output: RunOutput

    @property
    def response_id(self) -> str:
        return self._record.response_id

    @property
    def worker_id(self) -> str:
        """The worker id that it was claimed under."""
        return self._worker_id

    def cancelled(self, row: ResponseRow) -> None:
        if not self._cancelled.done():
            self._cancelled.set_result(row)

    def claimed(self, row: ResponseRow | None) -> None:
        """Its row as somebody read it: one that is gone, or of a later claim than ours, would refuse our next write."""
        if row is None or row.deleted or row.generation > self._ownership.row.generation:
            self._lose(OwnershipLost(row))

    def _lose(self, lost: OwnershipLost) -> None:
        if not self._lost.done():
            self._lost.set_result(lost)

    def steered(self, pending: int) -> None:
        """So many turns wait behind this one (S3)."""
        self._pending = pending
        if self._handler is not None:
            self._steer()

    def _steer(self) -> None:
        self._context.pending_input_count = self._pending
        if self._pending:
            self._signal.set()

    def hand_over(self) -> None:
        if not self._must_leave.done():
            self._must_leave.set_result(None)

    def displace(self) -> None:
        """Its worker id is dead: stop without another write."""
        if not self._displaced.done():
            self._displaced.set_result(None)

    async def execute(self) -> RunEnd:
        """Run to the end in this process; safe to be killed anywhere."""
        with self._attempt:
            end = await self._execute()
            self._attempt.left(end.name.lower())
        return end

    async def _execute(self) -> RunEnd:
        try:
            await self._prepare()
        except ChainUnreadable:
            _log.exception("response %s: its chain is left to others", self._record.response_id)
            self._leave_feed()
            return await self._give_away(graceful=False, delay=STORAGE_RETRY_SECONDS)
        except BaseException:
            self._leave_feed()
            raise
        try:
            return await self._run()
        except OwnershipLost as lost:
            return await self._after_loss(lost)
        finally:
            await self._leave()

    async def _prepare(self) -> None:
        stored, persisted = await self._persisted()
        recovery = self._ownership.is_recovery
        base = persisted or self._record.snapshot(self._runtime.app.options.default_model, "in_progress")
        row = self._ownership.row
        # Nobody kept anything for a response that is a chain of its own, and that nobody entered before. And a run that
        # only ends its response needs nothing that could keep it from that.
        turns = (
            await self._ownership.read_chain()
            if self._verdict is None and (row.turn or recovery)
            else ChainRow(partition_key=row.partition_key)
        )
        if self._verdict is None and row.turn and not turns.may_start(row.id):
            # It was claimed only to be ended, by somebody who could not read its chain, and died.
            self._verdict = ATTEMPTS_EXHAUSTED
        self._context = context_of(
            self._record,
            Disposition(row.disposition),
            History(
                self._runtime.storage,
                row.partition_key,
                self._record,
                row.turn,
                patience=self._runtime.settings.finish_patience,
            ),
            chain_id=chain.chain_id(row.partition_key, self._record, self._runtime.app.options),
            metadata=ConversationChainMetadata(turns.metadata, self._keep),
            history_limit=self._runtime.app.options.default_fetch_history_count,
            is_recovery=recovery,
            is_steered_turn=row.steered,
            persisted_response=(persisted or base) if recovery else None,
        )
        self._pending = max(self._pending, len(turns.pending))
        self._steer()
        stamper = Stamper(base, last_sequence=self._ownership.last_sequence, recovery=recovery, now=self._runtime.now)
        self._output = RunOutput(self._runtime, self._ownership, self._attempt, stamper, self._feed, stored)

    async def _persisted(self) -> tuple[bytes, dict[str, Any]] | tuple[None, None]:
        """The last persisted snapshot (R10), as stored and as read; one that cannot be read fails the response.

        As an unreadable request does.
        """
        stored = self._ownership.row.snapshot
        if stored is None:
            return None, None
        try:
            data = await self._read_snapshot(stored)
            snapshot: dict[str, Any] = jsonio.loads(data)
        except (jsonio.NotJson, NotFound):
            _log.exception("response %s: its snapshot cannot be read", self._record.response_id)
            self._verdict = self._verdict or UNREADABLE
            return None, None
        except (StorageRejected, MalformedRecord):
            if self._verdict is None:  # it costs an attempt; a later one may be given it
                raise
            _log.exception("response %s: it ends without its snapshot", self._record.response_id)
            return None, None
        return data, snapshot

    async def _read_snapshot(self, stored: StoredPayload) -> bytes:
        async for attempt in patiently(self._runtime.settings.finish_patience):
            with attempt:
                return await self._runtime.storage.payloads.get(stored)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _run(self) -> RunEnd:
        if self._verdict is not None:
            return await self._fail(self._verdict.message, shutdown_reason=self._verdict.shutdown_reason)
        if self._must_leave.done() and self._ownership.row.disposition == Disposition.RESILIENT:
            return await self._hand_over(graceful=True)  # told to leave before it began: no entry for that
        self._attempt.started()
        name = f"handler-{self._record.response_id}"
        self._handler = asyncio.get_running_loop().create_task(self._enter(), name=name)
        await self._wait(self._handler, self._ending, self._cancelled, self._must_leave, self._displaced, self._lost)
        if self._displaced.done():
            return RunEnd.LOST
        if self._lost.done():
            raise self._lost.result()
        if self._cancelled.done():
            return await self._end_cancelled(self._cancelled.result())
        if self._ending.done():
            return await self._finish(self._ending.result())
        if self._handler.done():
            return await self._end_without_outcome(self._handler)
        return await self._shut_down(self._handler)

    async def _wait(self, *what: asyncio.Future[Any], timeout: float | None = None) -> None:
        await asyncio.wait(what, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    # -- the handler's events ---------------------------------------------------------------------------------------

    async def _enter(self) -> None:
        async with aclosing(events_of(self._runtime.app.handler, self._context, self._signal)) as events:
            async for event in events:
                if self._muted:
                    continue
                try:
                    await self._take(event)
                except OwnershipLost as lost:
                    self._lose(lost)  # at once: the handler may take its time to clean up
                    raise

    async def _take(self, event: Any) -> None:
        if (ending := await self._output.take(event)) is not None:
            self._muted = True  # whatever the handler still says, the outcome is this
            self._ending.set_result(ending)

    async def _keep(self, metadata: bytes) -> None:
        """A handler's `flush` (S7); after the outcome there is nobody to keep it for."""
        if not self._muted:
            await self._output.keep(metadata)

    def _unkept(self) -> bytes | None:
        """The chain's metadata that was changed and not flushed; what cannot be stored is left out."""
        try:
            return self._context.conversation_chain_metadata.changed()
        except ValueError:
            _log.exception("response %s: its chain's metadata cannot be stored", self._record.response_id)
            return None

    # -- the ways to end --------------------------------------------------------------------------------------------

    async def _end_without_outcome(self, handler: asyncio.Task[None]) -> RunEnd:
        """The handler stopped by itself: an error, an exit, or no terminal event (B32)."""
        error = RuntimeError("the handler was cancelled from within") if handler.cancelled() else handler.exception()
        if isinstance(error, OwnershipLost):
            raise error
        if isinstance(error, ExitForRecovery):
            return await self._hand_over(graceful=False)
        if error is None:
            _log.error("response %s: the handler ended without a terminal event", self._record.response_id)
            return await self._fail(GENERIC_FAILURE)
        _log.error("response %s: the handler failed", self._record.response_id, exc_info=error)
        if isinstance(error, StorageUnavailable | StorageRejected | ChainUnreadable):
            return await self._fail("The storage failed.", code="storage_error")
        answer = answer_to(error)
        if isinstance(answer, HandlerRefused) and not self._output.stamper.begun:
            return await self._fail(answer.message, code="invalid_prompt", refused=answer)
        return await self._fail(GENERIC_FAILURE, refused=answer)

    async def _shut_down(self, handler: asyncio.Task[None]) -> RunEnd:
        """Path A within the grace, path B after it (B24)."""
        self._context.shutdown.set()
        grace = self._runtime.app.options.shutdown_grace_period_seconds
        await self._wait(handler, self._ending, self._cancelled, self._lost, timeout=grace)
        if self._lost.done():
            raise self._lost.result()
        if self._cancelled.done():
            return await self._end_cancelled(self._cancelled.result())
        if self._ending.done():
            return await self._finish(self._ending.result())
        if handler.done() and not handler.cancelled() and isinstance(error := handler.exception(), OwnershipLost):
            raise error
        await self._stop_handler(patience=self._runtime.settings.cancel_grace)
        if self._ownership.row.disposition == Disposition.RESILIENT:
            return await self._hand_over(graceful=True)
        return await self._fail("The worker of this response was shut down.", shutdown_reason="grace_exhausted")

    async def _hand_over(self, *, graceful: bool) -> RunEnd:
        """Another worker continues at once; a crash in here is found through the ledger."""
        self._muted = True
        self.leaving = True
        await self._output.flush()
        if (unkept := self._unkept()) is not None:
            await self._ownership.keep(unkept)
        return await self._give_away(graceful=graceful)

    async def _give_away(self, *, graceful: bool, delay: float = 0.0) -> RunEnd:
        self.leaving = True
        await self._ownership.hand_over(graceful=graceful)
        row = self._ownership.row
        await self._runtime.storage.work.send_start(tenant_in(row.partition_key), row.id, delay=delay)
        return RunEnd.HANDED_OVER

    async def _fail(
        self,
        message: str,
        *,
        code: str = "server_error",
        shutdown_reason: str | None = None,
        refused: ApiError | None = None,
    ) -> RunEnd:
        """End as failed, over the last snapshot.

        `refused` becomes the one `error` event where nothing was said yet (B8).
        """
        frames = self._output.stamper.close_items()
        snapshot = failed(self._output.stamper.snapshot(), code, message, shutdown_reason)
        return await self._finish(Ending(frames, snapshot), None if self._output.stamper.begun else refused)

    async def _finish(self, ending: Ending, refused: ApiError | None = None) -> RunEnd:
        self._muted = True
        snapshot = ending.snapshot
        try:
            await self._output.emit(ending.frames)
            await self._output.flush()
            await self._decide(snapshot)
        except (StorageUnavailable, StorageRejected):  # another entry would say what is rejected once more
            _log.exception("response %s: the outcome could not be stored", self._record.response_id)
            snapshot = failed(snapshot, "storage_error", "The storage failed while the response was finished.")
            await self._decide_stubbornly(snapshot)
        self._attempt.decided(snapshot)
        self._attempt.terminal(snapshot)
        await self._output.end(snapshot, refused)
        await self._wind_down()
        left, row = self._ownership.chain, self._ownership.row
        if row.turn and left is None:  # it could not be told
            await self._stop_handler()
            return RunEnd.RECLAIM
        if left is not None and left.ending == row.id:
            await self._stop_handler()
            await chain.revive(self._runtime, row.partition_key, row.id)
        else:
            await chain.start_active(self._runtime, left)
        return RunEnd.ENDED

    async def _decide(self, snapshot: dict[str, Any]) -> None:
        error = snapshot.get("error")
        await self._ownership.finish(
            snapshot["status"],
            jsonio.dumps(snapshot),
            completed_at=snapshot.get("completed_at"),
            error_code=str(error.get("code", "")) if isinstance(error, dict) else "",
            metadata=self._unkept(),
            runs_on=self._handler is not None and not self._handler.done(),
        )

    async def _decide_stubbornly(self, snapshot: dict[str, Any]) -> None:
        """R14: never left in progress; as long as this process lives and owns the run it tries."""
        while True:
            try:
                await self._decide(snapshot)
                return
            except StorageUnavailable:
                await asyncio.sleep(STORAGE_RETRY_SECONDS)

    async def _end_cancelled(self, row: ResponseRow) -> RunEnd:
        """The outcome is in the row; the client's stream ends now, the handler may take its time (B11)."""
        self._muted = True
        self._context.client_cancelled = True
        self._signal.set()
        if row.snapshot is not None:
            snapshot = jsonio.loads(await self._runtime.storage.payloads.get(row.snapshot))
            self._attempt.terminal(snapshot)
            try:
                await self._output.flush()
                await self._output.end(snapshot)
            except OwnershipLost:
                self._leave_feed()
                await complete_log(self._runtime.storage, row)
        await self._wind_down()
        return await self._begin_next(row)

    async def _begin_next(self, row: ResponseRow) -> RunEnd:
        """One handler at a time: who displaced this worker may still be in the handler, and begins the next turn.

        Then this process is not done with the response: should that worker die before, a start message of this turn
        leads to the next one, and whoever receives it has to look.
        """
        # A later claim: its row may name nobody any more (`chain.leave_to_others`).
        others = row.owner not in ("", self._worker_id) or row.generation > self._ownership.row.generation
        # Not for ever where another ended it: the message that leads to the next turn may wait here for this run's end.
        await self._stop_handler(patience=self._runtime.settings.cancel_grace if others else None)
        if row.deleted or self._ownership.deleted:  # and maybe something stored behind its deletion
            return RunEnd.RECLAIM
        if others:
            return RunEnd.LOST
        if row.turn:
            await chain.revive(self._runtime, row.partition_key, row.id, ended=True)
        return RunEnd.ENDED

    async def _after_loss(self, lost: OwnershipLost) -> RunEnd:
        self._muted = True
        if lost.row is None:
            return RunEnd.RECLAIM
        if lost.cancelled:
            return await self._end_cancelled(lost.row)
        self._leave_feed()
        if lost.still_names(self._worker_id):
            return RunEnd.RECLAIM
        if lost.row.status in TERMINAL_STATUSES:
            self._attempt.terminal({"status": lost.row.status})
            if not lost.row.deleted:
                await complete_log(self._runtime.storage, lost.row)
            return await self._begin_next(lost.row)  # the outcome may be ours, and then nobody else does
        _log.warning("response %s: another worker owns it now", self._record.response_id)
        return RunEnd.LOST

    async def _wind_down(self) -> None:
        if self._handler is not None and not self._handler.done():
            await self._wait(self._handler, timeout=self._runtime.settings.cancel_grace)

    async def _stop_handler(self, patience: float | None = None) -> None:
        self._muted = True
        handler = self._handler
        if handler is not None:
            handler.cancel()
            await asyncio.wait({handler}, timeout=patience)
            if handler.done():
                await settled(handler)
            else:  # it caught the cancellation; nothing of it is stored any more
                _log.error("response %s: the handler does not stop", self._record.response_id)
                self._handler = None
                self._runtime.spawn(settled(handler), f"stopping-{self._record.response_id}")
        await self._output.settle()

    def _leave_feed(self) -> None:
        """This process's readers look at the log from here on: another may write it while the handler winds down."""
        if self._feed is not None:
            self._feed.local = False
            self._feed.wake()

    async def _leave(self) -> None:
        self._leave_feed()
        # Not for ever: who waits here for the run's end may have the only message that leads to it.
        await self._stop_handler(patience=self._runtime.settings.cancel_grace)
        await self._output.close()
