"""Readers of streams: live ones, resumed ones, and copies of finished ones; all get the bytes of the log (V3).

While a run of this process owns the response, its readers are fed from memory after each acknowledged append.
Otherwise one poller per response and process tails the log, whatever the number of readers: from `tail_poll_min`
seconds after data up to `tail_poll_max` while it is silent. A reader that is further behind than memory goes reads
the log by itself. A silent poller looks at the row now and then: for a newer segment, and for an outcome whose
terminal frame was lost, which it completes (R6) rather than make up an end; where that is impossible, the stream ends
without. A log that is not there, of a response that is, was cleaned up before its row was inserted (R2): it is waited
for, the next claim makes it anew.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from protocol import sse
from protocol.response import TERMINAL_STATUSES
from resilience.feed import Feed
from resilience.log_cursor import LogCursor
from resilience.log_end import read_log_end
from resilience.log_repair import complete_log
from resilience.options import EngineSettings
from resilience.response_row import read_row
from resilience.retry import patiently
from storage.connection import Storage
from storage.errors import NotFound, StorageError, StorageUnavailable
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.tail")


class Tails:
    """The feeds and pollers of a process."""

    def __init__(self, storage: Storage, settings: EngineSettings) -> None:
        self._storage = storage
        self._settings = settings
        self._feeds: dict[str, Feed] = {}
        self._pollers: dict[Feed, asyncio.Task[None]] = {}

    def feed(self, response_id: str) -> Feed:
        """The feed that a run of this process publishes to, made on demand."""
        return self._feeds.setdefault(response_id, Feed(self._settings.feed_bytes))

    def release(self, response_id: str) -> None:
        """Forget the feed of a response that nobody here runs or reads."""
        feed = self._feeds.get(response_id)
        if feed is not None and not feed.readers and not feed.local:
            del self._feeds[response_id]

    async def follow(self, row: ResponseRow, after: int) -> AsyncGenerator[bytes]:
        """The frames with a sequence number above `after`, up to the terminal one, as they become durable (B4).

        It may end before: when storage is silent for too long, or before the platform's time limit ends the process
        (R13). No event says so, for it would have the number of one in the log (V4): the client resumes.
        """
        loop_time = asyncio.get_running_loop().time
        leave_at = loop_time() + self._settings.handover_after
        try:
            async with aclosing(self._frames(row, after + 1, leave_at)) as frames:
                async for _, frame in frames:
                    yield frame
                    if loop_time() >= leave_at:  # a slow client: there is always another frame
                        return
        except NotFound:
            _log.info("response %s: deleted while it was read", row.id)
        except StorageError:
            _log.exception("response %s: a stream broke off", row.id)

    async def _frames(self, row: ResponseRow, wanted: int, leave_at: float) -> AsyncGenerator[tuple[int, bytes]]:
        if row.status in TERMINAL_STATUSES and row.id not in self._feeds:
            try:
                async with aclosing(self._copy(row, wanted)) as frames:
                    async for sequence, frame in frames:
                        yield sequence, frame
                        wanted = sequence + 1
                        if sse.is_terminal(frame):
                            return
                if await self._ends_before(row, wanted):
                    return
            except NotFound:
                pass  # the row says whether it was deleted
        # Decided or not, its last frame is still to come, from its owner or by repair, or came behind the copy.
        async with aclosing(self._live(row, wanted, leave_at)) as live:
            async for sequence, frame in live:
                yield sequence, frame
                if sse.is_terminal(frame):
                    return

    async def stop(self) -> None:
        """End the pollers."""
        tasks = list(self._pollers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _copy(self, row: ResponseRow, wanted: int) -> AsyncGenerator[tuple[int, bytes]]:
        """What the log of a decided response holds now, straight from storage."""
        cursor = await self._patiently(LogCursor.at, self._storage.log, row.segments, wanted)
        while batch := await self._patiently(cursor.read):
            for numbered in batch:
                yield numbered

    async def _ends_before(self, row: ResponseRow, wanted: int) -> bool:
        """True if the log has its terminal frame, and nothing from the wanted one on."""
        end = await self._patiently(read_log_end, self._storage.log, row)
        return end.closed and end.last_sequence < wanted

    async def _patiently[**P, T](self, read: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """For a client, a stream that ends for want of an answer looks like one that is over."""
        async for attempt in patiently(self._settings.finish_patience):
            with attempt:
                return await read(*args, **kwargs)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _live(self, row: ResponseRow, wanted: int, leave_at: float) -> AsyncGenerator[tuple[int, bytes]]:
        feed = self.feed(row.id)
        feed.readers += 1
        try:
            while True:
                if (frame := feed.get(wanted)) is not None:
                    yield wanted, frame
                    wanted += 1
                elif feed.first is not None and wanted < feed.first:
                    async with aclosing(self._catch_up(row, wanted, feed.first)) as behind:
                        async for sequence, frame in behind:
                            yield sequence, frame
                            wanted = sequence + 1
                elif feed.ended:
                    if feed.failure is not None:
                        raise feed.failure
                    return
                else:
                    self._ensure_poller(row, feed, wanted)
                    async with asyncio.timeout_at(leave_at):
                        await feed.changed()
        except TimeoutError:
            return
        finally:
            feed.readers -= 1
            self._drop_if_unread(row.id, feed)

    async def _catch_up(self, row: ResponseRow, wanted: int, until: int) -> AsyncGenerator[tuple[int, bytes]]:
        """What lies before the feed, read from the log; it is all there, for the feed holds only what is durable."""
        now = await self._patiently(self._storage.rows.read, row.partition_key, row.id)
        if now.deleted:
            raise NotFound
        cursor = await self._patiently(LogCursor.at, self._storage.log, now.segments, wanted)
        while wanted < until:
            batch = await self._patiently(cursor.read)
            for sequence, frame in batch:
                if sequence >= until:
                    return
                yield sequence, frame
                wanted = sequence + 1
            if not batch:
                await asyncio.sleep(self._settings.tail_poll_min)

    def _ensure_poller(self, row: ResponseRow, feed: Feed, wanted: int) -> None:
        task = self._pollers.get(feed)
        if feed.local or (task is not None and not task.done()):
            return
        start = wanted if feed.next is None else feed.next
        self._pollers[feed] = asyncio.get_running_loop().create_task(self._poll(row, feed, start), name="log-tail")

    def _drop_if_unread(self, response_id: str, feed: Feed) -> None:
        if feed.readers:
            return
        task = self._pollers.pop(feed, None)
        if task is not None:
            task.cancel()
        self.release(response_id)

    async def _poll(self, row: ResponseRow, feed: Feed, wanted: int) -> None:
        try:
            while not feed.local:
                try:
                    await self._poll_until_end(row, feed, wanted)
                    return
                except NotFound:
                    if not await self._expects_log(row, feed):
                        self._break_off(row.id, feed)
                        return
                await asyncio.sleep(self._settings.tail_poll_max)
        except Exception as error:
            # Every reader must hear of it, or would wait for ever.
            self._break_off(row.id, feed, error)

    async def _expects_log(self, row: ResponseRow, feed: Feed) -> bool:
        """True for a log that was cleaned up too early, and of which nobody has seen anything.

        The next claim makes it anew; where there is none, because the outcome is decided, the repair does.
        """
        if feed.next:
            return False
        now = await self._patiently(read_row, self._storage, row.partition_key, row.id)
        if now is None or now.deleted:
            return False
        if now.status in TERMINAL_STATUSES:
            return await self._patiently(complete_log, self._storage, now)
        return True

    def _break_off(self, response_id: str, feed: Feed, failure: Exception | None = None) -> None:
        """End a feed before its terminal frame, for those who read it now; who comes later begins anew."""
        if feed.local:
            return  # a run feeds it by now
        feed.end(failure)
        if self._feeds.get(response_id) is feed:
            del self._feeds[response_id]

    async def _poll_until_end(self, row: ResponseRow, feed: Feed, wanted: int) -> None:
        cursor = await self._cursor(row, feed, wanted)
        loop_time = asyncio.get_running_loop().time
        pause = self._settings.tail_poll_min
        looked = loop_time()
        while not feed.local:
            try:
                batch = await cursor.read()
            except StorageUnavailable:
                batch = []
            if batch:
                feed.publish(batch)
                pause = self._settings.tail_poll_min
                looked = loop_time()
            if cursor.ended:
                feed.end()
                return
            if batch:
                continue
            if cursor.continued or loop_time() - looked >= self._settings.tail_row_check_interval:
                looked = loop_time()
                if not await self._may_go_on(row, cursor):
                    self._break_off(row.id, feed)
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, self._settings.tail_poll_max)

    async def _cursor(self, row: ResponseRow, feed: Feed, wanted: int) -> LogCursor:
        """Begin where a reader wants to, but never beyond the end: a later reader may want what comes before."""
        if wanted > 0:
            end = await self._patiently(read_log_end, self._storage.log, row)
            wanted = min(wanted, end.last_sequence + 1)
        cursor = await self._patiently(LogCursor.at, self._storage.log, row.segments, wanted)
        if feed.next is None:  # else a run of this process was faster
            feed.begin(wanted)
        return cursor

    async def _may_go_on(self, row: ResponseRow, cursor: LogCursor) -> bool:
        """Learn of a newer segment; complete the log of a response that ended without its terminal frame.

        False if there will be no such frame.
        """
        try:
            now = await self._storage.rows.read(row.partition_key, row.id)
            cursor.follow(now.segments)
            if now.status in TERMINAL_STATUSES and cursor.at_newest:
                return await complete_log(self._storage, now)
        except StorageUnavailable:
            pass  # it will be looked at again
        return True
