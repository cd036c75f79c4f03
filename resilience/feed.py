"""Recent frames of one response, in memory, for the readers in this process.

A feed is fed by the run itself while this process owns it (after each acknowledged append), else by the one poller
that tails the log for all readers here. It keeps the last ``feed_bytes`` of frames; a reader that is further behind
reads the log by itself.
"""

import asyncio
from collections import deque
from collections.abc import Iterable


class Feed:
    """Frames by their sequence number, contiguous from `first` up to, not including, `next`."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._first: int | None = None
        self._changed = asyncio.Event()
        self.ended = False
        """True once the terminal frame was published or nothing more will come."""
        self.failure: Exception | None = None
        self.local = False
        """True while a run of this process publishes here: nobody needs to poll."""
        self.readers = 0

    @property
    def first(self) -> int | None:
        """The oldest number still held, or the first that will be; None before anything was published."""
        return self._first

    @property
    def next(self) -> int | None:
        """The number that the next frame will have; None before anything was published."""
        return None if self._first is None else self._first + len(self._frames)

    def begin(self, sequence: int) -> None:
        """Say which number comes next, where nothing was published yet or a gap lies before it."""
        if self.next != sequence:
            self._frames.clear()
            self._size = 0
            self._first = sequence
        self._notify()

    def publish(self, batch: Iterable[tuple[int, bytes]]) -> None:
        """Add frames in order; those already held are passed over."""
        for sequence, frame in batch:
            if self._first is None:
                self._first = sequence
            if self.next is not None and sequence < self.next:
                continue
            if sequence != self.next:
                self.begin(sequence)
            self._frames.append(frame)
            self._size += len(frame)
        while self._size > self._capacity and len(self._frames) > 1:
            assert self._first is not None
            self._size -= len(self._frames.popleft())
            self._first += 1
        self._notify()

    def get(self, sequence: int) -> bytes | None:
        """The frame with that number, if it is held."""
        if self._first is None or not self._first <= sequence < self._first + len(self._frames):
            return None
        return self._frames[sequence - self._first]

    def end(self, failure: Exception | None = None) -> None:
        """Nothing more will come; with a failure the readers raise it."""
        self.ended = True
        self.failure = failure
        self._notify()

    def wake(self) -> None:
        """Let every waiting reader look again."""
        self._notify()

    async def changed(self) -> None:
        """Wait for the next publication, end or change of the source."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
