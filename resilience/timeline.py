"""The life of a response, as its row and its log tell it: entries into the handler, resets, roll-overs, the end.

Nothing is stored for this, so it can tell no more than what is there anyhow. Events carry no time, and a log does not
say which worker wrote which event. What is known for certain:

- The row counts claims (`generation`) and attempts; a claim that was no attempt followed a graceful hand-over.
- A `response.in_progress` after the first one is a reset (R7): from there another entry speaks. Its payload says what
  it took over; what else there was before is done again.
- A segment's name holds the generation that began it. Generations only grow along the log, which bounds that of each
  entry; `generation` is given where the bounds meet.
- An entry that said nothing before its worker died left no event: there may be more claims than entries.

While the response runs the row also holds the last checkpoint, and its chain who waits for whom.

It costs one row, the log (1 MiB to a read, `MAX_EVENTS` at most), and for a turn without an outcome its chain's row.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from protocol import jsonio, sse
from protocol.errors import ResponseNotFound
from protocol.events import TERMINAL
from protocol.response import TERMINAL_STATUSES
from resilience.log_cursor import LogCursor
from resilience.response_row import chain_key, has_log
from resilience.runtime import Runtime
from resilience.snapshots import shown_row, snapshot_of
from storage.connection import Storage
from storage.errors import NotFound
from storage.rows import ResponseRow, Segment

MAX_EVENTS = 20_000
"""Events of a log that are looked at; the timeline of a longer one says that it is cut off."""

_CREATED = "response.created"
_QUEUED = "response.queued"
_IN_PROGRESS = "response.in_progress"
_ITEM_ADDED = "response.output_item.added"
_ITEM_DONE = "response.output_item.done"

type Json = dict[str, Any]


async def timeline_of(runtime: Runtime, principal: str, response_id: str) -> Json:
    """The timeline of a response.

    Raises:
        ResponseNotFound: There is none for this principal.
        ResponseDeleted: It was deleted.
    """
    row = await shown_row(runtime, principal, response_id)
    try:
        story = await _read_story(runtime.storage, row) if has_log(row) else None
        return {
            **_facts(row),
            "chain": await _chain(runtime.storage, row),
            "checkpoint": await _checkpoint(runtime, row),
            "log": None if story is None else story.log(row),
            "entries": [] if story is None else story.entries_of(row),
            "marks": [] if story is None else story.marks_of(row),
            "event_types": {} if story is None else dict(story.types),
        }
    except NotFound as error:  # deleted while it was read
        raise ResponseNotFound(response_id) from error


def _facts(row: ResponseRow) -> Json:
    return {
        "object": "response.timeline",
        "response_id": row.id,
        "status": row.status,
        "disposition": row.disposition,
        "background": row.background,
        "stream": row.stream,
        "created_at": row.created_at,
        "completed_at": row.completed_at,
        "error_code": row.error_code or None,
        "generation": row.generation,
        "attempt": row.attempt,
        "hand_overs": max(0, row.generation - row.attempt),
        "worker": row.owner or None,
    }


async def _chain(storage: Storage, row: ResponseRow) -> Json | None:
    """Its place in its chain; who it waits for and how many wait behind it, as long as it has no outcome."""
    if not row.turn:
        return None
    place: Json = {
        "turn": row.turn,
        "steered": row.steered,
        "previous_response_id": row.previous_response_id or None,
        "conversation": row.conversation or None,
        "waits_for": None,
        "waiting_behind": [],
    }
    if row.status in TERMINAL_STATUSES:
        return place
    unfinished = [turn.id for turn in (await storage.chains.read(row.partition_key, chain_key(row))).unfinished]
    if row.id in unfinished:
        index = unfinished.index(row.id)
        place["waits_for"] = unfinished[0] if index else None
        place["waiting_behind"] = unfinished[index + 1 :]
    return place


async def _checkpoint(runtime: Runtime, row: ResponseRow) -> Json | None:
    """What the next entry would begin with; of a run that goes on, what it would begin with by now."""
    if row.status in TERMINAL_STATUSES or row.snapshot is None or not row.generation:
        return None
    try:
        snapshot = await snapshot_of(runtime, row)
    except jsonio.NotJson:
        return None
    if snapshot["status"] in TERMINAL_STATUSES:  # it ended since the row was read
        return None
    return {"output_items": len(snapshot.get("output") or [])}


@dataclass(slots=True)
class Entry:
    """A stretch of events that one entry into the handler said, up to the next reset."""

    first: int
    last: int
    said: int
    """The last event that is not the terminal one: that may be another worker's."""
    events: int = 0
    items_done: int = 0
    kept: int | None = None
    discarded: int | None = None
    low: int = 1
    high: int = 0


