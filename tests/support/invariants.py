"""The one judge of a stored response, for every layer of tests: what must hold whatever happened to it.

Invariants (the numbers are used in the messages):

- V1: one terminal status, by row and as the last event. V2: numbers 0, 1, 2, … in the log, without gap.
- V3, V4: what a client saw is a contiguous piece of the log, byte for byte; a resumed client got just the rest.
- V5: no segment of an older generation behind one of a newer.
- V6: the stored snapshot is the fold of the events; W4: the terminal event holds what a GET answers.
- V7: handler entries are at most 1 + crashes + lost leases. V8: a cancelled response is cancelled, for ever.
- V9: the turns of a chain ran once each, in the order of their numbers, one handler at a time (`assert_chain`).
- V10: nothing is left of a deleted one but its marker.

Every frame is read with the `openai` package's types, every response object must have each field (W1).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol import jsonio, sse
from protocol.events import TERMINAL
from protocol.fold import Fold
from protocol.response import TERMINAL_STATUSES, strip_internal
from resilience.ownership import CONTINUED, has_log, read_row
from resilience.placement import partition_key, tenant_of
from storage.chains import ChainRow
from storage.connection import Storage
from storage.driver import EVENTS, PAYLOADS, WORKERS
from storage.memory import MemoryDriver
from storage.rows import ResponseRow
from tests.support.stream_oracle import MODELS, assert_response, assert_valid

type Json = dict[str, Any]
type Span = tuple[str, float, float | None]
"""An entry into a handler: the response, the moments when it began and ended, on any one clock or counter; without
an end if its process was killed, or lost the response to another while it was stopped."""

NOT_NULL = [
    "id",
    "object",
    "created_at",
    "status",
    "model",
    "output",
    "tools",
    "tool_choice",
    "text",
    "truncation",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "parallel_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
]
NULLABLE = [
    "error",
    "incomplete_details",
    "instructions",
    "previous_response_id",
    "conversation",
    "usage",
    "completed_at",
    "max_output_tokens",
    "max_tool_calls",
    "reasoning",
    "user",
    "safety_identifier",
    "prompt_cache_key",
]
USAGE = ("input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details", "total_tokens")


@dataclass(frozen=True, slots=True)
class Stored:
    """A response as storage has it.

    Attributes:
        row: its row.
        frames: its log, without the comments that close segments; empty where there is no log.
        snapshot: its stored snapshot, internal parts included.
    """

    row: ResponseRow
    frames: list[bytes]
    snapshot: Json | None

    @property
    def events(self) -> list[Json]:
        """The log, decoded."""
        return [sse.decode(frame) for frame in self.frames]


async def read_stored(storage: Storage, principal: str, response_id: str) -> Stored:
    """The row, the whole log and the snapshot of a response.

    Raises:
        AssertionError: There is no such response.
    """
    key = partition_key(tenant_of(principal), response_id)
    row = await read_row(storage, key, response_id)
    assert row is not None, f"V1: there is no row of {response_id}"
    snapshot = None if row.snapshot is None else jsonio.loads(await storage.payloads.get(row.snapshot))
    return Stored(row, await _read_log(storage, row), snapshot)


async def check_response(
    storage: Storage,
    principal: str,
    response_id: str,
    *,
    seen: Iterable[Sequence[bytes]] = (),
    entries: int | None = None,
    crashes: int = 0,
    lost_leases: int = 0,
    cancelled: bool = False,
    generation_of: Callable[[Json], int | None] | None = None,
) -> Stored:
    """Assert the invariants of a response that has ended.

    Args:
        storage: the account, through no seam with faults.
        principal: who made the response.
        response_id: which.
        seen: what each client saw, as frames; keep-alive comments are passed over.
        entries: how often the handler was entered, where that is known.
        crashes: how many of its owners were killed.
        lost_leases: how many of its owners were displaced while alive.
        cancelled: whether a cancel of it was acknowledged.
        generation_of: tells from an event which entry produced it, where the test's handler says so (V5).
    """
    stored = await read_stored(storage, principal, response_id)
    row = stored.row
    assert row.status in TERMINAL_STATUSES, f"V1: the row says {row.status}"
    if cancelled:
        assert row.status == "cancelled", f"V8: the row says {row.status}"
    if entries is not None:
        allowed = 1 + crashes + lost_leases
        assert entries <= allowed, f"V7: {entries} handler entries with {crashes} crashes, {lost_leases} lost leases"
    assert stored.snapshot is not None, "V6: a finished response has no snapshot"
    assert stored.snapshot["status"] == row.status, "V6: row and snapshot disagree"
    assert stored.snapshot["id"] == response_id
    check_body(strip_internal(stored.snapshot))
    views = [view for each in seen if (view := _without_comments(each))]
    if has_log(row):
        check_stream(stored.frames, stored.snapshot)
        for view in views:
            check_view(stored.frames, view)
        if generation_of is not None:
            _check_generations(stored.events, generation_of)
    else:
        assert not stored.frames, "there is a log where none belongs"
        for view in views:  # a foreground client is the only witness of its stream
            check_stream(view, stored.snapshot)
    return stored


def check_stream(frames: Sequence[bytes], snapshot: Json | None = None) -> list[Json]:
    """Assert what holds of every whole stream, stored or not; with `snapshot`, that it tells the same (V6, W4)."""
    events = check_frames(frames)
    assert events, "V1: the stream is empty"
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(events))), f"V2: the numbers are {numbers}"
    names = [event["type"] for event in events]
    ends = [name for name in names if name in TERMINAL or name == "error"]
    assert len(ends) == 1, f"V1: {len(ends)} terminal events: {ends}"
    assert names[-1] == ends[0], f"V1: {names[-1]} follows the terminal event"
    if names == ["error"]:
        assert snapshot is None or snapshot["status"] == "failed"
        return events
    assert "error" not in names, "B8: an error event after response.created"
    assert names[0] == "response.created", f"B8: {names[0]} is the first event"
    assert names.count("response.created") == 1, "R7: response.created stands twice"
    final = events[-1]["response"]
    assert _fold(events) == final, "V6: the terminal event says something else than the fold"
    _check_texts(events)
    if snapshot is not None:
        assert final == strip_internal(snapshot), "W4: the terminal event says something else than a GET"
        expected = "response.failed" if snapshot["status"] == "cancelled" else f"response.{snapshot['status']}"
        assert names[-1] == expected, f"V1: {names[-1]} ends a {snapshot['status']} response"
    return events


def check_frames(frames: Sequence[bytes]) -> list[Json]:
    """Assert the wire form of every frame (B27, W5) and that a typed client can read it."""
    events = []
    for frame in frames:
        lines = frame.split(b"\n")
        assert len(lines) == 4, f"B27: not two lines and a blank one: {frame[:200]!r}"
        assert lines[2:] == [b"", b""]
        assert lines[0].startswith(b"event: "), f"B27: {lines[0]!r}"
        assert lines[1].startswith(b"data: "), f"B27: {lines[1][:100]!r}"
        assert b"\r" not in frame
        event = jsonio.loads(lines[1].removeprefix(b"data: "))
        assert event["type"] == lines[0].removeprefix(b"event: ").decode(), "W5: event and body differ in type"
        assert b"internal_metadata" not in frame, "R12: internal metadata in a frame"
        events.append(event)
    for event in events:
        if event["type"] == "error":
            _check_error_event(event)
        if "response" in event:
            check_body(event["response"])
    known = [event for event in events if event["type"] in MODELS]  # newer ones pass as they are
    numbers = [event["sequence_number"] for event in events]
    assert all(isinstance(number, int) for number in numbers), f"B9: {numbers}"
    assert_valid(
        {**event, "response": _with_known_code(event["response"])} if "response" in event else event for event in known
    )
    return events


def check_body(response: Json) -> None:
    """Assert that a response object has all it must have (B6, B31, W1, W2), and that a typed client can read it."""
    missing = [name for name in (*NOT_NULL, *NULLABLE) if name not in response]
    assert not missing, f"W1: {missing} left out"
    null = [name for name in NOT_NULL if response[name] is None]
    assert not null, f"W1: {null} is null"
    status = response["status"]
    assert (response["completed_at"] is not None) == (status == "completed"), "B6: completed_at"
    assert (response["error"] is not None) == (status == "failed"), "B6: error"
    if status == "cancelled":
        assert response["output"] == [], "B6: output of a cancelled response"
    if response["usage"] is not None:
        assert all(name in response["usage"] for name in USAGE), "W2"
    for item in response["output"]:
        assert item["response_id"] == response["id"], "B20"
    assert b"internal_metadata" not in jsonio.dumps(response), "R12: internal metadata in a body"
    assert_response(_with_known_code(response))


def check_view(log: Sequence[bytes], view: Sequence[bytes]) -> None:
    """Assert that a client saw a contiguous piece of the log, and nothing else (V2, V3, V4)."""
    if not view:
        return
    first = sse.sequence_of(view[0])
    assert list(log[first : first + len(view)]) == list(view), "V3/V4: a client saw something else than the log"


async def assert_chain(
    storage: Storage,
    principal: str,
    response_id: str,
    spans: Iterable[Span],
    *,
    accepted: Iterable[str] = (),
    crashes: int = 0,
    lost_leases: int = 0,
) -> ChainRow:
    """Assert V9 of a chain that is at rest: nothing of it runs or waits, and every turn ran in its order.

    A turn that was cancelled may never have been entered; neither may one that failed with its worker.

    Args:
        storage: the account, through no seam with faults.
        principal: who made the responses.
        response_id: any turn of the chain, or whatever lies in its partition.
        spans: the handler's entries; those of other chains are passed over.
        accepted: the turns that clients were told of, each of which has to be there.
        crashes: how many workers were killed.
        lost_leases: how many owners were displaced while alive.
    """
    key = partition_key(tenant_of(principal), response_id)
    chain = await storage.chains.read(key)
    rows = {row.id: row for row in await storage.rows.list_partition(key) if row.turn}
    assert chain.active is None, f"V9: {chain.active} runs for ever"
    assert not chain.pending, f"V9: {chain.pending} wait for ever"
    assert not chain.ending, f"V9: {chain.ending} ends for ever"
    missing = [turn for turn in accepted if turn not in rows]
    assert not missing, f"V9: {missing} were accepted and are gone"
    unfinished = {row.id: row.status for row in rows.values() if row.status not in TERMINAL_STATUSES}
    assert not unfinished, f"V9: left without an outcome: {unfinished}"
    numbers = {row.id: row.turn for row in rows.values()}
    assert len(set(numbers.values())) == len(numbers), f"V9: two turns have one number: {sorted(numbers.values())}"
    assert max(numbers.values(), default=0) <= chain.turns, f"V9: {chain.turns} turns, but {sorted(numbers.values())}"
    ours = [span for span in spans if span[0] in numbers]
    check_turns(numbers, ours, most=1 + crashes + lost_leases)
    entered = {span[0] for span in ours}
    for row in rows.values():
        spared = row.status == "cancelled" or (row.status == "failed" and await _failed_with_its_worker(storage, row))
        assert row.id in entered or spared, f"V9: turn {row.turn} is {row.status} and was never entered"
    return chain


def check_turns(numbers: Mapping[str, int], spans: Iterable[Span], *, most: int = 1) -> None:
    """Assert that turns with these numbers were entered in their order, `most` times each, and never two at once."""
    ordered = sorted(spans, key=lambda span: span[1])
    entries = Counter(span[0] for span in ordered)
    often = {turn: count for turn, count in entries.items() if count > most}
    assert not often, f"V9: entered more than {most} times: {often}"
    order = [numbers[span[0]] for span in ordered]
    assert order == sorted(order), f"V9: the turns were entered in the order {order}"
    for index, (turn, _, ended) in enumerate(ordered):
        for later, began, _ in ordered[index + 1 :]:
            assert ended is None or began >= ended, f"V9: {later} was entered while {turn} ran"


async def _failed_with_its_worker(storage: Storage, row: ResponseRow) -> bool:
    if row.deleted or row.snapshot is None:
        return True  # it cannot be known any more
    snapshot = jsonio.loads(await storage.payloads.get(row.snapshot))
    return "shutdown_reason" in ((snapshot.get("error") or {}).get("additionalInfo") or {})


async def check_nothing_left(storage: Storage, principal: str, response_id: str) -> None:
    """Assert that a deleted response left nothing but its marker (V10)."""
    key = partition_key(tenant_of(principal), response_id)
    for container in (EVENTS, PAYLOADS):
        left = await storage.driver.list_blobs(container, f"{key}/{response_id}")
        assert not left, f"V10: {left} left in {container}"
    row = await read_row(storage, key, response_id)
    if row is not None:
        assert row.deleted, "V10: the row is no marker"
        assert not row.request.inline, "V10: the request is left"
        assert row.request.blob is None, "V10: the request is left"
        assert row.snapshot is None, "V10: the snapshot is left"
        assert not row.segments, "V10: segments are left"
        assert not row.conversation, "V10: the conversation is left"
        assert not row.principal, "V10: the principal is left"
    open_runs = await storage.driver.query_entities(WORKERS, row_key=f"run-{response_id}")
    assert not open_runs, "V10: it is open in a ledger"
    if isinstance(storage.driver, MemoryDriver):
        left = [message.text for queue in storage.driver.queues.values() for message in queue]
        assert not any(response_id in text for text in left), "V10: a message is left"


async def check_nothing_recorded(storage: Storage, principal: str) -> None:
    """Assert that a principal's tenant has no trace in storage: rows, blobs, ledger entries."""
    tenant = tenant_of(principal)
    for container in (EVENTS, PAYLOADS):
        left = await storage.driver.list_blobs(container, tenant)
        assert not left, f"R1: {left} left in {container}"
    rows = await storage.driver.query_entities("responses")
    assert not [row.row_key for row in rows if row.partition_key.startswith(tenant)], "R1: a row is left"
    entries = await storage.driver.query_entities(WORKERS, row_key_prefix="run-")
    left = [entry.row_key for entry in entries if str(entry.properties.get("d_key", "")).startswith(tenant)]
    assert not left, "R1: it is open in a ledger"


