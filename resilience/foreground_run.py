"""A foreground run: the HTTP function's own invocation executes the handler and answers with what comes of it.

What storage has of it is a `ForegroundRecord`. If the worker dies it becomes a `failed` row (row 3). The entry that
says so is durable before the first byte with the id leaves (R1); the handler may run meanwhile. A turn of a chain may
have to wait for its turn; its handler begins after that.

A client that goes away cancels the run (B17). The run is a task of its own: it survives the connection that it
serves. A client that is slow to read slows the handler down, but never the end of the run: what is left to be told
then waits for it in memory.

A worker that lives but was declared dead learns of it: then the outcome is its adopter's, and the next turn of the
chain may run elsewhere. As soon as that outcome stands, the handler is stopped and the client is told of it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from protocol import sse
from protocol.errors import ApiError, ServerError, error_event
from protocol.event_stream import CHECKPOINT
from protocol.events import InvalidEvent
from protocol.response import cancelled, failed, strip_internal
from resilience import chain
from resilience.attempt import foreground_attempt
from resilience.chain_metadata import ConversationChainMetadata
from resilience.dispatch import Disposition
from resilience.foreground_record import ForegroundRecord
from resilience.handler_entry import answer_to, events_of
from resilience.history import History
from resilience.outcome import GENERIC_FAILURE, terminal_frames
from resilience.record import RequestRecord
from resilience.run_context import context_of
from resilience.runtime import Runtime
from resilience.stamper import Ending, Stamper
from resilience.tasks import settled
from resilience.turn_record import TurnRecord
from storage.errors import StorageUnavailable
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.run")

_FRAMES_AHEAD = 64
_FRAMES_AHEAD_OF_END = 1024
"""Frames the handler may be ahead of the client; the latter once it was told to end, which it must be free to do."""

_FAREWELL = 10.0
"""Seconds in which the client may read what is left of a run that ended at the platform's time limit."""


