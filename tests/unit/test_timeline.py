"""The timeline tells what happened: in invented logs, and in lives whose course is known, in virtual time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol import sse
from protocol.aio import ResponseEventStream
from protocol.errors import ResponseDeleted, ResponseNotFound
from resilience import timeline
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from resilience.timeline import Entry, Story, bound_generations, timeline_of
from storage.rows import Segment
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, until
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

type Json = dict[str, Any]


# -- invented logs --------------------------------------------------------------------------------------------------


def told(*events: Json) -> Story:
    story = Story()
    for number, event in enumerate(events):
        story.take(number, sse.encode({**event, "sequence_number": number}))
    return story


def created() -> Json:
    return {"type": "response.created", "response": {"status": "in_progress", "output": []}}


def in_progress(items: int = 0) -> Json:
    return {"type": "response.in_progress", "response": {"status": "in_progress", "output": [{}] * items}}


def added(index: int) -> Json:
    return {"type": "response.output_item.added", "output_index": index, "item": {}}


def done(index: int) -> Json:
    return {"type": "response.output_item.done", "output_index": index, "item": {}}


def ended(status: str, code: str | None = None) -> Json:
    name = "failed" if status == "cancelled" else status
    return {"type": f"response.{name}", "response": {"status": status, "error": code and {"code": code}}}


def spans(story: Story) -> list[tuple[int, int]]:
    return [(entry.first, entry.last) for entry in story.entries]


def test_a_life_without_recovery_is_one_entry() -> None:
    story = told(created(), in_progress(), added(0), done(0), ended("completed"))
    assert spans(story) == [(0, 4)]
    assert [mark["what"] for mark in story.marks] == ["created", "started", "ended"]
    assert (story.ended, story.entries[0].items_done) == (True, 1)


def test_a_reset_begins_an_entry_and_says_what_was_kept_and_what_not() -> None:
    story = told(created(), in_progress(), added(0), done(0), added(1), in_progress(1), added(1), ended("completed"))
    assert spans(story) == [(0, 4), (5, 7)]
    (reset,) = [mark for mark in story.marks if mark["what"] == "reset"]
    assert reset == {"sequence_number": 5, "what": "reset", "entry": 2, "kept_items": 1, "discarded_items": 1}


def test_a_reset_that_brings_more_than_was_seen_discards_nothing() -> None:
    story = told(created(), in_progress(), added(0), in_progress(2))
    assert (story.entries[1].kept, story.entries[1].discarded) == (2, 0)


def test_a_queued_response_shows_that_it_was() -> None:
    queued = {"type": "response.queued", "response": {"status": "queued", "output": []}}
    assert [mark["what"] for mark in told(created(), queued, in_progress()).marks] == ["created", "queued", "started"]


@pytest.mark.parametrize(
    ("last", "status", "code"),
    [
        (ended("completed"), "completed", None),
        (ended("cancelled"), "cancelled", None),
        (ended("failed", "server_error"), "failed", "server_error"),
        ({"type": "error", "code": "invalid_prompt", "error": {"code": "invalid_prompt"}}, "failed", "invalid_prompt"),
    ],
    ids=["completed", "cancelled", "failed", "error"],
)
def test_the_end_is_told_with_its_reason(last: Json, status: str, code: str | None) -> None:
    mark = told(created(), last).marks[-1]
    assert mark == {"sequence_number": 1, "what": "ended", "status": status, "error_code": code}


# -- generations ------------------------------------------------------------------------------------------------------


def bounded(spans: list[tuple[int, int]], segments: list[tuple[int, int]], newest: int) -> list[tuple[int, int]]:
    entries = [Entry(first, last, last) for first, last in spans]
    named = [
        Segment(name=f"p/r/{number}-{generation}", first_sequence=first)
        for number, (first, generation) in enumerate(segments)
    ]
    bound_generations(entries, named, newest)
    return [(entry.low, entry.high) for entry in entries]


def test_as_many_entries_as_claims_are_those_claims() -> None:
    assert bounded([(0, 4), (5, 9), (10, 12)], [(0, 0)], 3) == [(1, 1), (2, 2), (3, 3)]


def test_a_silent_claim_leaves_it_open_which_one_was_silent() -> None:
    assert bounded([(0, 4), (5, 9)], [(0, 0)], 3) == [(1, 2), (2, 3)]


def test_a_segment_that_began_within_an_entry_tells_its_generation() -> None:
    assert bounded([(0, 4), (5, 9)], [(0, 0), (7, 3)], 3) == [(1, 2), (3, 3)]


def test_a_segment_that_began_between_two_entries_bounds_both() -> None:
    assert bounded([(0, 4), (5, 9)], [(0, 1), (5, 2)], 4) == [(1, 2), (2, 4)]


def test_a_terminal_event_of_another_worker_says_nothing_of_the_entry_before_it() -> None:
    entries = [Entry(0, 5, 4)]
    bound_generations(
        entries, [Segment(name="p/r/0-0", first_sequence=0), Segment(name="p/r/1-6", first_sequence=5)], 6
    )
    assert (entries[0].low, entries[0].high) == (1, 6)


# -- lives ----------------------------------------------------------------------------------------------------------


async def read(host: Host, response_id: str, principal: str = PRINCIPAL) -> Json:
    return await timeline_of(host.engine.runtime, principal, response_id)


async def test_a_life_without_incident_is_told_as_one() -> None:
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        frames = await reader.whole()
        row = await hosts.finished(await reader.response_id())
        line = await read(host, row.id)
    assert (line["status"], line["generation"], line["attempt"], line["hand_overs"]) == ("completed", 1, 1, 0)
    assert line["log"]["events"] == len(frames)
    assert line["log"]["bytes"] == sum(map(len, frames))
    assert (line["log"]["ended"], line["log"]["truncated"]) == (True, False)
    assert [(entry["generation"], entry["events"]) for entry in line["entries"]] == [(1, len(frames))]
    assert sum(line["event_types"].values()) == len(frames)
    assert (line["chain"], line["checkpoint"]) == (None, None)


async def test_a_killed_worker_is_told_as_a_reset_from_its_last_checkpoint() -> None:
    async with fleet(Teller(6, pause=0.5, checkpoints=True)) as hosts:
        first = hosts.host()
        reader = await first.stream(background())
        response_id = await reader.response_id()
        await until(lambda: sum(event["type"] == "response.output_item.done" for event in reader.events) >= 2)
        await asyncio.sleep(0.2)
        running = await read(first, response_id)
        await first.crash()
        second = hosts.host()
        row = await hosts.finished(response_id)
        line = await read(second, response_id)
    assert running["checkpoint"] == {"output_items": 2}
    assert (running["status"], running["log"]["ended"]) == ("in_progress", False)
    assert (line["generation"], line["attempt"], line["hand_overs"]) == (2, 2, 0)
    assert [entry["generation"] for entry in line["entries"]] == [1, 2]
    assert line["entries"][1]["kept_items"] == 2
    assert line["worker"] == row.owner
    assert line["worker"] != running["worker"]


async def test_checkpoints_that_go_on_while_a_timeline_is_read_do_not_hide_it() -> None:
    """Its snapshot is superseded and deleted between the row and the read."""
    async with fleet(Teller(20, pause=0.5, checkpoints=True, ballast=40_000)) as hosts:
        reader = hosts.host(queues=False)
        hosts.host()
        response_id = await (await reader.stream(background())).response_id()
        await asyncio.sleep(4)
        lookups = await slow_snapshot(reader, 1.5)
        running = await read(reader, response_id)
        await hosts.finished(response_id)
    assert running["status"] == "in_progress"
    assert running["checkpoint"]["output_items"] > 8, "it is the one that there is by now"
    assert lookups == ["payload.get"] * 2


async def test_a_response_that_ends_while_its_timeline_is_read_has_no_checkpoint_in_it() -> None:
    async with fleet(Teller(10, pause=0.5, checkpoints=True, ballast=40_000)) as hosts:
        reader = hosts.host(queues=False)
        hosts.host()
        response_id = await (await reader.stream(background())).response_id()
        await asyncio.sleep(4)
        await slow_snapshot(reader, 60)
        running = await read(reader, response_id)
        assert (await hosts.finished(response_id)).status == "completed"
    assert (running["status"], running["checkpoint"]) == ("in_progress", None)


async def slow_snapshot(host: Host, seconds: float) -> list[str]:
    """The first payload that this host reads comes late; grows by each."""
    lookups: list[str] = []

    async def wait(name: str, moment: str) -> None:
        if (name, moment) == ("payload.get", "before"):
            lookups.append(name)
            if len(lookups) == 1:
                await asyncio.sleep(seconds)

    host.seam.hooks.append(wait)
    return lookups


async def test_a_hand_over_is_counted_and_is_no_attempt() -> None:
    options = ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=2)
    async with fleet(Teller(20, pause=0.5, checkpoints=True)) as hosts:
        first = hosts.host(options=options)
        reader = await first.stream(background())
        response_id = await reader.response_id()
        await reader.until(8)
        second = hosts.host(options=options)
        first.stop_serving()
        await first.inside(first.engine.drain())
        await hosts.finished(response_id)
        line = await read(second, response_id)
    assert (line["generation"], line["attempt"], line["hand_overs"]) == (2, 1, 1)
    assert [mark["what"] for mark in line["marks"]] == ["created", "started", "reset", "ended"]


async def test_roll_overs_are_told_where_they_happened() -> None:
    async with fleet(Teller(8, pause=0.5)) as hosts:
        host = hosts.host(segment_blocks=3)
        reader = await host.stream(background())
        frames = await reader.whole()
        row = await hosts.finished(await reader.response_id())
        line = await read(host, row.id)
    assert len(row.segments) > 2
    segments = line["log"]["segments"]
    assert [segment["first_sequence_number"] for segment in segments] == [part.first_sequence for part in row.segments]
    assert [segment["bytes"] is None for segment in segments] == [False] * (len(segments) - 1) + [True]
    rolled = [(mark["sequence_number"], mark["generation"]) for mark in line["marks"] if mark["what"] == "roll_over"]
    assert rolled == [(part.first_sequence, 1) for part in row.segments[1:]]
    assert line["log"]["events"] == len(frames)


async def test_a_steered_turn_tells_whom_it_waits_for_and_who_waits_behind_it() -> None:
    async def patient(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        await asyncio.sleep(5)
        yield stream.emit_completed()

    async with fleet(patient) as hosts:
        host = hosts.host(options=ResponsesServerOptions(resilient_background=True, steerable_conversations=True))
        turns = [await host.create(background())]
        await until(lambda: hosts.entries[turns[0]["id"]])
        for _ in range(2):
            turns.append(await host.create(background(previous_response_id=turns[-1]["id"])))
        one, two, three = [turn["id"] for turn in turns]
        chains = [(await read(host, turn["id"]))["chain"] for turn in turns]
        await hosts.finished(three)
        after = (await read(host, three))["chain"]
    assert [chain["turn"] for chain in chains] == [1, 2, 3]
    assert [chain["steered"] for chain in chains] == [False, True, True]
    assert [chain["waits_for"] for chain in chains] == [None, one, one]
    assert [chain["waiting_behind"] for chain in chains] == [[two, three], [three], []]
    assert (after["waits_for"], after["waiting_behind"], after["previous_response_id"]) == (None, [], two)


async def test_a_response_without_a_log_has_a_timeline_of_its_row() -> None:
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        polled = (await host.create(background()))["id"]
        await hosts.finished(polled)
        foreground = (await host.create({"model": "m", "input": "hello"}))["id"]
        lines = [await read(host, polled), await read(host, foreground)]
    assert [line["disposition"] for line in lines] == ["resilient", "foreground"]
    assert [(line["log"], line["entries"], line["marks"]) for line in lines] == [(None, [], [])] * 2


async def test_the_timeline_of_a_very_long_log_says_that_it_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MAX_EVENTS", 5)
    async with fleet(Teller(8)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        await reader.whole()
        await hosts.finished(await reader.response_id())
        line = await read(host, await reader.response_id())
    assert (line["log"]["events"], line["log"]["truncated"], line["log"]["ended"]) == (5, True, False)


async def test_what_a_client_may_not_read_has_no_timeline_either() -> None:
    held = asyncio.Event()
    async with fleet(Teller(3, hold=(1, held))) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        with pytest.raises(ResponseNotFound):
            await read(host, response_id, "a stranger")
        held.set()
        await reader.whole()
        await hosts.finished(response_id)
        await deleted(host, hosts, response_id)
        with pytest.raises(ResponseDeleted):
            await read(host, response_id)


async def deleted(host: Host, hosts: Fleet, response_id: str) -> None:
    await host.delete(response_id)
    row = await hosts.row(response_id)
    assert row is not None
    assert row.deleted


async def test_a_timeline_costs_the_row_and_the_log() -> None:
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        await reader.whole()
        await hosts.finished(await reader.response_id())
        await hosts.resting()
        before = len(host.calls)
        await read(host, await reader.response_id())
        assert host.calls[before:] == ["row.read", "log.read"]
