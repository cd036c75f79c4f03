"""The samples whose answer is more than a text: calls, several items, pictures, sources, data."""

import base64
import json
import zlib
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from resilience.engine import Engine
from samples import several_outputs
from storage.driver import WORK_QUEUE
from tests.samples.documented import bodies
from tests.samples.serving import sample, text_in
from tests.support.api_server import SETTINGS, until
from tests.support.stream_oracle import assert_response, assert_whole

TOOLS: Any = bodies("function_calling")[0]["tools"]


async def test_function_is_called_and_its_output_answered_in_the_next_turn() -> None:
    async with sample("function_calling") as server:
        first = assert_whole(await server.events(input="How is the weather in Turin?", tools=TOOLS))
        (call,) = first["output"]
        assert (call["type"], call["name"], call["status"]) == ("function_call", "get_weather", "completed")
        assert json.loads(call["arguments"]) == {"city": "Turin"}
        for output in ("21 degrees", [{"type": "input_text", "text": "21 degrees"}]):
            result = {"type": "function_call_output", "call_id": call["call_id"], "output": output}
            events = await server.events(input=[result], tools=TOOLS, previous_response_id=first["id"])
            assert text_in(assert_whole(events)) == "The weather in Turin: 21 degrees"


async def test_function_output_is_answered_when_the_client_sends_the_whole_conversation() -> None:
    async with sample("function_calling") as server:
        response = (await server.post(store=False, **bodies("function_calling")[1])).json()
        assert text_in(response) == "The weather in Turin: 21 degrees"


async def test_output_of_a_call_that_nobody_made_is_refused() -> None:
    async with sample("function_calling") as server:
        result = {"type": "function_call_output", "call_id": "call_none", "output": "x"}
        answer = await server.post(input=[result], tools=TOOLS)
        assert answer.status_code == 400
        assert "call_none" in answer.json()["error"]["message"]


async def test_function_that_was_not_offered_is_not_called() -> None:
    async with sample("function_calling") as server:
        response = (await server.post(input="How is the weather in Turin?")).json()
        assert [item["type"] for item in response["output"]] == ["message"]


async def test_several_outputs_come_one_after_another() -> None:
    async with sample("several_outputs") as server:
        events = await server.events(input="Tell me", background=True)
        final = assert_whole(events)
        assert [item["type"] for item in final["output"]] == ["reasoning", "message", "message"]
        assert final["output"][0]["summary"][0]["text"] == "The question has 2 words."
        places = [event["output_index"] for event in events if "output_index" in event]
        assert places == sorted(places)


async def test_several_outputs_go_on_in_another_worker_behind_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sample("several_outputs") as server:
        monkeypatch.setattr(several_outputs, "SECONDS_PER_WORD", 0.2)
        response_id = (await server.post(input="Tell me", background=True)).json()["id"]

        async def one_is_finished() -> bool:
            return len((await server.get(response_id)).json()["output"]) > 0

        await until(one_is_finished)
        await server.engine.drain()
        left = (await server.get(response_id)).json()
        kept = [item["id"] for item in left["output"]]
        assert left["status"] == "in_progress"
        assert 1 <= len(kept) < 3
        monkeypatch.setattr(several_outputs, "SECONDS_PER_WORD", 0.001)
        other = Engine(several_outputs.app, server.storage, SETTINGS)
        try:
            while message := await server.storage.driver.receive_message(WORK_QUEUE, visibility=60):
                await other.run_message(message.text)
            final = await other.get("local", response_id)
        finally:
            await other.runtime.stop_tasks()
            await other.runtime.worker.stop()
        assert_response(final)
        assert final["status"] == "completed"
        assert [item["id"] for item in final["output"]][: len(kept)] == kept
        assert [item["type"] for item in final["output"]] == ["reasoning", "message", "message"]


