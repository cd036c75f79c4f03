"""Where a log ends: its append position and the number of its last event.

Read from the tail of its newest segment.
"""

from dataclasses import dataclass

from protocol import sse
from storage.log import EventLog
from storage.rows import ResponseRow

_FIRST_WINDOW = 64 << 10
"""Bytes read from the tail at first; a longer last frame makes the window grow."""


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The end of a log.

    Attributes:
        position: Length of the newest segment in bytes, the next append position.
        blocks: Committed blocks of the newest segment.
        last_sequence: Sequence number of the last event, -1 if there is none.
        closed: True if the last event is a terminal one.
    """

    position: int
    blocks: int
    last_sequence: int
    closed: bool


EMPTY = LogEnd(position=0, blocks=0, last_sequence=-1, closed=False)


async def read_log_end(log: EventLog, row: ResponseRow) -> LogEnd:
    """The end of the log that `row` names.

    Raises:
        NotFound: The log is gone: the response was deleted.
    """
    segment = row.segments[-1]
    info = await log.info(segment.name)
    frame = await _last_frame(log, segment.name, info.length) if info.length else None
    if frame is None:
        return LogEnd(info.length, info.blocks, segment.first_sequence - 1, closed=False)
    return LogEnd(info.length, info.blocks, sse.sequence_of(frame), closed=sse.is_terminal(frame))


async def _last_frame(log: EventLog, name: str, length: int) -> bytes | None:
    window = _FIRST_WINDOW
    while True:
        start = max(0, length - window)
        data = await log.read(name, start, length - start)
        end = data.rstrip(b"\n")
        # Frames hold no blank line of their own: the last one begins after the last blank line before its end.
        cut = end.rfind(b"\n\n")
        if end.startswith(b":", cut + 2 if cut >= 0 else 0):  # the segment was closed after the row was read
            end = end[: max(cut, 0)].rstrip(b"\n")
            cut = end.rfind(b"\n\n")
        if cut >= 0:
            return end[cut + 2 :] + b"\n\n"
        if start == 0:
            return end + b"\n\n" if end else None
        window *= 8
