"""The engine: what the functions of an app call, one method each.

HTTP functions accept, read, cancel and delete; the queue function runs; the watch function adopts; the timer
sweeps. Every method may be called again with the same message at any time, and may be cut off at any instruction.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from protocol import ids, items
from protocol.errors import (
    PreviousResponseNotFound,
    ResponseDeleted,
    ResponseNotFound,
    StreamUnavailable,
)
from protocol.response import strip_internal
from resilience import acceptance, cancellation, deletion
from resilience.adoption import adopt, sweep
from resilience.app import ResponsesApp
from resilience.background_runs import BackgroundRuns
from resilience.dispatch import Disposition, decide
from resilience.foreground_run import ForegroundRun
from resilience.history import History
from resilience.options import EngineSettings
from resilience.ownership import has_log, read_row
from resilience.placement import partition_key, tenant_of
from resilience.record import RequestRecord
from resilience.runtime import Runtime, unix_time
from resilience.snapshots import record_of, snapshot_of
from resilience.tail import Tails
from resilience.worker import PusherFactory, ThreadPusher, Worker
from storage.connection import Storage
from storage.queues import MalformedMessage, parse_start, parse_watch
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A validated ``POST /responses``.

    Attributes:
        request: The body.
        principal: Who sends it.
        client_headers: Its ``x-client-*`` headers, names in lower case.
        query_parameters: Its query.
    """

    request: dict[str, Any]
    principal: str
    client_headers: Mapping[str, str]
    query_parameters: Mapping[str, str]


