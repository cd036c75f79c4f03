"""Server-sent events, as bytes.

A frame is `event: TYPE\\ndata: JSON\\n\\n` (B27): one `data` line, `\\n` line ends, no `id`. In the JSON `type` comes
first and `sequence_number` second, so that a reader finds the number in the first `PREFIX_LENGTH` bytes of a frame
and the end of a frame by its blank line, without parsing either. Frames are stored as they are sent; nothing
re-encodes them.
"""

import re
from collections.abc import Mapping
from typing import Any

from protocol import jsonio
from protocol.events import TERMINAL, InvalidEvent

KEEP_ALIVE = b": keep-alive\n\n"
PREFIX_LENGTH = 256
"""Bytes from the start of a frame that are enough for `event_type` and `sequence_of`."""

HEADERS: dict[str, str] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "Connection": "keep-alive",
    "X-Accel-Buffering": "no",
}

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,80}", re.ASCII)
_END = b"\n\n"
_START = b"event: "
_TYPE = re.compile(rb"event: ([^\n]+)\n")
_NUMBER = re.compile(rb'event: [^\n]+\ndata: \{"type":"[^"]*","sequence_number":(\d+)[,}]')
_ENDS = frozenset(name.encode() for name in TERMINAL | {"error"})
# Line ends to str.splitlines, though not to the format; readers that split so would tear the frame.
_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def encode(event: Mapping[str, Any]) -> bytes:
    """The frame of an event.

    Raises:
        InvalidEvent: it has no usable type, no sequence number, or holds something that is not JSON.
    """
    name, number = event.get("type"), event.get("sequence_number")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidEvent("the event has no usable type")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise InvalidEvent(f"{name}: no sequence number")
    try:
        data = on_one_line({"type": name, "sequence_number": number, **event})
    except jsonio.NotJson as error:
        raise InvalidEvent(f"{name}: not JSON: {error}") from error
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def on_one_line(value: Any) -> bytes:
    """JSON as a frame has it: up to three times as long as without its escapes.

    Raises:
        NotJson: something in it is not JSON.
    """
    data = jsonio.dumps(value)
    for raw, escaped in _LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def decode(frame: bytes) -> dict[str, Any]:
    """The event in a frame.

    Raises:
        ValueError: it is not a frame of ours.
    """
    _, separator, data = frame.partition(b"\ndata: ")
    if not separator or not frame.startswith(_START):
        raise ValueError("not a frame")
    event = jsonio.loads(data)
    if not isinstance(event, dict):
        raise ValueError("not an event")
    return event


def event_type(frame: bytes) -> str:
    """The event name of a frame, from its first line.

    Raises:
        ValueError: it is not a frame.
    """
    match = _TYPE.match(frame)
    if match is None:
        raise ValueError("not a frame")
    return match[1].decode()


def sequence_of(frame: bytes) -> int:
    """The sequence number of a frame; its first `PREFIX_LENGTH` bytes are enough.

    Raises:
        ValueError: it is not a frame of ours, or cut too short.
    """
    match = _NUMBER.match(frame)
    if match is None:
        raise ValueError("no sequence number in this frame")
    return int(match[1])


def is_terminal(frame: bytes) -> bool:
    """Whether nothing comes after this frame, by its event name."""
    match = _TYPE.match(frame)
    return match is not None and match[1] in _ENDS


def split(buffer: bytes) -> tuple[list[bytes], bytes]:
    """The whole frames at the start of a buffer, each with its blank line, and the rest."""
    frames = []
    start = 0
    while (end := buffer.find(_END, start)) >= 0:
        end += len(_END)
        frames.append(buffer[start:end])
        start = end
    return frames, buffer[start:]


def next_boundary(buffer: bytes, start: int = 0) -> int:
    """Where the next frame begins after `start` in a piece cut out of a log; -1 when none begins in it.

    JSON escapes its line ends, so a blank line is never inside a frame.
    """
    end = buffer.find(_END, start)
    return -1 if end < 0 or end + len(_END) >= len(buffer) else end + len(_END)
