"""A foreground run: the HTTP function's own invocation executes the handler and answers with what comes of it.

Stored or not, nothing of it is in storage until its end but its entry in this worker's ledger, which says what
becomes of it if the worker dies: a `failed` row (row 3). That entry is durable before the first byte with the id
leaves (R1); the handler may run meanwhile. At the end the row is inserted, once: if somebody who thought this
worker dead was faster, his outcome is the outcome.

A client that goes away cancels the run (B17). The run is a task of its own: it survives the connection that it
serves.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from protocol import jsonio, sse
from protocol.errors import ApiError, ServerError, error_event
from protocol.event_stream import CHECKPOINT
from protocol.events import InvalidEvent
from protocol.response import cancelled, failed, strip_internal
from resilience.background_run import GENERIC_FAILURE, STORAGE_RETRY_SECONDS, settled
from resilience.context import ResponseContext
from resilience.dispatch import Disposition
from resilience.handler_entry import answer_to, events_of
from resilience.history import History
from resilience.idempotency import RequestKey
from resilience.outcome import terminal_frames
from resilience.ownership import OwnershipLost, replace_row
from resilience.record import RequestRecord
from resilience.retry import patiently
from resilience.rows import first_row
from resilience.run_entries import ForegroundEntry, close_run, open_foreground
from resilience.runtime import Runtime
from resilience.stamper import Ending, Stamper
from storage.errors import AlreadyExists, StorageError, StorageUnavailable
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.run")

_FRAMES_AHEAD = 64
"""Frames the handler may be ahead of the client."""


class ForegroundRun:
    """Executes one foreground response; `execute` is the engine's task, the readers are the endpoint's."""

    def __init__(
        self,
        runtime: Runtime,
        key: str,
        record: RequestRecord,
        disposition: Disposition,
        *,
        entry: ForegroundEntry | None = None,
        request_key: RequestKey | None = None,
    ) -> None:
        self._runtime = runtime
        self._key = key
        self._record = record
        self._stored = disposition is Disposition.FOREGROUND
        self._disposition = disposition
        self._signal = asyncio.Event()
        self._finished = asyncio.Event()
        self._base = record.snapshot(runtime.app.options.default_model, "in_progress")
        self._stamper = Stamper(self._base, last_sequence=-1, recovery=False, now=runtime.now)
        self._context = ResponseContext(
            record,
            disposition,
            History(runtime.storage, key, record),
            history_limit=runtime.app.options.default_fetch_history_count,
        )
        loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(_FRAMES_AHEAD)
        self._result: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._ending: asyncio.Future[Ending] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._must_leave: asyncio.Future[None] = loop.create_future()
        self._recorded = loop.create_future() if self._stored else None
        self._muted = False
        self._entry = entry
        self._request_key = request_key
        self._last_sent = -1

    @property
    def worker_id(self) -> str:
        return self._entry.worker_id if self._entry else ""

    def cancelled(self, row: ResponseRow) -> None:
        """A foreground run is not cancelled through its row: it has none."""

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

    async def result(self) -> dict[str, Any]:
        """The final response, for a client that does not stream.

        Raises:
            ApiError: There is none: refused by the handler, failed before it began, or invalid output (B30).
        """
        return await asyncio.shield(self._result)

    async def frames(self) -> AsyncGenerator[bytes]:
        """The stream, ending with its terminal event; an error before the first event is one `error` event."""
        while (frame := await self._frames.get()) is not None:
            yield frame

    # -- execution --------------------------------------------------------------------------------------------------

    async def execute(self) -> None:
        """Run to the end; the readers are told whatever happens."""
        handler = asyncio.get_running_loop().create_task(self._enter(), name=f"handler-{self._record.response_id}")
        try:
            await self._record_opening()
            await self._run(handler)
        except Exception as error:
            _log.error("response %s could not be made", self._record.response_id, exc_info=error)
            await self._tell(error)
        finally:
            self._muted = True
            handler.cancel()
            await settled(handler)
            self._finished.set()

    async def _record_opening(self) -> None:
        if self._recorded is None:
            return
        try:
            self._entry = self._entry or await open_foreground(self._runtime, self._key, self._record)
        except BaseException:
            self._recorded.cancel()
            raise
        self._recorded.set_result(None)

    async def _run(self, handler: asyncio.Task[None]) -> None:
        await self._wait(handler, self._ending, self._gone, self._must_leave)
        if self._must_leave.done() and not (self._ending.done() or self._gone.done() or handler.done()):
            self._context.shutdown.set()
            grace = self._runtime.app.options.shutdown_grace_period_seconds
            await self._wait(handler, self._ending, self._gone, timeout=grace)
        if self._ending.done():
            await self._finish(self._ending.result())
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
                for stamped in result:
                    await self._send(stamped.sequence, stamped.frame)

    async def _send(self, sequence: int, frame: bytes) -> None:
        """Hand a frame to the client, not before the run is recorded (R1)."""
        if self._recorded is not None and not self._recorded.done():
            await asyncio.wait({self._recorded})
        if self._recorded is not None and self._recorded.cancelled():
            return
        if self._record.request.get("stream") and not self._gone.done():
            await self._frames.put(frame)
            self._last_sent = sequence

    # -- the ways to end --------------------------------------------------------------------------------------------

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
            await self._give_up_key()
            self._close_entry()
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
        snapshot = ending.snapshot
        if self._stored:
            snapshot = await self._store(snapshot)
        for sequence, frame in terminal_frames(snapshot, self._stamper.last_sequence):
            await self._send(sequence, frame)
        if not self._result.done():
            self._result.set_result(strip_internal(snapshot))
        await self._end_frames()

    async def _store(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Insert the row with its outcome; what counts is the row that stands in the end."""
        mark = uuid.uuid4().hex
        try:
            return await self._insert(snapshot, mark, self._runtime.settings.finish_patience)
        except StorageUnavailable:
            _log.exception("response %s: the outcome could not be stored", self._record.response_id)
        snapshot = failed(snapshot, "storage_error", "The storage did not answer while the response was finished.")
        # R14: the client hears of it now, the record follows as soon as storage answers.
        self._runtime.spawn(self._insert_stubbornly(snapshot), f"storing-{self._record.response_id}")
        return snapshot

    async def _insert_stubbornly(self, snapshot: dict[str, Any]) -> None:
        """The record of what the client was told already, even over a write of ours that nobody heard of (W4)."""
        while True:
            try:
                stored = await self._insert(snapshot, uuid.uuid4().hex, self._runtime.settings.finish_patience)
                if stored["status"] != snapshot["status"]:
                    await self._overwrite(snapshot)
                return
            except (StorageUnavailable, OwnershipLost):
                await asyncio.sleep(STORAGE_RETRY_SECONDS)

    async def _overwrite(self, snapshot: dict[str, Any]) -> None:
        storage, settings = self._runtime.storage, self._runtime.settings
        row = await storage.rows.read(self._key, self._record.response_id)
        if row.deleted:
            return
        stored = await storage.payloads.put(self._key, row.id, "snapshot", jsonio.dumps(snapshot))
        told = replace(
            row,
            status=snapshot["status"],
            snapshot=stored,
            completed_at=None,
            error_code=str(snapshot["error"]["code"]),
        )
        await replace_row(storage, told, settings.finish_patience)

    async def _insert(self, snapshot: dict[str, Any], mark: str, patience: float) -> dict[str, Any]:
        storage = self._runtime.storage
        async for attempt in patiently(patience):
            with attempt:
                stored = await storage.payloads.put(
                    self._key, self._record.response_id, "snapshot", jsonio.dumps(snapshot)
                )
                assert self._entry is not None  # opened before anything could end
                request = self._entry.request
                row = first_row(self._key, self._record, self._disposition, request, status=snapshot["status"])
                error = snapshot.get("error")
                row = replace(
                    row,
                    snapshot=stored,
                    generation=1,
                    attempt=1,
                    completed_at=snapshot.get("completed_at"),
                    error_code=str(error["code"]) if isinstance(error, dict) else "",
                    last_sequence=self._stamper.last_sequence,
                )
                try:
                    await storage.rows.insert(row, mark=mark)
                except AlreadyExists:
                    snapshot = await self._decided_by_another()
                self._close_entry()
        return snapshot

    async def _decided_by_another(self) -> dict[str, Any]:
        row = await self._runtime.storage.rows.read(self._key, self._record.response_id)
        if row.snapshot is None:
            raise StorageError("A finished response has no snapshot.")
        snapshot: dict[str, Any] = jsonio.loads(await self._runtime.storage.payloads.get(row.snapshot))
        return snapshot

    async def _give_up_key(self) -> None:
        """Nothing will be stored that an idempotency key could stand for (I1)."""
        if self._request_key is not None:
            await self._request_key.release(self._record.response_id)

    def _close_entry(self) -> None:
        if self._entry is not None:
            close_run(self._runtime, self._entry.worker_id, self._record.response_id)

    async def _tell(self, error: Exception) -> None:
        """Answer with an error instead of a response; on a stream it is one event.

        After those that were sent (B8).
        """
        self._muted = True
        self._set_error(error)
        if self._record.request.get("stream") and not self._gone.done():
            answer = answer_to(error) if isinstance(error, ApiError | StorageUnavailable) else ServerError()
            await self._frames.put(sse.encode(error_event(self._last_sent + 1, answer)))
        await self._end_frames()

    def _set_error(self, error: Exception) -> None:
        if not self._result.done():
            self._result.set_exception(error)
            self._result.exception()  # looked at: a client that streams never asks for it

    async def _end_frames(self) -> None:
        if not self._gone.done():
            put = asyncio.ensure_future(self._frames.put(None))
            await self._wait(put, self._gone)
            put.cancel()
