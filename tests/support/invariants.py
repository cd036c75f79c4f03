"""The one judge of a stored response, for every layer of tests: what must hold whatever happened to it.

Invariants (the numbers are used in the messages):

- V1: one terminal status, by row and as the last event. V2: numbers 0, 1, 2, … in the log, without gap.
- V3, V4: what a client saw is the log from its cursor on, byte for byte, and to the end if the server said so.
- V5: no segment or event of an older generation behind one of a newer.
- V6: the stored snapshot is what the events add up to, by a fold that is not the server's (`plain_fold`); W4: the
  terminal event holds what a GET answers.
- V7: handler entries are at most 1 + crashes + lost leases. V8: a cancelled response is cancelled, for ever.
- V9: the turns of a chain ran once each, in the order of their numbers, one handler at a time (`assert_chain`).
- V10: nothing is left of a deleted one but its marker, nothing at all of one that expired.

Every frame is read with the `openai` package's types, every response object must have each field (W1).
"""

import asyncio
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from protocol import jsonio, sse
from protocol.events import TERMINAL
from protocol.response import TERMINAL_STATUSES, strip_internal
from resilience.ownership import CONTINUED
from resilience.placement import partition_key, tenant_of
from resilience.response_row import has_log, read_row
from storage.azure import AzureDriver
from storage.azure_clients import blocking_queue
from storage.chains import CHAIN_ROW, ChainRow, own_chain_key
from storage.connection import Storage
from storage.driver import EVENTS, EXPIRY, IDEMPOTENCY, PAYLOADS, QUEUES, RESPONSES, WORKERS
from storage.memory import MemoryDriver
from storage.rows import ROW_PREFIX, ResponseRow, row_from_entity
from tests.support.plain_fold import snapshot_after, snapshots
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
MOST_PEEKED = 32
USAGE = ("input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details", "total_tokens")


@dataclass(frozen=True, slots=True)
class View:
    """What one connection of a client saw of a response.

    Attributes:
        frames: what came, keep-alive comments included or not.
        after: the cursor that the client gave (B4); -1 for the whole, and for the answer to a POST.
        ended: the server ended the stream in order, and not because of its own time limit or a storage that was
            silent (R13): nothing may be missing behind `frames`.
    """

    frames: Sequence[bytes]
    after: int = -1
    ended: bool = False


type Seen = View | Sequence[bytes]
"""A view, or the frames alone of a stream from its beginning that may have broken off anywhere."""


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
    seen: Iterable[Seen] = (),
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
        seen: what each client saw; of a foreground response, which is told once, only what was seen to its end.
        entries: how often the handler was entered; None where nobody counts, and V7 cannot be judged.
        crashes: how many of its owners were killed.
        lost_leases: how many of its owners were displaced while alive.
        cancelled: whether a cancel of it was acknowledged.
        generation_of: tells from an event which claim's handler said it, as far as that is known (V5).
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
    views = [_view(each) for each in seen]
    if has_log(row):
        check_stream(stored.frames, stored.snapshot)
        for view in views:
            check_view(stored.frames, view)
        if generation_of is not None:
            _check_generations(stored.events, generation_of)
    else:
        assert not stored.frames, "there is a log where none belongs"
        for view in views:  # a foreground client is the only witness of its stream
            assert view.after == -1, "B2: a stream without a log was resumed"
            if view.frames:
                check_stream(view.frames, stored.snapshot)
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
    assert "response.queued" not in names[2:], "B6, B8: response.queued behind something else than response.created"
    final = events[-1]["response"]
    _check_fold(events)
    _check_texts(events)
    if snapshot is not None:
        assert final == strip_internal(snapshot), "V6, W4: the terminal event says something else than a GET"
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


def check_view(log: Sequence[bytes], seen: Seen) -> None:
    """Assert that a client saw the log from its cursor on, and all of it if its stream ended in order (V3, V4)."""
    view = _view(seen)
    known = set(log)
    foreign = [frame for frame in view.frames if frame not in known]
    assert not foreign, f"V4: a client saw what is not in the log: {foreign[0][:200]!r}"
    assert view.after >= -1, f"B4: no cursor is {view.after}"
    rest = list(log[view.after + 1 :])
    numbers = [sse.sequence_of(frame) for frame in view.frames]
    same = list(view.frames) == rest[: len(view.frames)]
    assert same, f"V3: behind {view.after} a client saw the numbers {numbers}, the log has {len(log)}"
    complete = not view.ended or len(view.frames) == len(rest)
    assert complete, f"V3: the stream behind {view.after} ended after {len(view.frames)} of {len(rest)} frames"


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


