"""The judge of stored responses notices what it is there for: one damage at a time, each by its own number."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from protocol import jsonio, sse
from protocol.fold import Fold
from resilience.idempotency import hash_of
from resilience.options import ResponsesServerOptions
from resilience.placement import tenant_of
from storage.chains import Turn, own_chain_key
from storage.driver import EVENTS, WORK_QUEUE, WORKERS, Insert
from storage.expiry import StoredResponse
from storage.memory import MemoryDriver
from storage.payloads import StoredPayload
from storage.rows import ResponseRow, Segment, row_key, row_properties
from tests.support.engines import PRINCIPAL, Fleet, background, fleet, key_of, start_message
from tests.support.handlers import Teller
from tests.support.invariants import (
    Span,
    View,
    assert_chain,
    check_nothing_left,
    check_response,
    check_view,
)
from tests.support.plain_fold import snapshot_after
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

NUMBERS = [*(f"V{number}" for number in range(1, 11)), "B6"]
HOUR = 3_600.0
LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""


@dataclass
class Scene:
    """What is stored, and what clients and handlers tell of it; a damage changes either.

    Attributes:
        response_id: of a response with a log, whose first worker was killed.
        seen: what its clients saw.
        turns: of a conversation.
        spans: of their handlers.
        deleted: of a response that was deleted.
        expired: of one whose time was over.
    """

    hosts: Fleet
    response_id: str
    seen: list[View]
    turns: list[str]
    spans: list[Span]
    deleted: str
    expired: str
    entries: int = 2
    cancelled: bool = False
    accepted: list[str] = field(default_factory=list)

    @property
    def driver(self) -> MemoryDriver:
        """The account, to be damaged."""
        driver = self.hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        return driver

    async def judge(self) -> None:
        """All that there is to be judged."""
        storage = self.hosts.storage
        await check_response(
            storage,
            PRINCIPAL,
            self.response_id,
            seen=self.seen,
            entries=self.entries,
            crashes=1,
            cancelled=self.cancelled,
            generation_of=self.hosts.generation_of(self.response_id),
        )
        await assert_chain(storage, PRINCIPAL, self.turns[0], self.spans, accepted=[*self.turns, *self.accepted])
        await check_nothing_left(storage, PRINCIPAL, self.deleted)
        await check_nothing_left(storage, PRINCIPAL, self.expired, expired=True)

    async def row(self, response_id: str = "") -> ResponseRow:
        """A row as it is."""
        row = await self.hosts.row(response_id or self.response_id)
        assert row is not None
        return row

    async def change_row(self, response_id: str = "", **changes: Any) -> None:
        """Write other values into a row, whatever its status."""
        await self.hosts.storage.rows.replace(replace(await self.row(response_id), **changes))

    async def frames(self) -> list[bytes]:
        """The log."""
        row = await self.row()
        (segment,) = row.segments
        return sse.split(bytes(self.driver.containers[EVENTS][segment.name].data))[0]

    async def change_log(self, frames: list[bytes]) -> None:
        """Put other frames in its place; clients have seen what is there then."""
        row = await self.row()
        self.driver.containers[EVENTS][row.segments[0].name].data[:] = b"".join(frames)
        self.seen = [View(frames, ended=True)]

    async def change_snapshot(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Store another snapshot."""
        row = await self.row()
        assert row.snapshot is not None
        snapshot = jsonio.loads(await self.hosts.storage.payloads.get(row.snapshot))
        change(snapshot)
        await self.change_row(snapshot=StoredPayload(inline=jsonio.dumps(snapshot)))