async def _read_log(storage: Storage, row: ResponseRow) -> list[bytes]:
    data = b""
    generations: list[int] = []
    for index, segment in enumerate(row.segments):
        content = await storage.driver.read_range(EVENTS, segment.name, 0, 1 << 30)
        last = index == len(row.segments) - 1
        if not last:
            assert 0 <= segment.length <= len(content), "V2: a closed segment has no length"
            rest = content[segment.length :]
            assert rest in (b"", CONTINUED), f"V5: {rest[:200]!r} behind the end of a closed segment"
            content = content[: segment.length]
        frames, torn = sse.split(content)
        assert not torn, f"V2: a torn frame in {segment.name}: {torn[:200]!r}"
        if frames:
            assert sse.sequence_of(frames[0]) == segment.first_sequence, f"V2: {segment.name} begins elsewhere"
        generations.append(int(segment.name.rpartition("-")[2]))
        data += content
    assert generations == sorted(generations), f"V5: generations {generations}"
    await _check_orphans(storage, row)
    return sse.split(data)[0]


async def _check_orphans(storage: Storage, row: ResponseRow) -> None:
    """A segment that no row names may have been made by an owner that was displaced; nobody wrote to it."""
    named = {segment.name for segment in row.segments}
    for name in await storage.driver.list_blobs(EVENTS, f"{row.partition_key}/{row.id}/"):
        if name not in named:
            assert (await storage.driver.blob_info(EVENTS, name)).length == 0, f"V5: {name} was written to"


