"""What a handler yields becomes what a client sees: checked, completed, folded, numbered.

One stamper serves one handler entry. It holds the fold, and so the snapshot of the moment (B23), and gives out
sequence numbers without a gap (B9, W4): an event that is suppressed takes none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocol import sse
from protocol.events import LIFECYCLE_STATUS, TERMINAL, InvalidEvent, check_event, status_after
from protocol.fold import Fold
from protocol.items import InvalidItem, complete_item, complete_part, cut_short
from protocol.jsonio import NotJson
from protocol.response import fill_response, strip_internal
from resilience.outcome import begun

CREATED = "response.created"
QUEUED = "response.queued"
IN_PROGRESS = "response.in_progress"
ITEM_ADDED = "response.output_item.added"
ITEM_DONE = "response.output_item.done"

MAX_RESPONSE = 24 * 2**20
"""Bytes of a response as JSON. Its last event, and what that is made from, have to fit into one append (64 MiB)."""

MAX_FRAME = 32 * 2**20
"""Bytes of one event: enough for one that repeats the whole response."""

MEASURED_EVERY = 2**20
"""Bytes of events after which, at the earliest, it is looked again how large the response is."""

_AT_ONCE = frozenset({CREATED, ITEM_DONE})
"""Events somebody waits for; they are not held back for company."""


@dataclass(frozen=True, slots=True)
class Stamped:
    """One event on its way out.

    Attributes:
        sequence: Its number.
        frame: Its bytes, without anything internal (R12).
        at_once: Not to be held back.
    """

    sequence: int
    frame: bytes
    at_once: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome as the handler's terminal event has it: a whole snapshot, internal parts included.

    Attributes:
        frames: What still has to be said before it (W6).
        snapshot: The final response.
    """

    frames: list[Stamped]
    snapshot: dict[str, Any]


def check_size(snapshot: dict[str, Any]) -> int:
    """The bytes of a response as JSON, as its last event has it.

    Raises:
        InvalidEvent: There are more than `MAX_RESPONSE`.
    """
    size = len(sse.on_one_line(snapshot))
    if size > MAX_RESPONSE:
        raise InvalidEvent(f"the response has {size} bytes, at most {MAX_RESPONSE} are allowed")
    return size