@asynccontextmanager
async def stored() -> AsyncIterator[Scene]:
    """A scene in which nothing is wrong."""
    teller = Teller(3, pause=0.5)
    async with fleet(teller) as hosts:
        options = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
        first = hosts.host()
        expired = (await first.create({"input": LARGE}, idempotency_key="old"))["id"]
        await hosts.quiet()
        await first.crash()
        await asyncio.sleep(3 * HOUR)  # with nobody there to look for messages
        victim, host = hosts.host(queues=False, eager_start=True), hosts.host(options=options, retention_days=1 / 24)
        while not host.calls or host.calls[-1] != "expiry.due":
            await host.inside(host.engine.expire())
        reader = await victim.stream(background())
        response_id = await reader.response_id()
        await reader.until(5)
        await victim.crash()
        resumed = await host.replay(response_id, len(reader.frames) - 1)
        await resumed.whole()
        turns = [(await host.create({"input": "hi", "conversation": "talk"}))["id"] for _ in range(3)]
        deleted = (await host.create({"input": LARGE}, idempotency_key="new"))["id"]
        await host.delete(deleted)
        await hosts.finished(response_id)
        await hosts.quiet()
        spans: list[Span] = [(turn, number, number + 0.5) for number, turn in enumerate(turns)]
        yield Scene(hosts, response_id, [reader.view, resumed.view], turns, spans, deleted, expired)


type Damage = Callable[[Scene], Awaitable[None]]
DAMAGES: dict[str, tuple[str, Damage]] = {}


def damage(number: str) -> Callable[[Damage], Damage]:
    """What must be noticed under that number."""

    def noted(done: Damage) -> Damage:
        DAMAGES[f"{number}-{done.__name__}"] = number, done
        return done

    return noted


def renumbered(frame: bytes, number: int) -> bytes:
    return sse.encode({**sse.decode(frame), "sequence_number": number})


@damage("V1")
async def no_outcome(scene: Scene) -> None:
    await scene.change_row(status="in_progress")


@damage("V1")
async def another_outcome(scene: Scene) -> None:
    """By row and snapshot it is incomplete, its log says completed."""
    await scene.change_row(status="incomplete")

    def change(snapshot: dict[str, Any]) -> None:
        snapshot.update(status="incomplete", completed_at=None)

    await scene.change_snapshot(change)
    frames = await scene.frames()
    event = sse.decode(frames[-1])
    change(event["response"])
    await scene.change_log([*frames[:-1], sse.encode(event)])


@damage("V1")
async def no_row(scene: Scene) -> None:
    del scene.driver.tables["responses"][key_of(scene.response_id), row_key(scene.response_id)]


@damage("V1")
async def no_terminal_event(scene: Scene) -> None:
    await scene.change_log((await scene.frames())[:-1])


@damage("V1")
async def a_second_terminal_event(scene: Scene) -> None:
    frames = await scene.frames()
    await scene.change_log([*frames, renumbered(frames[-1], len(frames))])


@damage("V1")
async def an_event_behind_the_terminal_one(scene: Scene) -> None:
    frames = await scene.frames()
    await scene.change_log([*frames, renumbered(frames[-2], len(frames))])


@damage("V2")
async def a_gap(scene: Scene) -> None:
    frames = await scene.frames()
    await scene.change_log([*frames[:4], *frames[5:]])


@damage("V2")
async def a_frame_twice(scene: Scene) -> None:
    frames = await scene.frames()
    await scene.change_log([*frames[:4], *frames[3:]])


@damage("V2")
async def two_frames_swapped(scene: Scene) -> None:
    frames = await scene.frames()
    await scene.change_log([*frames[:4], frames[5], frames[4], *frames[6:]])


@damage("V2")
async def half_a_frame(scene: Scene) -> None:
    frames = await scene.frames()
    await scene.change_log([*frames, frames[-1][:40]])


@damage("V3")
async def a_resume_shifted_by_one(scene: Scene) -> None:
    scene.seen.append(View((await scene.frames())[5:], after=3, ended=True))


@damage("V3")
async def a_resume_with_what_was_seen_before(scene: Scene) -> None:
    scene.seen.append(View((await scene.frames())[3:], after=3, ended=True))


@damage("V3")
async def a_stream_without_its_beginning(scene: Scene) -> None:
    scene.seen.append(View((await scene.frames())[3:]))


@damage("V3")
async def a_stream_that_ended_in_order_before_the_end(scene: Scene) -> None:
    scene.seen.append(View((await scene.frames())[3:5], after=2, ended=True))


@damage("V3")
async def a_stream_that_ended_in_order_with_nothing(scene: Scene) -> None:
    scene.seen.append(View([], ended=True))


@damage("V3")
async def a_hole_in_a_stream(scene: Scene) -> None:
    frames = await scene.frames()
    scene.seen.append(View([*frames[:4], *frames[5:]]))


