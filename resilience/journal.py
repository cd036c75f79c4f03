"""The journal of a run: frames on their way to the log, group-committed.

One append is in flight at a time; what arrives meanwhile goes into the next (`Ownership.append` carries lease and
position). A frame that somebody waits for (the first event, the end of an item, a checkpoint, the terminal) is
appended at once; deltas wait for company, for a *linger* that grows from nothing with the age of the run and the
number of runs in the process, so that the first tokens are quick and a long run stays far from the block limit of
its segment.

Bytes that are not acknowledged are bounded: beyond that the handler waits. Frames reach the feed, and so any
client, only after storage acknowledged them (R8, V4).
"""

import asyncio
from collections.abc import Callable

from resilience.feed import Feed
from resilience.options import EngineSettings
from resilience.ownership import Ownership

LINGER_PER_SECOND_OF_AGE = 0.01
LINGER_PER_OTHER_RUN = 0.01


class Journal:
    """Writes the frames of one owned run; every method raises what storage made of the last append."""

    def __init__(
        self,
        ownership: Ownership,
        feed: Feed,
        settings: EngineSettings,
        runs: Callable[[], int],
        count: Callable[[int, int], None] = lambda frames, size: None,
    ) -> None:
        """`count` is told of every append: frames and bytes."""
        self._ownership = ownership
        self._feed = feed
        self._settings = settings
        self._runs = runs
        self._count = count
        self._pending: list[tuple[int, bytes]] = []
        self._unacknowledged = 0
        self._urgent = asyncio.Event()
        self._arrived = asyncio.Event()
        self._settled = asyncio.Condition()
        self._failure: Exception | None = None
        self._began = asyncio.get_running_loop().time()
        self._last_append = self._began
        self._pump = asyncio.get_running_loop().create_task(self._append_forever(), name="journal")

    async def write(self, sequence: int, frame: bytes, *, at_once: bool) -> None:
        """Take a frame; waits only while too many bytes are unacknowledged."""
        self._raise_failure()
        self._pending.append((sequence, frame))
        self._unacknowledged += len(frame)
        self._arrived.set()
        if at_once:
            self._urgent.set()
        if self._unacknowledged > self._settings.unacknowledged_bytes:
            self._urgent.set()
            async with self._settled:
                await self._settled.wait_for(
                    lambda: self._failure is not None or self._unacknowledged <= self._settings.unacknowledged_bytes
                )
            self._raise_failure()

    async def flush(self) -> None:
        """Return when every frame taken so far is in the log."""
        if self._pending:
            self._urgent.set()
        async with self._settled:
            await self._settled.wait_for(lambda: self._failure is not None or not self._unacknowledged)
        self._raise_failure()

    async def close(self) -> None:
        """Stop appending; what is not flushed is dropped."""
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _linger(self) -> float:
        age = asyncio.get_running_loop().time() - self._began
        wanted = max(age * LINGER_PER_SECOND_OF_AGE, (self._runs() - 1) * LINGER_PER_OTHER_RUN)
        return min(wanted, self._settings.linger_max)

    async def _append_forever(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                await self._wait_for_company()
                await self._append_next()
        except Exception as error:
            # Told to the handler's side with its next write or flush.
            self._failure = error
            async with self._settled:
                self._settled.notify_all()

    async def _wait_for_company(self) -> None:
        """Until the linger since the last append is over or somebody waits for a frame."""
        try:
            async with asyncio.timeout_at(self._last_append + self._linger()):
                await self._urgent.wait()
        except TimeoutError:
            pass

    async def _append_next(self) -> None:
        batch = self._take()
        if self._ownership.blocks >= self._settings.segment_blocks:
            await self._ownership.roll_over()
        data = b"".join(frame for _, frame in batch)
        await self._ownership.append(data, batch[-1][0])
        self._last_append = asyncio.get_running_loop().time()
        self._count(len(batch), len(data))
        self._feed.publish(batch)
        async with self._settled:
            self._unacknowledged -= len(data)
            self._settled.notify_all()

    def _take(self) -> list[tuple[int, bytes]]:
        """The frames of the next append: all that wait, up to its size limit."""
        size = count = 0
        for _, frame in self._pending:
            if count and size + len(frame) > self._settings.append_bytes:
                break
            size += len(frame)
            count += 1
        batch = self._pending[:count]
        del self._pending[:count]
        if not self._pending:
            self._arrived.clear()
            self._urgent.clear()
        return batch