async def check_nothing_left(storage: Storage, principal: str, response_id: str, *, expired: bool = False) -> None:
    """Assert that a deleted response left nothing but its marker (V10).

    As long as the marker stands, so does the claim of its idempotency key (I1), and the note that it is to expire. Of
    the messages on a real service only those are seen that are visible.

    Args:
        storage: the account, through no seam with faults.
        principal: who made the response.
        response_id: which.
        expired: its time was over: neither marker, claim nor note is left.
    """
    key = partition_key(tenant_of(principal), response_id)
    for container in (EVENTS, PAYLOADS):
        left = await storage.driver.list_blobs(container, f"{key}/{response_id}")
        assert not left, f"V10: {left} left in {container}"
    row = await read_row(storage, key, response_id)
    if row is not None:
        _check_marker(row)
    open_runs = await storage.driver.query_entities(WORKERS, row_key=f"run-{response_id}")
    assert not open_runs, "V10: it is open in a ledger"
    await _check_chains(storage, key, response_id, is_marked=row is not None)
    claims = await storage.driver.query_entities(IDEMPOTENCY, partition_key=tenant_of(principal))
    named = {claim.row_key for claim in claims if claim.properties.get("response_id") == response_id}
    assert named <= ({row.request_key} if row else set()), "V10: an idempotency key stands for it"
    if expired:
        assert row is None, "V10: the marker is left"
        notes = await storage.driver.query_entities(EXPIRY)
        noted = [note.row_key for note in notes if response_id in str(note.properties["responses"])]
        assert not noted, f"V10: {noted} name it as something that is to expire"
    texts = await messages(storage)
    assert not any(response_id in text for text in texts), "V10: a message is left"


def _check_marker(row: ResponseRow) -> None:
    assert row.deleted, "V10: the row is no marker"
    assert not row.request.inline, "V10: the request is left"
    assert row.request.blob is None, "V10: the request is left"
    assert row.snapshot is None, "V10: the snapshot is left"
    assert not row.segments, "V10: segments are left"
    assert not row.conversation, "V10: the conversation is left"
    assert not row.principal, "V10: the principal is left"


async def _check_chains(storage: Storage, key: str, response_id: str, *, is_marked: bool) -> None:
    """The chain that a response was for itself is gone; that of its partition does not go on from it.

    The chain of a conversation outlives its turns, and keeps the name of the last one after that has expired.
    """
    kept = await storage.driver.query_entities(RESPONSES, partition_key=key, row_key=own_chain_key(response_id))
    assert not kept, "V10: its chain is left"
    chain = await storage.chains.read(key, CHAIN_ROW)
    names = {chain.ending, *(name for turn in chain.unfinished for name in (turn.id, turn.previous))}
    if is_marked:
        names |= {chain.last, chain.alternate}
    assert response_id not in names, f"V10: its chain goes on from it: {chain}"


async def messages(storage: Storage) -> list[str]:
    """The texts of all messages that can be looked at without taking them."""
    driver = storage.driver
    if isinstance(driver, MemoryDriver):
        return [message.text for queue in driver.queues.values() for message in queue]
    assert isinstance(driver, AzureDriver)
    settings, credential = driver._settings, driver._blocking_credential

    def peek(queue: str) -> list[str]:
        with blocking_queue(settings, queue, credential) as client:
            return [
                str(b64decode(message.content), "utf-8", "replace") for message in client.peek_messages(MOST_PEEKED)
            ]

    return [
        text for texts in await asyncio.gather(*(asyncio.to_thread(peek, name) for name in QUEUES)) for text in texts
    ]


async def check_nothing_recorded(storage: Storage, principal: str) -> None:
    """Assert that a principal's tenant has no trace in storage: rows, blobs, ledger entries.

    But for the markers that refuse inserts which storage may still carry out; they say nothing of the request.
    """
    tenant = tenant_of(principal)
    for container in (EVENTS, PAYLOADS):
        left = await storage.driver.list_blobs(container, tenant)
        assert not left, f"R1: {left} left in {container}"
    rows = await storage.driver.query_entities("responses")
    for entity in rows:
        if entity.partition_key.startswith(tenant):
            assert entity.row_key.startswith(ROW_PREFIX), f"R1: {entity.row_key} is left"
            _check_marker(row_from_entity(entity))
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


def _check_fold(events: Sequence[Json]) -> None:
    """V6: the terminal event says what its reader has by then; it repeats every field, and takes no output back.

    A response that fails may fall back to what was persisted, which is what its reader had at some moment. If it
    failed because its events could not be stored, its output has more than they told.
    """
    final = events[-1]["response"]
    assert snapshot_after(events) == final, "V6: the terminal event leaves out fields that there were"
    error = final["error"] or {}
    if final["status"] == "cancelled" or error.get("code") == "storage_error":
        return
    wanted = _cut_short(final["output"])
    if final["status"] == "failed":
        told = any(_cut_short(state["output"]) == wanted for state in snapshots(events[:-1]))
    else:
        told = _cut_short(snapshot_after(events[:-1])["output"]) == wanted
    assert told, f"V6: the response ends with another output than its events: {str(wanted)[:1000]}"


def _cut_short(output: Sequence[Json]) -> list[Json]:
    """Items as they are when their response ends before them."""
    return [{**item, "status": "incomplete"} if item.get("status") == "in_progress" else item for item in output]


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


def _view(seen: Seen) -> View:
    """As a view, without keep-alive comments."""
    view = seen if isinstance(seen, View) else View(seen)
    return replace(view, frames=[frame for frame in view.frames if not frame.startswith(b":")])