@damage("V4")
async def a_frame_of_another_response(scene: Scene) -> None:
    reader = await scene.hosts.hosts[-1].stream(background())
    await reader.whole()
    await scene.hosts.quiet()
    scene.seen.append(View([*(await scene.frames())[:4], reader.frames[4]]))


@damage("V4")
async def a_frame_that_was_never_stored(scene: Scene) -> None:
    frames = await scene.frames()
    scene.seen.append(View([*frames, renumbered(frames[3], len(frames))]))


@damage("V5")
async def a_stale_claimant_that_entered_late(scene: Scene) -> None:
    """In the order of the entries all is well."""
    first, second = scene.hosts.entries[scene.response_id]
    first.generation, second.generation = second.generation, first.generation


@damage("V5")
async def segments_out_of_order(scene: Scene) -> None:
    row = await scene.row()
    frames = await scene.frames()
    head, _, _ = row.segments[0].name.rpartition("/")
    first, second = f"{head}/0000-0002", f"{head}/0001-0001"
    parts = {first: b"".join(frames[:4]), second: b"".join(frames[4:])}
    for name, data in parts.items():
        await scene.driver.create_append_blob(EVENTS, name)
        await scene.driver.append_block(EVENTS, name, data, position=0, lease_id=None)
    segments = (Segment(name=first, first_sequence=0, length=len(parts[first])), Segment(name=second, first_sequence=4))
    await scene.change_row(segments=segments)


@damage("V5")
async def a_displaced_owner_that_wrote_elsewhere(scene: Scene) -> None:
    name = (await scene.row()).segments[0].name.rpartition("/")[0] + "/0007-0001"
    await scene.driver.create_append_blob(EVENTS, name)
    await scene.driver.append_block(EVENTS, name, b"x", position=0, lease_id=None)


@damage("V6")
async def no_snapshot(scene: Scene) -> None:
    await scene.change_row(snapshot=None)


@damage("V6")
async def a_snapshot_of_another_status(scene: Scene) -> None:
    await scene.change_snapshot(lambda snapshot: snapshot.update(status="failed"))


@damage("V6")
async def a_snapshot_with_another_output(scene: Scene) -> None:
    await scene.change_snapshot(lambda snapshot: snapshot["output"].clear())


@damage("V6")
async def an_outcome_without_what_was_told(scene: Scene) -> None:
    """Snapshot and terminal event agree; the events before had more."""
    await scene.change_snapshot(lambda snapshot: snapshot["output"].clear())
    frames = await scene.frames()
    event = sse.decode(frames[-1])
    event["response"]["output"] = []
    await scene.change_log([*frames[:-1], sse.encode(event)])


@damage("B6")
async def a_stream_that_waits_again(scene: Scene) -> None:
    """Behind its reset."""
    frames = await scene.frames()
    resets = [index for index, frame in enumerate(frames) if sse.event_type(frame) == "response.in_progress"]
    event = sse.decode(frames[resets[1]])
    queued = {**event, "type": "response.queued", "response": {**event["response"], "status": "queued"}}
    told = [*frames[: resets[1]], sse.encode(queued), *frames[resets[1] :]]
    await scene.change_log([renumbered(frame, number) for number, frame in enumerate(told)])


@damage("V7")
async def an_entry_too_many(scene: Scene) -> None:
    scene.entries += 1


@damage("V8")
async def a_cancel_that_was_forgotten(scene: Scene) -> None:
    scene.cancelled = True


@damage("V9")
async def turns_swapped(scene: Scene) -> None:
    (first, *_), (second, *_), last = scene.spans
    scene.spans = [(second, 0, 0.5), (first, 1, 1.5), last]


@damage("V9")
async def turns_that_overlap(scene: Scene) -> None:
    scene.spans[0] = (scene.turns[0], 0, 1.2)


@damage("V9")
async def a_turn_entered_twice(scene: Scene) -> None:
    scene.spans.append((scene.turns[2], 3, 3.5))


@damage("V9")
async def a_turn_never_entered(scene: Scene) -> None:
    del scene.spans[1]


@damage("V9")
async def a_turn_that_is_gone(scene: Scene) -> None:
    scene.accepted.append(scene.expired)