class ForegroundRun:
    """Executes one foreground response; `execute` is the engine's task, the readers are the endpoint's."""

    def __init__(
        self,
        runtime: Runtime,
        key: str,
        record: RequestRecord,
        disposition: Disposition,
        stored: ForegroundRecord,
        leave_at: float,
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._stored = stored
        self._turn = stored if isinstance(stored, TurnRecord) else None
        steered = self._turn is not None and self._turn.row.steered
        self._attempt = foreground_attempt(runtime, record, disposition, steered=steered, worker_id=stored.worker_id)
        self._signal = asyncio.Event()
        self._finished = asyncio.Event()
        self._base = record.snapshot(runtime.app.options.default_model, "in_progress")
        self._stamper = Stamper(self._base, last_sequence=-1, recovery=False, now=runtime.now)
        self._context = context_of(
            record,
            disposition,
            History(
                runtime.storage,
                key,
                record,
                self._turn.row.turn if self._turn else 0,
                patience=runtime.settings.finish_patience,
            ),
            chain_id=chain.chain_id(key, record, runtime.app.options),
            history_limit=runtime.app.options.default_fetch_history_count,
            is_steered_turn=steered,
        )
        loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._result: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._ending: asyncio.Future[Ending] = loop.create_future()
        self._handler: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[None] = loop.create_future()
        self._must_leave: asyncio.Future[None] = loop.create_future()
        # A turn of a chain was recorded when it joined.
        self._recorded = loop.create_future() if stored.is_stored and self._turn is None else None
        self._decided_elsewhere: asyncio.Future[ResponseRow | None] = loop.create_future()
        self._is_stopping = False
        self._muted = False
        self._last_sent = -1
        self._leave_at = leave_at
        self._over_at = 0.0

    @property
    def worker_id(self) -> str:
        return self._stored.worker_id

    def steered(self, pending: int) -> None:
        if self._turn is None or not self._turn.is_active:
            return
        self._context.pending_input_count = pending
        if pending:
            self._signal.set()
            self._room.set()

    def cancelled(self, row: ResponseRow) -> None:
        """A foreground run is not cancelled through its row: nobody is shown one."""

    def claimed(self, row: ResponseRow | None) -> None:
        """Nobody claims a foreground run."""

    def hand_over(self) -> None:
        if not self._must_leave.done():
            self._must_leave.set_result(None)

    async def ended(self) -> None:
        await self._finished.wait()

    def disconnect(self) -> None:
        """The client went away: the run is cancelled."""
        if not self._gone.done():
            self._gone.set_result(None)
        self._muted = True
        while not self._frames.empty():
            self._frames.get_nowait()
        self._room.set()

    async def result(self) -> dict[str, Any]:
        """The final response, for a client that does not stream.

        Raises:
            ApiError: There is none: refused by the handler, failed before it began, or invalid output (B30).
        """
        return await asyncio.shield(self._result)

    async def frames(self) -> AsyncGenerator[bytes]:
        """The stream, ending with its terminal event; an error before the first event is one `error` event.

        It may end before, for a client too slow to be told the end before the platform ends the process (R13).
        """
        while (frame := await self._frames.get()) is not None:
            self._room.set()
            yield frame
            if self._is_overdue():
                return

    def _is_overdue(self) -> bool:
        now = asyncio.get_running_loop().time()
        return bool(self._over_at) and now >= max(self._leave_at, self._over_at + _FAREWELL)

    # -- execution --------------------------------------------------------------------------------------------------

    async def execute(self) -> None:
        """Run to the end; the readers are told whatever happens."""
        with self._attempt:
            await self._execute()

    async def _execute(self) -> None:
        try:
            if await self._is_allowed():
                self._attempt.started()
                name = f"handler-{self._record.response_id}"
                self._handler = handler = asyncio.get_running_loop().create_task(self._enter(), name=name)
                await self._record_opening()
                await self._run(handler)
        except Exception as error:
            _log.error("response %s could not be made", self._record.response_id, exc_info=error)
            await self._tell(error)
        finally:
            self._decided_elsewhere.cancel()
            self._stop_handler()
            if self._handler is not None:
                await settled(self._handler)
            await self._stored.leave()
            self._finished.set()

    async def _is_allowed(self) -> bool:
        """Wait until it is this turn's turn; false if it ended before, for it, its client or the process went."""
        turn = self._turn
        if turn is None:
            return True
        while not turn.is_active:
            look = asyncio.ensure_future(turn.look())
            await self._wait(look, self._gone, self._must_leave)
            if self._gone.done() or self._must_leave.done():
                look.cancel()
                await settled(look)
                await self._give_turn_up()
                return False
            if (decided := look.result()) is not None:
                await self._conclude(decided)
                return False
        self._context.conversation_chain_metadata = ConversationChainMetadata(turn.chain.metadata, self._keep)
        self.steered(len(turn.chain.pending))
        return True

    async def _give_turn_up(self) -> None:
        if self._gone.done():
            await self._finish(Ending([], cancelled(self._stamper.snapshot())))
        else:
            await self._fail("The server is shutting down.", "grace_exhausted")

    async def _keep(self, metadata: bytes) -> None:
        """S7: a handler's `flush`; after the outcome there is nobody to keep it for."""
        if self._turn is not None and not self._muted:
            await self._turn.keep(metadata)

    def _take_along(self) -> None:
        """What goes with the outcome: whether the handler is gone, and the chain's metadata that was not flushed.

        What cannot be stored is left out.
        """
        if self._turn is None:
            return
        self._turn.runs_on = self._handler is not None and not self._handler.done()
        if self._context.client_cancelled:
            return  # as in the background, where the outcome is decided before the handler knows of it
        try:
            self._turn.unkept = self._context.conversation_chain_metadata.changed()
        except ValueError:
            _log.exception("response %s: its chain's metadata cannot be stored", self._record.response_id)

    async def _record_opening(self) -> None:
        if self._recorded is None:
            return
        try:
            await self._stored.open()
        except BaseException:
            self._recorded.cancel()
            raise
        self._attempt.owned_by(self._stored.worker_id)
        self._recorded.set_result(None)

    async def _run(self, handler: asyncio.Task[None]) -> None:
        if self._stored.is_stored:
            looking = self._stored.decided_elsewhere()
            self._decided_elsewhere = self._runtime.spawn(looking, f"looking-{self._record.response_id}")
        ends = (handler, self._ending, self._gone, self._decided_elsewhere)
        await self._wait(*ends, self._must_leave)
        if not any(end.done() for end in ends):
            self._context.shutdown.set()
            self._room.set()
            await self._wait(*ends, timeout=self._runtime.app.options.shutdown_grace_period_seconds)
        if self._ending.done():  # its frames have their numbers: they are told, whoever decided the outcome
            await self._finish(self._ending.result())
        elif self._decided_elsewhere.done():
            await self._end_as_decided(self._decided_elsewhere.result())
        elif self._gone.done():
            await self._end_cancelled(handler)
        elif handler.done() and not self._context.shutdown.is_set():
            await self._end_without_outcome(handler)
        else:
            await self._fail("The server is shutting down.", "grace_exhausted")

    async def _wait(self, *what: asyncio.Future[Any], timeout: float | None = None) -> None:
        await asyncio.wait(what, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    async def _enter(self) -> None:
        async with aclosing(events_of(self._runtime.app.handler, self._context, self._signal)) as events:
            async for event in events:
                if self._muted or (isinstance(event, dict) and event.get("type") == CHECKPOINT):
                    continue
                result = self._stamper.stamp(event)
                if isinstance(result, Ending):
                    self._muted = True
                    self._ending.set_result(result)
                    continue
                if not self._attempt.has_begun:
                    self._attempt.begun()
                for stamped in result:
                    await self._send(stamped.sequence, stamped.frame)
                await self._let_client_read()

    async def _let_client_read(self) -> None:
        while self._frames.qsize() >= self._frames_ahead and not self._gone.done():
            self._room.clear()
            await self._room.wait()

    @property
    def _frames_ahead(self) -> int:
        told = self._signal.is_set() or self._context.shutdown.is_set()
        return _FRAMES_AHEAD_OF_END if told else _FRAMES_AHEAD

    async def _send(self, sequence: int, frame: bytes) -> None:
        """Hand a frame to the client, not before the run is recorded (R1)."""
        if self._recorded is not None and not self._recorded.done():
            await asyncio.wait({self._recorded})
        if self._recorded is not None and self._recorded.cancelled():
            return
        if self._record.request.get("stream") and not self._gone.done():
            self._frames.put_nowait(frame)
            self._last_sent = sequence

    def _stop_handler(self) -> None:
        """Cancel it, once: a second time would cut off how it cleans up."""
        self._muted = True
        if self._handler is not None and not self._is_stopping:
            self._is_stopping = True
            self._handler.cancel()

    # -- the ways to end --------------------------------------------------------------------------------------------

    async def _end_as_decided(self, row: ResponseRow | None) -> None:
        """Another decided the outcome. The handler is told to stop before all else: its chain has gone on."""
        self._stop_handler()
        for stamped in self._stamper.close_items():
            await self._send(stamped.sequence, stamped.frame)
        await self._conclude(await self._stored.as_decided(row))

    async def _end_cancelled(self, handler: asyncio.Task[None]) -> None:
        self._context.client_cancelled = True
        self._signal.set()
        await self._wait(handler, timeout=self._runtime.settings.cancel_grace)
        await self._finish(Ending([], cancelled(self._stamper.snapshot())))

    async def _end_without_outcome(self, handler: asyncio.Task[None]) -> None:
        error = RuntimeError("the handler was cancelled from within") if handler.cancelled() else handler.exception()
        response_id = self._record.response_id
        if error is None:
            _log.error("response %s: the handler ended without a terminal event", response_id)
        else:
            _log.error("response %s: the handler failed", response_id, exc_info=error)
        if error is not None and not self._stamper.begun:
            await self._stored.drop()
            await self._tell(answer_to(error))
            return
        if isinstance(error, InvalidEvent) and not self._result.done():
            self._set_error(ServerError())  # B30: never shown to a client that does not stream
        await self._fail(GENERIC_FAILURE)

    async def _fail(self, message: str, shutdown_reason: str | None = None) -> None:
        frames = self._stamper.close_items()
        await self._finish(Ending(frames, failed(self._stamper.snapshot(), "server_error", message, shutdown_reason)))

    async def _finish(self, ending: Ending) -> None:
        self._muted = True
        for stamped in ending.frames:
            await self._send(stamped.sequence, stamped.frame)
        self._take_along()
        snapshot = await self._stored.finish(ending.snapshot, self._stamper.last_sequence, seen=not self._gone.done())
        self._attempt.decided(snapshot)
        await self._conclude(snapshot)

    async def _conclude(self, snapshot: dict[str, Any]) -> None:
        """Tell the client what stands in storage."""
        self._attempt.terminal(snapshot)
        for sequence, frame in terminal_frames(snapshot, self._stamper.last_sequence):
            await self._send(sequence, frame)
        if not self._result.done():
            self._result.set_result(strip_internal(snapshot))
        self._end_frames()

    async def _tell(self, error: Exception) -> None:
        """Answer with an error instead of a response; on a stream it is one event.

        After those that were sent (B8).
        """
        self._muted = True
        self._attempt.broke(error)
        self._set_error(error)
        if self._record.request.get("stream") and not self._gone.done():
            answer = answer_to(error) if isinstance(error, ApiError | StorageUnavailable) else ServerError()
            self._frames.put_nowait(sse.encode(error_event(self._last_sent + 1, answer)))
        self._end_frames()

    def _set_error(self, error: Exception) -> None:
        if not self._result.done():
            self._result.set_exception(error)
            self._result.exception()  # looked at: a client that streams never asks for it

    def _end_frames(self) -> None:
        self._over_at = asyncio.get_running_loop().time()
        if not self._gone.done():
            self._frames.put_nowait(None)
