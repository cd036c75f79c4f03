"""The samples that answer with one text: getting started, streaming deltas, full control, history, attachments."""

import asyncio
import base64

import httpx
import pytest

from samples import streaming_deltas
from tests.samples.documented import bodies
from tests.samples.serving import deltas_in, sample, text_in
from tests.support.api_server import until
from tests.support.stream_oracle import assert_whole


async def test_getting_started_says_the_input_back() -> None:
    async with sample("getting_started") as server:
        assert text_in((await server.post(input="Hello")).json()) == "You said: Hello"


async def test_streaming_deltas_sends_each_word_as_one() -> None:
    async with sample("streaming_deltas") as server:
        events = await server.events(input="Hello out there")
        assert deltas_in(events) == ["You", " said:", " Hello", " out", " there"]
        assert text_in(assert_whole(events)) == "You said: Hello out there"


async def test_streaming_deltas_stops_when_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sample("streaming_deltas") as server:
        monkeypatch.setattr(streaming_deltas, "SECONDS_PER_WORD", 0.05)
        response = (await server.post(input="word " * 5000, background=True)).json()
        await until(lambda: bool(server.engine.runtime.running))
        cancelled = await server.client.post(f"/v1/responses/{response['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        await until(lambda: not server.engine.runtime.running)
        assert (await server.get(response["id"])).json()["status"] == "cancelled"


async def test_full_control_counts_and_notes_and_keeps_the_clients_metadata() -> None:
    async with sample("full_control") as server:
        events = await server.events(input="one two three", metadata={"mine": "kept"})
        final = assert_whole(events)
        assert deltas_in(events) == ["one", " two", " three"]
        assert (final["status"], final["metadata"]) == ("completed", {"mine": "kept", "words": "3"})
        assert events[0]["response"]["metadata"] == final["metadata"]
        assert (final["usage"]["input_tokens"], final["usage"]["output_tokens"]) == (3, 3)


async def test_full_control_ends_incomplete_where_the_client_allows_no_more() -> None:
    async with sample("full_control") as server:
        final = assert_whole(await server.events(**bodies("full_control")[1]))
        assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert text_in(final) == " ".join(str(number) for number in range(1, 17))
        assert final["usage"]["total_tokens"] == 33


def assert_refused(answer: httpx.Response, because: str) -> None:
    """A 400 of the handler's own, before any event."""
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_request"
    assert because in answer.json()["error"]["message"]


async def test_full_control_refuses_an_input_without_words() -> None:
    async with sample("full_control") as server:
        assert_refused(await server.post(input=" "), "not a word")
        (error,) = await server.events(input=" ")
        assert error["type"] == "error"
        assert "not a word" in error["message"]


async def test_conversation_history_tells_the_earlier_turns_in_order() -> None:
    async with sample("conversation_history") as server:
        link: dict[str, str] = {}
        for turn in ("one", "two", "three"):
            response = (await server.post(input=turn, **link)).json()
            link = {"previous_response_id": response["id"]}
        assert text_in(response) == "You said: three\nBefore that: one; two"


async def test_conversation_history_is_that_of_the_named_conversation_alone() -> None:
    async with sample("conversation_history") as server:
        await server.post(input="tea", conversation="conv_tea")
        for link, said in (
            ({"conversation": "conv_tea"}, "You said: more\nBefore that: tea"),
            ({"conversation": "conv_coffee"}, "You said: more"),
            ({}, "You said: more"),
        ):
            assert text_in((await server.post(input="more", **link)).json()) == said


async def test_attachments_are_described_by_type_and_size() -> None:
    async with sample("image_and_file_input") as server:
        (body,) = bodies("image_and_file_input")
        image, file, address = text_in((await server.post(**body)).json()).splitlines()
        sent = [part.get("image_url") or part.get("file_data") for part in body["input"][0]["content"][1:3]]
        image_bytes, file_bytes = (len(base64.b64decode(url.partition(",")[2])) for url in sent)
        assert image == f"An image: image/png, {image_bytes} bytes"
        assert file == f"note.txt: text/plain, {file_bytes} bytes"
        assert address == "An image at https://example.com/cat.jpeg"


async def test_attachments_are_found_wherever_they_are() -> None:
    found: list[tuple[dict[str, str], str]] = [
        ({"type": "input_image", "file_id": "file_7"}, "An image with the id file_7"),
        ({"type": "input_file", "file_url": "https://example.com/a.pdf"}, "A file at https://example.com/a.pdf"),
        ({"type": "input_file", "filename": "a.txt", "file_data": "data:,a%20b"}, "a.txt: text/plain, 3 bytes"),
        ({"type": "input_text", "text": "just words"}, "Nothing came with the text."),
    ]
    async with sample("image_and_file_input") as server:
        for part, said in found:
            response = (await server.post(input=[{"role": "user", "content": [part]}])).json()
            assert text_in(response) == said


async def test_attachments_that_cannot_be_read_are_refused() -> None:
    async with sample("image_and_file_input") as server:
        for part in (
            {"type": "input_image", "image_url": "data:image/png;base64,!"},
            {"type": "input_file", "filename": "a", "file_data": ""},
        ):
            assert_refused(await server.post(input=[{"role": "user", "content": [part]}]), "data URL")


async def test_samples_keep_apart_what_runs_at_the_same_time() -> None:
    async with sample("streaming_deltas") as server:
        texts = [f"number {number}" for number in range(8)]
        answers = await asyncio.gather(*(server.events(input=text) for text in texts))
        assert [text_in(assert_whole(events)) for events in answers] == [f"You said: {text}" for text in texts]
