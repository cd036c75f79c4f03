"""The samples that promise to outlive their worker: handed over, cancelled, and killed at every step they take."""

import asyncio
from pathlib import Path

import pytest

from resilience.engine import Engine
from samples import resilient_streaming, steering
from storage.driver import WORK_QUEUE
from tests.samples.killed import Stage, stage, texts_in
from tests.samples.serving import sample
from tests.support.api_server import SETTINGS, ApiServer, until
from tests.support.azurite import AzuriteServer
from tests.support.stream_oracle import assert_whole

PHASES = "samples.resilient_streaming"
TALK = "samples.steering"
TURNS = "samples.multi_turn"

QUESTION = "Why are lakes deep?"
ANSWERS = ["The question has 4 words.", "The longest one is 'lakes'.", "So you want to know about lakes."]


async def test_phases_build_on_each_other_and_their_notes_stay_inside() -> None:
    async with sample("resilient_streaming") as server:
        events = await server.events(input=QUESTION, background=True)
        final = assert_whole(events)
        assert texts_in(final) == ANSWERS
        assert all("internal_metadata" not in event["response"] for event in events if "response" in event)


async def test_worker_that_has_to_stop_leaves_in_the_middle_of_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sample("resilient_streaming") as server:
        monkeypatch.setattr(resilient_streaming, "SECONDS_PER_WORD", 0.2)
        response_id = (await server.post(input=QUESTION, background=True)).json()["id"]

        async def one_phase_is_done() -> bool:
            return len((await server.get(response_id)).json()["output"]) > 0

        await until(one_phase_is_done)
        await server.engine.drain()
        left = (await server.get(response_id)).json()
        kept = [item["id"] for item in left["output"]]
        assert left["status"] == "in_progress"
        assert 1 <= len(kept) < 3
        monkeypatch.setattr(resilient_streaming, "SECONDS_PER_WORD", 0.001)
        other = Engine(resilient_streaming.app, server.storage, SETTINGS)
        try:
            await take_over(other, server)
            final = await other.get("local", response_id)
        finally:
            await other.close()
        assert final["status"] == "completed"
        assert texts_in(final) == ANSWERS
        assert [item["id"] for item in final["output"]][: len(kept)] == kept


async def take_over(engine: Engine, server: ApiServer) -> None:
    """Give another engine what lies in the work queue."""
    while message := await server.storage.driver.receive_message(WORK_QUEUE, visibility=60):
        await engine.run_message(message.text)


async def test_phases_stop_when_they_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sample("resilient_streaming") as server:
        monkeypatch.setattr(resilient_streaming, "SECONDS_PER_WORD", 0.2)
        response_id = (await server.post(input=QUESTION, background=True)).json()["id"]
        await until(lambda: bool(server.engine.runtime.running))
        await server.client.post(f"/v1/responses/{response_id}/cancel")
        await until(lambda: not server.engine.runtime.running)
        ended = (await server.get(response_id)).json()
        assert (ended["status"], ended["output"]) == ("cancelled", [])


async def test_turns_are_counted_until_done() -> None:
    async with sample("multi_turn") as server:

        async def say(text: str, conversation: str) -> str:
            response = (await server.post(input=text, conversation=conversation)).json()
            return "".join(texts_in(response))

        assert await say("one", "conv_a") == "Turn 1. You said:\none"
        assert await say("two", "conv_a") == "Turn 2. You said:\none\ntwo"
        assert await say("other", "conv_b") == "Turn 1. You said:\nother"
        assert await say("Done", "conv_a") == "That was turn 3. Let us begin anew."
        assert await say("three", "conv_a") == "Turn 1. You said:\nthree"
        assert await say("four", "conv_a") == "Turn 2. You said:\nthree\nfour"
        assert await say("more", "conv_b") == "Turn 2. You said:\nother\nmore"


async def test_turns_without_a_conversation_are_all_the_first() -> None:
    async with sample("multi_turn") as server:
        for text in ("one", "two"):
            assert texts_in((await server.post(input=text)).json()) == [f"Turn 1. You said:\n{text}"]


async def test_killed_samples_end_as_if_nothing_had_happened(azurite: AzuriteServer, tmp_path: Path) -> None:
    """One kill catches a dozen and more responses, each at a step of its own."""
    async with stage(azurite, tmp_path, PHASES, TALK, TURNS) as made:
        talks = await asyncio.gather(*(first_turn(made, *held) for held in TALK_POINTS))
        counts = await asyncio.gather(*(second_turn(made, point) for point in TURN_POINTS))
        phases = await asyncio.gather(*(phases_held_at(made, point) for point in PHASE_POINTS))
        await made.staying(len(phases) + len(counts) + sum(turn == 0 for turn, _ in TALK_POINTS))
        kept = await asyncio.gather(*(phases_persisted(made, *held) for held in phases))
        await asyncio.gather(*(other_turns(made, *talk) for talk in talks))
        await made.staying(len(phases) + len(counts) + len(talks))
        await made.replace()
        await asyncio.gather(*(phases_are_whole(made, *held) for held in kept))
        await asyncio.gather(*(turn_counts_once(made, *held) for held in counts))
        await asyncio.gather(*(talk_goes_on_in_order(made, *talk) for talk in talks))


