"""The engine: what the functions of an app call, one method each.

HTTP functions accept, read, cancel and delete; the queue function runs; the watch function adopts; the timer
sweeps. Every method may be called again with the same message at any time, and may be cut off at any instruction.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from protocol import items
from protocol.errors import (
    StreamUnavailable,
)
from protocol.response import strip_internal
from resilience import cancellation, conversations, deletion
from resilience.adoption import adopt, sweep
from resilience.app import ResponsesApp
from resilience.background_runs import BackgroundRuns
from resilience.creation import Call, Creation
from resilience.history import History
from resilience.options import EngineSettings
from resilience.placement import partition_key, tenant_of
from resilience.response_row import has_log
from resilience.retention import expire
from resilience.run_watch import RunWatch
from resilience.runtime import Runtime, unix_time
from resilience.snapshots import shown_record, shown_row, snapshot_of
from resilience.tail import Tails
from resilience.telemetry import Telemetry, shared
from resilience.watch_pusher import PusherFactory, ThreadPusher
from resilience.worker import Worker
from storage.connection import Storage
from storage.queues import MalformedMessage, parse_start, parse_watch

_log = logging.getLogger("resilience.engine")

_CLEAN_UP_AGAIN_AFTER = 60.0
"""Seconds until a cleanup message that failed too often is seen again."""


__all__ = ["Call", "Engine"]


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
        telemetry: Telemetry | None = None,
    ) -> None:
        self.runtime = Runtime(
            storage=storage,
            settings=settings,
            app=app,
            worker=Worker(storage, settings, pusher, now),
            tails=Tails(storage, settings),
            now=now,
            telemetry=telemetry or shared(),
        )
        watch = RunWatch(self.runtime)
        self._background = BackgroundRuns(self.runtime, watch)
        self.runtime.start_soon = self._background.start_soon
        self._creation = Creation(self.runtime, self._background, watch)

    # -- HTTP -------------------------------------------------------------------------------------------------------

    async def create(self, call: Call, disconnected: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """A response for a client that does not stream: final in the foreground, accepted in the background (C1,
        C3, C5).

        Raises:
            ApiError: It is refused or failed before it began; nothing is recorded then.
            StorageError: It could not be recorded (R1).
        """
        return await self._creation.answer(call, disconnected)

    async def create_stream(self, call: Call) -> AsyncGenerator[bytes]:
        """The frames of a response for a client that streams (C2, C4, C6). It is accepted before this returns.

        Raises:
            ApiError: It is refused; nothing is recorded then.
            StorageError: It could not be recorded (R1).
        """
        return await self._creation.stream(call)

    async def get(self, principal: str, response_id: str) -> dict[str, Any]:
        """The response as it stands (B5).

        Raises:
            ResponseNotFound: There is none for this principal.
            ResponseDeleted: It was deleted.
        """
        return strip_internal(await snapshot_of(self.runtime, await shown_row(self.runtime, principal, response_id)))

    async def replay(self, principal: str, response_id: str, after: int) -> AsyncGenerator[bytes]:
        """The frames of a background stream above that sequence number, to its end (B2, B4).

        Raises:
            ResponseNotFound: There is none for this principal.
            ResponseDeleted: It was deleted.
            StreamUnavailable: It was not created with ``background`` and ``stream``.
        """
        row = await shown_row(self.runtime, principal, response_id)
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
        row = await shown_row(self.runtime, principal, response_id)
        record = await shown_record(self.runtime, row)
        history = History(self.runtime.storage, row.partition_key, record, row.turn)
        resolved = await history.resolve(items.input_items(record.request, response_id))
        # A reference may lead to another response's output, which keeps its handler's own notes (R12).
        return items.page([strip_internal(item) for item in resolved], query)

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
        if message.cleanup and conversations.is_address(message.id):
            await conversations.clean_up(self.runtime, key, late=message.late)
        elif message.cleanup:
            await self._background.clean_up(key, message.id, late=message.late)
        else:
            await self._background.run(key, message.id, late=message.late)

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
        await adopt(self.runtime, message)

    async def poison_message(self, text: str) -> None:
        """A start message that failed too often: its response fails, unless somebody runs it (R5).

        A cleanup message: once more from the start, nothing else leads to what a deletion has left (V10).
        """
        self.runtime.telemetry.poisoned.add(1, {"responses.queue": "work"})
        try:
            message = parse_start(text)
            key = partition_key(message.tenant, message.id)
        except (MalformedMessage, ValueError):
            _log.error("a poison message that is none was dropped")
            return
        if message.cleanup:
            await self.runtime.storage.work.send_cleanup(
                message.tenant, message.id, delay=_CLEAN_UP_AGAIN_AFTER, late=message.late
            )
        else:
            await self._background.give_up(key, message.id)

    async def poison_watch(self, text: str) -> None:
        """A watch message that failed too often: once more from the start, it is too important to be dropped."""
        self.runtime.telemetry.poisoned.add(1, {"responses.queue": "watch"})
        try:
            message = parse_watch(text)
        except MalformedMessage:
            _log.error("a poison watch message that is none was dropped")
            return
        delay = self.runtime.settings.watch_visibility
        await self.runtime.storage.watch.send(message.worker, delay=delay, epoch=message.epoch, again=message.again)

    async def sweep(self) -> None:
        """The timer: what all messages missed."""
        await sweep(self.runtime)

    async def expire(self) -> None:
        """The retention timer: delete a batch of what ended long enough ago."""
        await expire(self.runtime)

    async def drain(self) -> None:
        """Leave: every run of this process ends within its grace or goes to another worker (B24)."""
        self._background.drain()
        self._creation.drain()
        for run in self.runtime.running.values():
            run.hand_over()
        while running := list(self.runtime.running.values()):  # others may begin meanwhile
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