@damage("V9")
async def a_turn_that_waits_for_ever(scene: Scene) -> None:
    chain = await scene.hosts.storage.chains.read(key_of(scene.turns[0]))
    await scene.hosts.storage.chains.replace(replace(chain, pending=(Turn("resp_x", 4, False, ""),)))


@damage("V9")
async def a_chain_that_never_rests(scene: Scene) -> None:
    chain = await scene.hosts.storage.chains.read(key_of(scene.turns[0]))
    await scene.hosts.storage.chains.replace(replace(chain, active=Turn(scene.turns[2], 3, False, "")))


@damage("V9")
async def two_turns_with_one_number(scene: Scene) -> None:
    await scene.change_row(scene.turns[2], turn=2)


@damage("V9")
async def an_unfinished_turn(scene: Scene) -> None:
    await scene.change_row(scene.turns[2], status="queued")


@damage("V10")
async def a_row_that_is_no_marker(scene: Scene) -> None:
    await scene.change_row(scene.deleted, deleted=False)


@damage("V10")
async def a_marker_with_its_request(scene: Scene) -> None:
    await scene.change_row(scene.deleted, request=StoredPayload(inline=b"{}"))


@damage("V10")
async def a_marker_with_its_snapshot(scene: Scene) -> None:
    await scene.change_row(scene.deleted, snapshot=StoredPayload(inline=b"{}"))


@damage("V10")
async def a_marker_that_tells_who_asked(scene: Scene) -> None:
    await scene.change_row(scene.deleted, principal=PRINCIPAL)


@damage("V10")
async def a_payload(scene: Scene) -> None:
    await scene.hosts.storage.payloads.put(key_of(scene.deleted), scene.deleted, "request", LARGE.encode())


@damage("V10")
async def a_segment(scene: Scene) -> None:
    await scene.driver.create_append_blob(EVENTS, f"{key_of(scene.deleted)}/{scene.deleted}/0000-0001")


@damage("V10")
async def a_message(scene: Scene) -> None:
    await scene.driver.send_message(WORK_QUEUE, start_message(scene.deleted), delay=1_000)


@damage("V10")
async def an_entry_of_a_ledger(scene: Scene) -> None:
    await scene.driver.insert_entity(WORKERS, Insert("w1", f"run-{scene.deleted}", {}))


@damage("V10")
async def a_chain_of_its_own(scene: Scene) -> None:
    chains = scene.hosts.storage.chains
    await chains.replace(await chains.read(key_of(scene.deleted), own_chain_key(scene.deleted)))


@damage("V10")
async def a_chain_that_goes_on_from_it(scene: Scene) -> None:
    chains = scene.hosts.storage.chains
    await chains.replace(replace(await chains.read(key_of(scene.deleted)), last=scene.deleted))


@damage("V10")
async def a_second_idempotency_key(scene: Scene) -> None:
    await scene.hosts.storage.keys.claim(tenant_of(PRINCIPAL), hash_of("another"), scene.deleted, "")


@damage("V10")
async def an_idempotency_key_of_what_expired(scene: Scene) -> None:
    await scene.hosts.storage.keys.claim(tenant_of(PRINCIPAL), hash_of("old"), scene.expired, "")


@damage("V10")
async def a_marker_of_what_expired(scene: Scene) -> None:
    row = replace(await scene.row(scene.deleted), id=scene.expired, partition_key=key_of(scene.expired))
    insert = Insert(row.partition_key, row_key(row.id), row_properties(row))
    await scene.driver.insert_entity("responses", insert)


@damage("V10")
async def a_note_of_what_expired(scene: Scene) -> None:
    expired = StoredResponse(key_of(scene.expired), scene.expired)
    await scene.hosts.storage.expiry.note(scene.hosts.now(), [expired])


async def test_nothing_is_wrong_where_nothing_was_damaged() -> None:
    async with stored() as scene:
        assert [entry.generation for entry in scene.hosts.entries[scene.response_id]] == [1, 2]
        await scene.judge()


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damage_is_noticed_under_its_number(name: str) -> None:
    number, damaged = DAMAGES[name]
    async with stored() as scene:
        await damaged(scene)
        with pytest.raises(AssertionError, match=rf"^{number}\b"):
            await scene.judge()


def test_every_invariant_is_damaged() -> None:
    assert {number for number, _ in DAMAGES.values()} == set(NUMBERS)