# An item of n words is n + 5 events, of which three say that something is done.
PHASE_POINTS = {
    "event:1:before": 0,
    "event:3:before": 0,
    "event:12:before": 0,
    "checkpoint:1:before": 0,
    "checkpoint:1:after": 1,
    "event:16:before": 1,
    "checkpoint:2:before": 1,
    "checkpoint:2:after": 2,
    "checkpoint:3:before": 2,
    "checkpoint:3:after": 3,
    "event:35:before": 3,
}
"""Where, and how many phases are persisted there."""


async def phases_held_at(made: Stage, point: str) -> tuple[str, str]:
    return point, (await made.post(PHASES, QUESTION, point, background=True))["id"]


async def phases_persisted(made: Stage, point: str, response_id: str) -> tuple[str, str, list[str]]:
    kept = [item["id"] for item in (await made.get(response_id))["output"]]
    assert len(kept) == PHASE_POINTS[point], point
    return point, response_id, kept


async def phases_are_whole(made: Stage, point: str, response_id: str, kept: list[str]) -> None:
    final = await made.ended(response_id)
    assert final["status"] == "completed", point
    assert texts_in(final) == ANSWERS, point
    assert [item["id"] for item in final["output"]][: len(kept)] == kept, point
    assert [entry["is_recovery"] for entry in made.entries(response_id)] == [False, True], point


TURN_POINTS = ("event:1:before", "event:3:before", "event:8:after", "event:9:before")


async def second_turn(made: Stage, point: str) -> tuple[str, str]:
    conversation = f"conv_{point.replace(':', '_')}"
    await made.post(TURNS, "one", conversation=conversation)
    return conversation, (await made.post(TURNS, "two", point, conversation=conversation, background=True))["id"]


async def turn_counts_once(made: Stage, conversation: str, response_id: str) -> None:
    second = await made.ended(response_id)
    assert texts_in(second) == ["Turn 2. You said:\none\ntwo"], conversation
    third = await made.post(TURNS, "three", conversation=conversation)
    assert texts_in(third) == ["Turn 3. You said:\none\ntwo\nthree"], conversation


TALK_POINTS = (
    *((0, point) for point in ("event:3:before", "checkpoint:2:before", "checkpoint:2:after")),
    *((1, point) for point in ("event:3:before", "checkpoint:1:before", "checkpoint:1:after")),
)
"""Which turn is held, and where; a turn with others behind it ends after its first point."""


type Talk = tuple[int, str, str, list[str]]


async def first_turn(made: Stage, turn: int, point: str) -> Talk:
    """Begin a chain of three turns, of which this one is to be held there."""
    conversation = f"conv_{turn}_{point.replace(':', '_')}"
    hold = "steered" if turn else point
    answer = await made.post(TALK, "rivers", hold, conversation=conversation, background=True)
    return turn, point, conversation, [answer["id"]]


async def other_turns(made: Stage, turn: int, point: str, conversation: str, ids: list[str]) -> None:
    for text, hold in (("lakes", point if turn else ""), ("seas", "")):
        answer = await made.post(TALK, text, hold, conversation=conversation, background=True)
        ids.append(answer["id"])


async def talk_goes_on_in_order(made: Stage, turn: int, point: str, conversation: str, ids: list[str]) -> None:
    name = f"{point} in turn {turn}"
    turns = [await made.ended(response_id) for response_id in ids]
    assert [turn["status"] for turn in turns] == ["incomplete", "incomplete", "completed"], name
    said = [texts_in(turn) for turn in turns]
    assert len(said[2]) == steering.POINTS
    for topic, points in zip(("rivers", "lakes", "seas"), said, strict=True):
        assert [point.removesuffix(".").split("Point ")[1] for point in points] == [
            f"{number} about {topic}" for number in range(1, len(points) + 1)
        ], name
    assert said[1][0].startswith(f"As you wish, after {len(said[0])} points."), name
    assert said[2][0].startswith(f"As you wish, after {len(said[1])} points."), name
    first_entries = [made.entries(response_id)[0] for response_id in ids]
    assert [entry["is_steered_turn"] for entry in first_entries] == [False, True, True], name
