"""A read position in a log of one or more segments, and how to find it from a sequence number.

Only whole frames are returned, byte for byte as they were appended. A segment that has a successor is read up to
the length that the row names; the newest one up to where it ends now, or to the `CONTINUED` comment that says that
the row names a successor.
"""

from collections.abc import Sequence

from protocol import sse
from resilience.ownership import CONTINUED
from storage.log import EventLog
from storage.rows import Segment

READ_BYTES = 1 << 20
"""The most bytes of one range read."""

_SCAN_BYTES = 256 << 10
"""A stretch this short is read through rather than searched."""

_PROBE_BYTES = 16 << 10


class LogCursor:
    """Reads a log forward from the event with a given number."""

    def __init__(self, log: EventLog, segments: Sequence[Segment], wanted: int, index: int, offset: int) -> None:
        self._log = log
        self._segments = list(segments)
        self._wanted = wanted
        self._index = index
        self._offset = offset
        self._rest = b""
        self.continued = False
        """True when the newest known segment was closed: `follow` needs the row's newer list."""
        self.ended = False
        """True when the terminal frame was passed, whether or not it was wanted."""

    @classmethod
    async def at(cls, log: EventLog, segments: Sequence[Segment], wanted: int) -> "LogCursor":
        """A cursor before the first event numbered `wanted` or higher, in O(log n) range reads (B4)."""
        index = max((i for i, segment in enumerate(segments) if segment.first_sequence <= wanted), default=0)
        offset = 0
        if wanted > segments[index].first_sequence:
            offset = await _search(log, segments[index], wanted)
        return cls(log, segments, wanted, index, offset)

    @property
    def at_newest(self) -> bool:
        """True in the last segment that is known."""
        return self._index == len(self._segments) - 1

    def follow(self, segments: Sequence[Segment]) -> None:
        """Learn of newer segments from the row."""
        if len(segments) > len(self._segments):
            self._segments = list(segments)
            self.continued = False

    async def read(self) -> list[tuple[int, bytes]]:
        """The next frames with their numbers; nothing when there is nothing new.

        Raises:
            NotFound: The log was deleted.
        """
        while True:
            segment = self._segments[self._index]
            room = READ_BYTES if self.at_newest else min(READ_BYTES, segment.length - self._offset)
            data = await self._log.read(segment.name, self._offset, room) if room > 0 else b""
            if data:
                frames = self._take(data)
                if frames or self.continued or self.ended:
                    return frames
            elif self.at_newest:
                return []
            else:
                self._index += 1
                self._offset = 0
                self._rest = b""

    def _take(self, data: bytes) -> list[tuple[int, bytes]]:
        self._offset += len(data)
        frames, self._rest = sse.split(self._rest + data)
        numbered: list[tuple[int, bytes]] = []
        for frame in frames:
            if frame == CONTINUED:
                self.continued = True
                continue
            sequence = sse.sequence_of(frame)
            self.ended = self.ended or sse.is_terminal(frame)
            if sequence >= self._wanted:
                numbered.append((sequence, frame))
                self._wanted = sequence + 1
        return numbered


async def _search(log: EventLog, segment: Segment, wanted: int) -> int:
    """An offset at a frame's start, at or shortly before the frame numbered `wanted`."""
    low = 0
    high = segment.length if segment.length >= 0 else (await log.info(segment.name)).length
    while high - low > _SCAN_BYTES:
        middle = (low + high) // 2
        found = await _frame_after(log, segment.name, middle, high)
        if found is None or found[1] > wanted:
            high = middle
        else:
            low = found[0]
    return low


async def _frame_after(log: EventLog, name: str, start: int, end: int) -> tuple[int, int] | None:
    """Offset and number of the first frame that begins after `start` and before `end`."""
    window = _PROBE_BYTES
    while True:
        data = await log.read(name, start, min(window, end - start))
        complete = len(data) >= end - start
        begin = sse.next_boundary(data)
        if begin >= 0 and (complete or len(data) - begin >= sse.PREFIX_LENGTH):
            if data.startswith(b":", begin):
                return None  # the comment that closes the segment: it was closed after the row was read
            return start + begin, sse.sequence_of(data[begin:])
        if complete or not data:
            return None
        window *= 8