@dataclass(slots=True)
class Story:
    """What a log tells, event by event; feed it with `take`."""

    entries: list[Entry] = field(default_factory=list)
    marks: list[Json] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    size: int = 0
    ended: bool = False
    truncated: bool = False
    _items: int = 0
    _started: bool = False

    def take(self, sequence: int, frame: bytes) -> None:
        """The next event."""
        name = sse.event_type(frame)
        self.types[name] += 1
        self.size += len(frame)
        if not self.entries:
            self.entries.append(Entry(sequence, sequence, sequence))
        if name == _IN_PROGRESS:
            self._take_in_progress(sequence, frame)
        elif name == _ITEM_ADDED:
            self._items = max(self._items, int(sse.decode(frame)["output_index"]) + 1)
        elif name in (_CREATED, _QUEUED):
            self._mark(sequence, name.removeprefix("response."))
        elif sse.is_terminal(frame):
            self._take_end(sequence, name, frame)
        entry = self.entries[-1]
        entry.last = sequence
        entry.said = entry.said if sse.is_terminal(frame) else sequence
        entry.events += 1
        entry.items_done += name == _ITEM_DONE

    def _take_in_progress(self, sequence: int, frame: bytes) -> None:
        kept = len(sse.decode(frame)["response"]["output"])
        if not self._started:
            self._started = True
            self._mark(sequence, "started")
        else:
            discarded = max(0, self._items - kept)
            self.entries.append(Entry(sequence, sequence, sequence, kept=kept, discarded=discarded))
            self._mark(sequence, "reset", entry=len(self.entries), kept_items=kept, discarded_items=discarded)
        self._items = kept

    def _take_end(self, sequence: int, name: str, frame: bytes) -> None:
        self.ended = True
        event = sse.decode(frame)
        told: Any = event.get("response") or {}
        status = told.get("status") if name in TERMINAL else "failed"
        error = told.get("error") or event.get("error") or {}
        self._mark(sequence, "ended", status=status, error_code=error.get("code"))

    def _mark(self, sequence: int, what: str, **more: Any) -> None:
        self.marks.append({"sequence_number": sequence, "what": what, **more})

    # -- told together with the row -----------------------------------------------------------------------------------

    def log(self, row: ResponseRow) -> Json:
        """The log as a whole."""
        return {
            "events": self.types.total(),
            "bytes": self.size,
            "ended": self.ended,
            "truncated": self.truncated,
            "segments": [
                {
                    "number": number,
                    "generation": generation_in(segment),
                    "first_sequence_number": segment.first_sequence,
                    "bytes": None if segment.length < 0 else segment.length,
                }
                for number, segment in enumerate(row.segments)
            ],
        }

    def entries_of(self, row: ResponseRow) -> list[Json]:
        """The entries, oldest first."""
        bound_generations(self.entries, row.segments, row.generation)
        return [
            {
                "number": number,
                "first_sequence_number": entry.first,
                "last_sequence_number": entry.last,
                "events": entry.events,
                "items_done": entry.items_done,
                "generation": entry.low if entry.low == entry.high else None,
                "kept_items": entry.kept,
                "discarded_items": entry.discarded,
            }
            for number, entry in enumerate(self.entries, 1)
        ]

    def marks_of(self, row: ResponseRow) -> list[Json]:
        """The landmarks of the log in their order, roll-overs included."""
        rolled: list[Json] = [
            {
                "sequence_number": segment.first_sequence,
                "what": "roll_over",
                "segment": number,
                "generation": generation_in(segment),
            }
            for number, segment in enumerate(row.segments)
            if number
        ]
        return sorted([*rolled, *self.marks], key=lambda mark: int(mark["sequence_number"]))


def generation_in(segment: Segment) -> int:
    """The generation that began a segment, out of its name; 0 for one that nobody had claimed yet."""
    return int(segment.name.rpartition("-")[2])


def bound_generations(entries: Sequence[Entry], segments: Iterable[Segment], newest: int) -> None:
    """Set the lowest and the highest generation that each entry can have."""
    for entry in entries:
        entry.low, entry.high = 1, newest
    for segment in segments:
        # Whoever began it wrote the event before it at the latest, and the one after it at the earliest.
        generation = generation_in(segment)
        for entry in entries:
            if entry.said >= segment.first_sequence:
                entry.low = max(entry.low, generation)
            if entry.first < segment.first_sequence:
                entry.high = min(entry.high, generation)
    for before, after in pairwise(entries):
        after.low = max(after.low, before.low + 1)
    for after, before in pairwise(reversed(entries)):
        before.high = min(before.high, after.high - 1)


async def _read_story(storage: Storage, row: ResponseRow) -> Story:
    story = Story()
    cursor = await LogCursor.at(storage.log, row.segments, 0)
    while batch := await cursor.read():
        for sequence, frame in batch:
            if story.types.total() >= MAX_EVENTS:
                story.truncated = True
                return story
            story.take(sequence, frame)
        if cursor.ended:
            break
    return story
