"""The sample whose long answers are cut short by the next turn."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from resilience.placement import partition_key, tenant_of
from samples import steering
from tests.samples.killed import texts_in
from tests.samples.serving import sample
from tests.support.api_server import ApiServer, until
from tests.support.stream_oracle import assert_response, assert_whole

type Json = dict[str, Any]

WORDS_BEFORE_SILENCE = 5
"""A point has four."""


@pytest.fixture
def goes_on(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Who speaks falls silent in the middle of its second point, until this is set; from then on it speaks at once."""
    event = asyncio.Event()
    said = 0

    async def slowly(text: str) -> AsyncGenerator[str]:
        nonlocal said
        for number, word in enumerate(text.split()):
            said += 1
            if said > WORDS_BEFORE_SILENCE:
                await event.wait()
            yield word if number == 0 else f" {word}"

    monkeypatch.setattr(steering, "slowly", slowly)
    return event


async def said_something(server: ApiServer, response_id: str) -> None:
    """Wait until the first point of a response is persisted."""

    async def has_said() -> bool:
        return len((await server.get(response_id)).json()["output"]) > 0

    await until(has_said)


def points(response: Json, topic: str) -> int:
    """How many points it made of this topic; all of them whole and in order."""
    said = [text.rpartition("Point ")[2] for text in texts_in(response)]
    assert said == [f"{number} about {topic}." for number in range(1, len(said) + 1)]
    return len(said)


async def test_newer_turn_cuts_the_running_one_short_at_the_end_of_a_point(goes_on: asyncio.Event) -> None:
    async with sample("steering") as server:
        first = (await server.post(input="rivers", background=True)).json()
        await said_something(server, first["id"])
        second = (await server.post(input="lakes", background=True, previous_response_id=first["id"])).json()
        assert (second["status"], second["output"]) == ("queued", [])
        assert second["metadata"] == {"waits_for": "an earlier turn"}
        goes_on.set()
        ended = await server.get_ended(first["id"])
        assert ended["status"] == "incomplete"
        assert points(ended, "rivers") == 2
        answer = await server.get_ended(second["id"])
        assert answer["status"] == "completed"
        assert points(answer, "lakes") == steering.POINTS
        assert texts_in(answer)[0].startswith(f"As you wish, after {points(ended, 'rivers')} points. ")


async def test_turn_that_waits_for_nobody_is_not_steered() -> None:
    async with sample("steering") as server:
        first = assert_whole(await server.events(input="rivers"))
        second = assert_whole(await server.events(input="lakes", previous_response_id=first["id"]))
        for response, topic in ((first, "rivers"), (second, "lakes")):
            assert response["status"] == "completed"
            assert texts_in(response)[0] == f"Point 1 about {topic}."
            assert "waits_for" not in response["metadata"]


@pytest.mark.parametrize("background", [False, True])
async def test_several_turns_wait_in_their_order(background: bool, goes_on: asyncio.Event) -> None:
    async with sample("steering") as server:
        first = (await server.post(input="rivers", background=True, conversation="conv_order")).json()
        await said_something(server, first["id"])
        asked = []
        for topic in ("lakes", "seas", "clouds"):
            request = server.post(input=topic, background=background, conversation="conv_order")
            asked.append(asyncio.create_task(request))
            await joined(server, first["id"], 1 + len(asked))
        goes_on.set()
        answers = [(await request).json() for request in asked]
        ended = [await server.get_ended(each["id"]) for each in (first, *answers)]
        for response in ended:
            assert_response(response)
        assert [each["status"] for each in ended] == ["incomplete"] * 3 + ["completed"]
        made = [points(each, topic) for each, topic in zip(ended, ("rivers", "lakes", "seas", "clouds"), strict=True)]
        for number, response in enumerate(ended[1:]):
            assert texts_in(response)[0].startswith(f"As you wish, after {made[number]} points. ")


async def joined(server: ApiServer, first: str, turns: int) -> None:
    """Wait until a chain has so many turns, those that have ended included."""

    async def has_joined() -> bool:
        chain = await server.storage.chains.read(partition_key(tenant_of("local"), first))
        return chain.turns == turns

    await until(has_joined)


async def test_turn_without_a_word_is_refused_and_does_not_wait(goes_on: asyncio.Event) -> None:
    async with sample("steering") as server:
        first = (await server.post(input="rivers", background=True)).json()
        await said_something(server, first["id"])
        refused = await server.post(input=" ", background=True, previous_response_id=first["id"])
        assert refused.status_code == 400, refused.text
        assert "nothing to wait for" in refused.json()["error"]["message"]
        goes_on.set()
        assert (await server.get_ended(first["id"]))["status"] == "completed"


async def test_cancelled_turn_has_no_output_and_the_next_one_runs(goes_on: asyncio.Event) -> None:
    async with sample("steering") as server:
        first = (await server.post(input="rivers", background=True)).json()
        await said_something(server, first["id"])
        second = (await server.post(input="lakes", background=True, previous_response_id=first["id"])).json()
        await server.client.post(f"/v1/responses/{first['id']}/cancel")
        assert (await server.get(first["id"])).json()["output"] == []
        goes_on.set()
        answer = await server.get_ended(second["id"])
        assert texts_in(answer)[0].startswith("As you wish, after 0 points. ")
        assert points(answer, "lakes") == steering.POINTS