def test_frames_alone_are_a_stream_from_its_beginning_that_may_break_off() -> None:
    log = [b'event: a\ndata: {"type":"a","sequence_number":%d}\n\n' % number for number in range(5)]
    for length in range(6):
        check_view(log, log[:length])
        check_view(log, [b": keep-alive\n\n", *log[:length]])
        check_view(log, View(log[2 : 2 + length], after=1))
    check_view(log, View([], after=4, ended=True))
    check_view(log, View([], after=9, ended=True))


def about(kind: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "output_index": index, "item_id": "i", **more}


FOLDED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "text": (
        [
            about("output_item.added", item={"type": "message", "content": []}),
            about("content_part.added", content_index=0, part={"type": "output_text", "text": ""}),
            about("output_text.delta", content_index=0, delta="a"),
            about("output_text.delta", content_index=0, delta="b"),
            about("refusal.delta", content_index=1, delta="no"),
        ],
        [
            {
                "type": "message",
                "content": [{"type": "output_text", "text": "ab"}, {"type": "refusal", "refusal": "no"}],
            }
        ],
    ),
    "the last word": (
        [
            about("output_item.added", item={"type": "message", "content": []}),
            about("output_text.delta", content_index=0, delta="a"),
            about("output_text.done", content_index=0, text="b"),
            about("content_part.done", content_index=0, part={"type": "output_text", "text": "c"}),
            about("output_text.annotation.added", content_index=0, annotation_index=0, annotation={"type": "x"}),
        ],
        [{"type": "message", "content": [{"type": "output_text", "text": "c", "annotations": [{"type": "x"}]}]}],
    ),
    "a call": (
        [
            about("output_item.added", item={"type": "function_call", "arguments": ""}),
            about("function_call_arguments.delta", delta="{"),
            about("function_call_arguments.delta", delta="}"),
            about("output_item.added", 1, item={"type": "web_search_call", "status": "in_progress"}),
            about("web_search_call.searching", 1),
        ],
        [{"type": "function_call", "arguments": "{}"}, {"type": "web_search_call", "status": "searching"}],
    ),
    "a summary": (
        [
            about("output_item.added", item={"type": "reasoning", "summary": []}),
            about("reasoning_summary_part.added", summary_index=0, part={"type": "summary_text", "text": ""}),
            about("reasoning_summary_text.delta", summary_index=0, delta="a"),
        ],
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]}],
    ),
    "a shell call": (
        [
            about("output_item.added", item={"type": "shell_call", "action": {"commands": ["cat"]}}),
            about("shell_call_command.delta", command_index=0, delta=" a"),
            about("shell_call_command.delta", command_index=0, delta=" b"),
            about("shell_call_command.added", command_index=1, command=""),
            about("shell_call_command.delta", command_index=1, delta="pwd"),
            about("shell_call_command.added", command_index=2, command="x"),
            about("shell_call_command.delta", command_index=2, delta="y"),
            about("shell_call_command.done", command_index=2, command="ls"),
            about("shell_call_command.delta", command_index=2, delta=" -l"),
        ],
        [{"type": "shell_call", "action": {"commands": ["cat a b", "pwd", "ls -l"]}}],
    ),
    "a reset": (
        [
            about("output_item.added", item={"type": "message", "content": []}),
            about("output_item.added", 1, item={"type": "message", "content": []}),
            {"type": "response.in_progress", "response": {"output": [{"type": "message", "content": ["kept"]}]}},
            about("output_item.added", 1, item={"type": "message", "content": ["new"]}),
            about("output_item.done", 1, item={"type": "message", "content": ["done"]}),
            {"type": "response.of_a_newer_server", "output_index": 0},
        ],
        [{"type": "message", "content": ["kept"]}, {"type": "message", "content": ["done"]}],
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_second_opinion_on_a_stream_is_right(name: str) -> None:
    events, output = FOLDED[name]
    created = {"type": "response.created", "response": {"id": "r", "output": []}}
    assert snapshot_after([created, *events]) == {"id": "r", "output": output}
    fold = Fold(created["response"])  # type: ignore[arg-type]
    for event in events:
        fold.apply(event)
    assert fold.items() == output, "the server's own fold has another opinion"