async def test_several_outputs_stop_when_they_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sample("several_outputs") as server:
        monkeypatch.setattr(several_outputs, "SECONDS_PER_WORD", 0.05)
        response = (await server.post(input="word " * 5000, background=True)).json()

        async def the_long_one_has_begun() -> bool:
            return len((await server.get(response["id"])).json()["output"]) > 0

        await until(the_long_one_has_begun)
        await server.client.post(f"/v1/responses/{response['id']}/cancel")
        await until(lambda: not server.engine.runtime.running)
        ended = (await server.get(response["id"])).json()
        assert (ended["status"], ended["output"]) == ("cancelled", [])


def pixels_of(png: str) -> set[bytes]:
    """The different pixels of a picture, read from its PNG; every checksum must be right."""
    data = base64.b64decode(png, validate=True)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, data[8:]
    while rest:
        length = int.from_bytes(rest[:4])
        kind, content = rest[4:8], rest[8 : 8 + length]
        assert zlib.crc32(kind + content) == int.from_bytes(rest[8 + length : 12 + length])
        chunks[kind], rest = content, rest[12 + length :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height = int.from_bytes(chunks[b"IHDR"][:4]), int.from_bytes(chunks[b"IHDR"][4:8])
    raw = zlib.decompress(chunks[b"IDAT"])
    size = 1 + 3 * width
    assert len(raw) == size * height
    lines = [raw[start + 1 : start + size] for start in range(0, len(raw), size)]
    return {line[start : start + 3] for line in lines for start in range(0, len(line), 3)}


async def test_picture_comes_after_as_many_coarser_ones_as_were_asked_for() -> None:
    async with sample("image_generation") as server:
        for previews in (0, 1, 3):
            tool = {"type": "image_generation", "partial_images": previews}
            events = await server.events(input="A sunset", tools=[tool])
            (picture,) = assert_whole(events)["output"]
            partial = [event for event in events if event["type"].endswith(".partial_image")]
            assert [event["partial_image_index"] for event in partial] == list(range(previews))
            details = [len(pixels_of(png)) for png in (*(e["partial_image_b64"] for e in partial), picture["result"])]
            assert details == sorted(set(details))
            assert picture["status"] == "completed"


async def test_picture_follows_from_the_input() -> None:
    async with sample("image_generation") as server:
        one, same, other = [
            (await server.post(input=text)).json()["output"][0]["result"] for text in ("A sunset", "A sunset", "A sea")
        ]
        assert one == same != other


async def test_every_source_is_cited_at_its_sentence() -> None:
    async with sample("annotations") as server:
        events = await server.events(input="Tell me of a river.")
        (part,) = assert_whole(events)["output"][0]["content"]
        added = [event for event in events if event["type"] == "response.output_text.annotation.added"]
        assert [event["annotation"] for event in added] == part["annotations"]
        assert [event["annotation_index"] for event in added] == [0, 1, 2]
        cited = [part["text"][entry["start_index"] : entry["end_index"]] for entry in part["annotations"]]
        assert " ".join(cited) == part["text"]
        assert {entry["title"] for entry in part["annotations"]} == {"Po", "Turin", "Adriatic"}


class Appointment(BaseModel):
    names: list[str]
    date: str | None


async def test_structured_text_is_parsed_by_the_official_client() -> None:
    async with sample("structured_outputs") as server:
        base_url = f"{str(server.client.base_url).rstrip('/')}/v1"
        async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            answer = await client.responses.parse(
                model="m", input="Let us say Ada meets Bob on 2027-03-14", text_format=Appointment
            )
        assert answer.output_parsed == Appointment(names=["Ada", "Bob"], date="2027-03-14")


async def test_structured_item_is_the_object_itself() -> None:
    async with sample("structured_outputs") as server:
        (item,) = assert_whole(await server.events(**bodies("structured_outputs")[0]))["output"]
        assert item["type"] == "structured_outputs"
        assert item["output"] == {"names": ["Ada", "Bob"], "date": "2027-03-14"}


async def test_schema_that_requires_something_unknown_is_refused() -> None:
    async with sample("structured_outputs") as server:
        schema = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
        wanted = {"format": {"type": "json_schema", "name": "meeting", "schema": schema}}
        answer = await server.post(input="x", text=wanted)
        assert answer.status_code == 400
        assert "place" in answer.json()["error"]["message"]