class Engine:
    """One per process, on the event loop of its first use."""

    def __init__(
        self,
        app: ResponsesApp,
        storage: Storage,
        settings: EngineSettings,
        *,
        now: Callable[[], int] = unix_time,
        pusher: PusherFactory = ThreadPusher,
    ) -> None:
        self.runtime = Runtime(
            storage=storage,
            settings=settings,
            app=app,
            worker=Worker(storage, settings, pusher),
            tails=Tails(storage, settings),
            now=now,
        )
        self._background = BackgroundRuns(self.runtime)

    # -- HTTP -------------------------------------------------------------------------------------------------------

    async def create(self, call: Call, disconnected: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """A response for a client that does not stream: final in the foreground, accepted in the background (C1,
        C3, C5).

        Raises:
            ApiError: It is refused or failed before it began; nothing is recorded then.
            StorageError: It could not be recorded (R1).
        """
        record, disposition, key = await self._admit(call)
        if disposition.runs_in_background:
            row = await self._accept(key, record, disposition)
            # B10: whatever came of it meanwhile, this answer is about its acceptance.
            return strip_internal(record.snapshot(self.runtime.app.options.default_model, row.status))
        run = self._start_foreground(key, record, disposition)
        return await self._result(run, disconnected)

    async def create_stream(self, call: Call) -> AsyncGenerator[bytes]:
        """The frames of a response for a client that streams (C2, C4, C6). It is accepted before this returns.

        Raises:
            ApiError: It is refused; nothing is recorded then.
            StorageError: It could not be recorded (R1).
        """
        record, disposition, key = await self._admit(call)
        if disposition.runs_in_background:
            return self.runtime.tails.follow(await self._accept(key, record, disposition), -1)
        return self._foreground_frames(self._start_foreground(key, record, disposition))

    async def get(self, principal: str, response_id: str) -> dict[str, Any]:
        """The response as it stands (B5).

        Raises:
            ResponseNotFound: There is none for this principal.
            ResponseDeleted: It was deleted.
        """
        return strip_internal(await snapshot_of(self.runtime, await self._existing(principal, response_id)))

    async def replay(self, principal: str, response_id: str, after: int) -> AsyncGenerator[bytes]:
        """The frames of a background stream above that sequence number, to its end (B2, B4).

        Raises:
            ResponseNotFound: There is none for this principal.
            ResponseDeleted: It was deleted.
            StreamUnavailable: It was not created with ``background`` and ``stream``.
        """
        row = await self._existing(principal, response_id)
        if not has_log(row):
            raise StreamUnavailable
        return self.runtime.tails.follow(row, after)

    async def cancel(self, principal: str, response_id: str) -> dict[str, Any]:
        """The cancelled response; see `cancellation.cancel`."""
        return await cancellation.cancel(self.runtime, self._key(principal, response_id), response_id)

    async def delete(self, principal: str, response_id: str) -> None:
        """Delete a finished response; see `deletion.delete`."""
        await deletion.delete(self.runtime, self._key(principal, response_id), response_id)

    async def input_items(self, principal: str, response_id: str, query: items.ListQuery) -> dict[str, Any]:
        """A page of the request's input items, references resolved.

        Raises:
            ResponseNotFound: There is none for this principal.
            ResponseDeleted: It was deleted.
        """
        row = await self._existing(principal, response_id)
        record = await record_of(self.runtime, row)
        history = History(self.runtime.storage, row.partition_key, record)
        return items.page(await history.resolve(items.input_items(record.request, response_id)), query)

    async def ready(self) -> None:
        """Return if storage answers.

        Raises:
            StorageError: It does not.
        """
        await self.runtime.storage.ping()

    # -- queues and timer -------------------------------------------------------------------------------------------

    async def run_message(self, text: str) -> None:
        """A start message: run its response, unless somebody does or did. Returns when this process is done with it.

        Raises:
            StorageError: The message has to come back.
        """
        try:
            message = parse_start(text)
            key = partition_key(message.tenant, message.id)
        except (MalformedMessage, ValueError):
            _log.error("a start message that is none was dropped")
            return
        await self._background.run(key, message.id)

    async def watch_message(self, text: str) -> None:
        """A watch message: its worker has stopped pushing.

        Raises:
            StorageError: The message has to come back.
        """
        try:
            message = parse_watch(text)
        except MalformedMessage:
            _log.error("a watch message that is none was dropped")
            return
        await adopt(self.runtime, message.worker)

    async def poison_message(self, text: str) -> None:
        """A start message that failed too often: its response fails, unless somebody runs it (R5)."""
        try:
            message = parse_start(text)
            key = partition_key(message.tenant, message.id)
        except (MalformedMessage, ValueError):
            _log.error("a poison message that is none was dropped")
            return
        await self._background.give_up(key, message.id)

    async def poison_watch(self, text: str) -> None:
        """A watch message that failed too often: once more from the start, it is too important to be dropped."""
        try:
            await self.runtime.storage.watch.send(
                parse_watch(text).worker, delay=self.runtime.settings.watch_visibility
            )
        except MalformedMessage:
            _log.error("a poison watch message that is none was dropped")

    async def sweep(self) -> None:
        """The timer: what all messages missed."""
        await sweep(self.runtime)

    async def drain(self) -> None:
        """Leave: every run of this process ends within its grace or goes to another worker (B24)."""
        self._background.drain()
        running = list(self.runtime.running.values())
        for run in running:
            run.hand_over()
        await asyncio.gather(*(run.ended() for run in running))
        await self.runtime.worker.stop()

    async def close(self) -> None:
        """End everything at once, as a crash would, and close the connections; for tests."""
        await self.runtime.stop_tasks()
        await self.runtime.tails.stop()
        await self.runtime.worker.stop()
        await self.runtime.storage.aclose()

    def _key(self, principal: str, response_id: str) -> str:
        return partition_key(tenant_of(principal), response_id)

    async def _existing(self, principal: str, response_id: str) -> ResponseRow:
        row = await read_row(self.runtime.storage, self._key(principal, response_id), response_id)
        if row is None:
            raise ResponseNotFound(response_id)
        if row.deleted:
            raise ResponseDeleted(response_id)
        return row

    # -- accepting --------------------------------------------------------------------------------------------------

    async def _admit(self, call: Call) -> tuple[RequestRecord, Disposition, str]:
        request = call.request
        disposition = decide(
            store=request.get("store") is not False,
            background=bool(request.get("background")),
            resilient_background=self.runtime.app.options.resilient_background,
        )
        tenant = tenant_of(call.principal)
        previous = str(request.get("previous_response_id") or "")
        record = RequestRecord(
            response_id=ids.new_response_id(_partition(request, previous)),
            created_at=self.runtime.now(),
            principal=call.principal,
            request=request,
            client_headers=dict(call.client_headers),
            query_parameters=dict(call.query_parameters),
            agent_reference=request.get("agent_reference"),
        )
        if previous:
            row = await read_row(self.runtime.storage, partition_key(tenant, previous), previous)
            if row is None or row.deleted:
                raise PreviousResponseNotFound(previous)
        return record, disposition, partition_key(tenant, record.response_id)

    async def _accept(self, key: str, record: RequestRecord, disposition: Disposition) -> ResponseRow:
        if self.runtime.settings.eager_start and self._background.has_room():
            return await self._background.accept(key, record, disposition)
        return await acceptance.accept(self.runtime, key, record, disposition)

    # -- foreground -------------------------------------------------------------------------------------------------

    def _start_foreground(self, key: str, record: RequestRecord, disposition: Disposition) -> ForegroundRun:
        run = ForegroundRun(self.runtime, key, record, disposition)
        self.runtime.running[record.response_id] = run
        self.runtime.spawn(self._execute_foreground(run, record.response_id), f"run-{record.response_id}")
        return run

    async def _execute_foreground(self, run: ForegroundRun, response_id: str) -> None:
        # The platform would end the whole process at its time limit, and with it this run (R13).
        time_limit = asyncio.get_running_loop().call_later(self.runtime.settings.handover_after, run.hand_over)
        try:
            await run.execute()
        finally:
            time_limit.cancel()
            self.runtime.running.pop(response_id, None)

    async def _result(self, run: ForegroundRun, disconnected: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The run's result; a client that goes away meanwhile cancels it (B17)."""
        result = asyncio.ensure_future(run.result())
        while not result.done():
            await asyncio.wait({result}, timeout=self.runtime.settings.disconnect_poll_interval)
            if not result.done() and await disconnected():
                run.disconnect()
                break
        return await result

    async def _foreground_frames(self, run: ForegroundRun) -> AsyncGenerator[bytes]:
        try:
            async for frame in run.frames():
                yield frame
        finally:
            # Whether the client went away or the stream is over: after the end it changes nothing.
            run.disconnect()


def _partition(request: Mapping[str, Any], previous: str) -> str:
    """Where a new response lies: with its conversation, with its predecessor, or anywhere."""
    conversation = request.get("conversation")
    if conversation:
        return ids.derived_partition(str(conversation["id"]) if isinstance(conversation, dict) else str(conversation))
    return ids.partition_of(previous) if previous else ids.new_partition()