class Stamper:
    """Turns one handler entry's events into frames.

    Args:
        base: The whole snapshot the entry starts from.
        last_sequence: The number of the last event that is already in the stream, -1 if there is none.
        recovery: Whether an earlier entry may have told a part of the story.
        now: Unix time in seconds.
    """

    def __init__(self, base: dict[str, Any], *, last_sequence: int, recovery: bool, now: Callable[[], int]) -> None:
        self._fold = Fold(base)
        self._base = base
        self._next = last_sequence + 1
        self._recovery = recovery
        self._resumed = last_sequence >= 0
        self._now = now
        self._created = False
        self._said = ""
        self._open: set[int] = set()
        self._due: list[Stamped] = []
        self._unmeasured = 0
        self._room = MEASURED_EVERY

    @property
    def begun(self) -> bool:
        """True once ``response.created`` stands in the stream."""
        return self._created or self._next > 0

    @property
    def last_sequence(self) -> int:
        """The number of the last event that has one."""
        return self._next - 1

    def snapshot(self) -> dict[str, Any]:
        """The response as it stands, internal parts included."""
        return self._fold.snapshot()

    def stamp(self, event: object) -> "list[Stamped] | Ending":
        """The frames of an event, none if it is suppressed, or the outcome if it is a terminal one.

        Raises:
            InvalidEvent: The handler's output is not valid (B30).
        """
        checked = check_event(event)
        name = checked["type"]
        if name == "error":
            raise InvalidEvent("an error event is the server's to send")
        if name == CREATED:
            self._stamp_created(checked)
            return self._numbered()
        self._stamp_missing_created(name)
        before, self._said = self._said, name
        if name == QUEUED:
            if before not in ("", CREATED):  # B6: what is in progress does not wait again
                raise InvalidEvent(f"{name} can only follow {CREATED}, not {before}")
            self._begin(checked)
            return self._numbered()
        if name in TERMINAL:
            self._close_items()
            outcome = self._filled(checked)["response"]
            check_size(outcome)
            return Ending(self._numbered(), outcome)
        self._stamp(self._completed(checked))
        return self._numbered()

    def close_items(self) -> list[Stamped]:
        """An ``output_item.done`` for each item that the handler left open: every added item is done (W6)."""
        self._close_items()
        return self._numbered()

    def _numbered(self) -> list[Stamped]:
        """The frames that have a number and were not handed out: an invalid event may come behind them (W4)."""
        frames, self._due = self._due, []
        return frames

    def _close_items(self) -> None:
        items = self._fold.items() if self._open else []
        for index in sorted(index for index in self._open if index < len(items)):
            closing = {"type": ITEM_DONE, "output_index": index, "item": cut_short(items[index])}
            self._number(closing, self._framed(closing))  # whatever its size: it is what there is already

    def _stamp_created(self, event: dict[str, Any]) -> None:
        if self._created:
            raise InvalidEvent("response.created came twice")
        self._created = True
        self._said = CREATED
        self._begin(event)

    def _begin(self, event: dict[str, Any]) -> None:
        """What comes before ``response.in_progress``: a stream has it once, from the entry that began it (R7).

        What a later entry says with it counts as well (R9), but for its output and status: readers would not see the
        reset, which is for ``response.in_progress`` to tell, nor that the response waits again (B6).
        """
        whole = self._filled(event)
        if not self._resumed:
            self._stamp(whole)
            return
        size = len(self._checked_frame(whole))
        kept = {"status": "in_progress", "output": self._fold.items()}
        self._fold.apply({"type": CREATED, "response": {**whole["response"], **kept}})
        self._count(size)

    def _stamp_missing_created(self, name: str) -> None:
        """A recovered handler need not repeat ``response.created``, but it may never have reached the log."""
        if self.begun:
            return
        if not self._recovery:
            raise InvalidEvent(f"the first event is {name}, not response.created")
        self._created = True
        self._stamp({"type": CREATED, "response": begun(self._base)})

    def _completed(self, event: dict[str, Any]) -> dict[str, Any]:
        if event["type"] in LIFECYCLE_STATUS:
            return self._filled(event)
        if isinstance(event.get("part"), dict):
            return {**event, "part": complete_part(event["part"])}
        if isinstance(event.get("item"), dict):
            return {**event, "item": self._item(event["type"], event["item"])}
        return event

    def _item(self, name: str, item: dict[str, Any]) -> dict[str, Any]:
        status = "in_progress" if name.endswith(".added") else "completed"
        try:
            return complete_item(item, self._base["id"], self._base.get("agent_reference"), status=status)
        except (InvalidItem, NotJson) as error:
            raise InvalidEvent(str(error)) from error

    def _filled(self, event: dict[str, Any]) -> dict[str, Any]:
        payload = event["response"]
        status = status_after(event["type"], payload.get("status"))
        try:
            whole = fill_response(payload, self._fold.snapshot(), status=status, completed_at=self._now())
        except (InvalidItem, NotJson) as error:
            raise InvalidEvent(str(error)) from error
        return {**event, "response": whole}

    def _stamp(self, event: dict[str, Any]) -> None:
        frame = self._checked_frame(event)
        self._number(event, frame)
        self._count(len(frame))

    def _checked_frame(self, event: dict[str, Any]) -> bytes:
        frame = self._framed(event)
        if len(frame) > MAX_FRAME:
            raise InvalidEvent(f"{event['type']}: {len(frame)} bytes, at most {MAX_FRAME} are allowed")
        return frame

    def _framed(self, event: dict[str, Any]) -> bytes:
        return sse.encode({**strip_internal(event), "sequence_number": self._next})

    def _number(self, event: dict[str, Any], frame: bytes) -> None:
        self._fold.apply(event)
        self._note_items(event)
        self._due.append(Stamped(self._next, frame, event["type"] in _AT_ONCE))
        self._next += 1

    def _count(self, size: int) -> None:
        self._unmeasured += size
        if self._unmeasured > self._room:
            self._measure()

    def _measure(self) -> None:
        """Refuse to go on with a response that is too large; seldom, for it costs as much as the response is long."""
        self._unmeasured = 0
        self._room = max(MEASURED_EVERY, MAX_RESPONSE - check_size(self._fold.snapshot()))

    def _note_items(self, event: dict[str, Any]) -> None:
        name = event["type"]
        if name == ITEM_ADDED:
            self._open.add(event["output_index"])
        elif name == ITEM_DONE:
            self._open.discard(event["output_index"])
        elif name == IN_PROGRESS:
            self._open.clear()  # the reset: its output is all there is (R7)