def _with_known_code(response: Json) -> Json:
    """R14 prescribes a code that the typed client does not list."""
    error = response.get("error")
    if not error or error["code"] != "storage_error":
        return response
    return {**response, "error": {**error, "code": "server_error"}}


def _fold(events: Sequence[Json]) -> Json:
    fold = Fold(events[0]["response"])
    for event in events:
        fold.apply(event)
    return fold.snapshot()


def _check_texts(events: Sequence[Json]) -> None:
    """W6, with resets: the deltas of a place since it was last made anew are its final text."""
    texts: defaultdict[tuple[int, int], str] = defaultdict(str)
    done: dict[tuple[int, int], str] = {}
    for event in events:
        name = event["type"]
        if name == "response.in_progress":
            texts.clear()
            done.clear()
        elif name == "response.output_item.added":
            for place in [place for place in texts if place[0] == event["output_index"]]:
                del texts[place]
                done.pop(place, None)
        elif name == "response.output_text.delta":
            texts[event["output_index"], event["content_index"]] += event["delta"]
        elif name == "response.output_text.done":
            place = event["output_index"], event["content_index"]
            assert texts[place] == event["text"], "W6: the deltas are not the text"
            done[place] = event["text"]
    final = events[-1]["response"]
    if final["status"] == "completed":
        for (item, part), text in done.items():
            assert final["output"][item]["content"][part]["text"] == text, "W6: the final output says something else"


def _check_error_event(event: Json) -> None:
    for name in ("message", "code", "param"):
        assert event[name] == event["error"][name], f"W7: {name}"
    assert set(event["error"]) >= {"message", "type", "param", "code"}, "W8"


def _check_generations(events: Iterable[Json], generation_of: Callable[[Json], int | None]) -> None:
    told = [number for event in events if (number := generation_of(event)) is not None]
    assert told == sorted(told), f"V5: events of the generations {told}"


def _without_comments(view: Sequence[bytes]) -> list[bytes]:
    return [frame for frame in view if not frame.startswith(b":")]
