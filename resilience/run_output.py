"""The output of a background run: what is stored of what its handler says.

Frames go to the log through the journal, checkpoints to the row, the chain's metadata to the chain's row; every one
of these writes goes through `Ownership`, and raises `OwnershipLost` where storage refuses it. Which of the handler's
words still count is the run's to know; whatever arrives here counts.

Concurrency: what the handler says arrives one after the other. A write of the row that has begun is never cut off,
whatever becomes of the handler (`settle`).
"""

import asyncio
import hashlib
import logging
from collections.abc import Coroutine
from typing import Any

from protocol import jsonio, sse
from protocol.errors import ApiError, error_event
from protocol.event_stream import CHECKPOINT
from protocol.response import fill_response
from resilience.attempt import Attempt
from resilience.dispatch import Disposition
from resilience.feed import Feed
from resilience.journal import Journal
from resilience.outcome import terminal_frames
from resilience.ownership import Ownership
from resilience.response_row import has_log
from resilience.runtime import Runtime
from resilience.stamper import Ending, Stamped, Stamper, check_size
from resilience.tasks import settled
from storage.errors import StorageError, StorageRejected

_log = logging.getLogger("resilience.run")


class RunOutput:
    """Stores the output of one handler entry.

    Args:
        stamper: Numbers the events of this entry.
        feed: Where this process's readers get the frames; None if the response has no log.
        persisted: The snapshot that the row has, as stored; None before the first one.
    """

    def __init__(
        self,
        runtime: Runtime,
        ownership: Ownership,
        attempt: Attempt,
        stamper: Stamper,
        feed: Feed | None,
        persisted: bytes | None,
    ) -> None:
        self.stamper = stamper
        self._response_id = ownership.row.id
        self._ownership = ownership
        self._attempt = attempt
        self._feed = feed
        self._persisted = _digest(persisted) if persisted is not None else b""  # empty while it is not known
        self._storing: asyncio.Task[None] | None = None
        self._journal: Journal | None = None
        if feed is not None:
            feed.begin(ownership.last_sequence + 1)
            self._journal = Journal(
                ownership,
                feed,
                runtime.settings,
                lambda: len(runtime.running),
                runtime.telemetry.count_append,
            )

    async def take(self, event: Any) -> Ending | None:
        """Store what an event says; one that is terminal is not stored, but returned as the outcome.

        Raises:
            InvalidEvent: The handler's output is not valid (B30).
        """
        if isinstance(event, dict) and event.get("type") == CHECKPOINT:
            await self._checkpoint(event)
            return None
        result = self.stamper.stamp(event)
        if isinstance(result, Ending):
            return result
        if not self._attempt.has_begun:
            self._attempt.begun()
        await self.emit(result)
        return None

    async def emit(self, frames: list[Stamped]) -> None:
        """Put frames on their way to the log."""
        if self._journal is not None:
            for stamped in frames:
                await self._journal.write(stamped.sequence, stamped.frame, at_once=stamped.at_once)

    async def flush(self) -> None:
        """Return when all frames are in the log."""
        if self._journal is not None:
            await self._journal.flush()

    async def keep(self, metadata: bytes) -> None:
        """Store the chain's metadata, after the frames before it (S7)."""
        await self.flush()
        await self._store(self._ownership.keep(metadata))

    async def _checkpoint(self, event: dict[str, Any]) -> None:
        """R11: durable before the handler goes on; a storage that fails costs the checkpoint, not the run."""
        if self._ownership.row.disposition != Disposition.RESILIENT:
            return
        given = event.get("response")
        snapshot = fill_response(
            given if isinstance(given, dict) else {}, self.stamper.snapshot(), status="in_progress"
        )
        check_size(snapshot)
        data = jsonio.dumps(snapshot)
        if _digest(data) == self._persisted:
            return
        try:
            await self.flush()
            self._persisted = b""  # a write that fails, or is cut off, may have been stored or may be yet
            await self._store(self._ownership.checkpoint(data))
            self._persisted = _digest(data)
        except StorageError:
            _log.warning("response %s: checkpoint not stored", self._response_id, exc_info=True)

    async def _store(self, write: Coroutine[Any, Any, None]) -> None:
        # Never cut off: the etag of a write whose reply nobody read would refuse this very owner's next one.
        self._storing = asyncio.get_running_loop().create_task(write)
        await asyncio.shield(self._storing)

    async def settle(self) -> None:
        """Wait for a write of the row that a cancelled handler has left behind."""
        if self._storing is not None:
            await settled(self._storing)

    async def end(self, snapshot: dict[str, Any], refused: ApiError | None = None) -> None:
        """Append the terminal frames of an outcome that the row has, and end the feed (V1).

        `refused` takes their place as the stream's one event (B8). The outcome stands without them: where storage does
        not take them, no other claim could do better.
        """
        if self._feed is None or not has_log(self._ownership.row):
            return
        if refused is not None:
            frames = [(0, sse.encode(error_event(0, refused)))]
        else:
            frames = terminal_frames(snapshot, self._ownership.last_sequence)
        try:
            await self._ownership.append(b"".join(frame for _, frame in frames), frames[-1][0])
            self._feed.publish(frames)
        except StorageRejected:
            _log.exception("response %s: storage does not take the end of its log", self._response_id)
        self._feed.end()

    async def close(self) -> None:
        """Append nothing more; what is not flushed is dropped."""
        if self._journal is not None:
            await self._journal.close()


def _digest(snapshot: bytes) -> bytes:
    """What tells an identical snapshot, whatever its size."""
    return hashlib.sha256(snapshot).digest()
