"""A handler's internal metadata is kept with the response and never leaves the server (R12).

One canary for each place a handler can put notes in; every way out is walked, in every mode.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol import jsonio
from resilience import ResponseContext, ResponseEventStream
from tests.contract.modes import EVERY_MODE, MODES, ask
from tests.support.api_server import ApiServer, events_in, queued, serving, until
from tests.support.invariants import read_stored

type Json = dict[str, Any]

CANARY = "canary-"
ON_RESPONSE, ON_MESSAGE, ON_CALL, OF_CLIENT = (CANARY + place for place in ("response", "message", "call", "client"))
PLOTS = ("complete", "fail", "raise", "invalid", "refuse")


def noted(stream: ResponseEventStream) -> list[Json]:
    """Two items, with notes on each and on the response."""
    stream.internal_metadata["note"] = {"deep": [ON_RESPONSE]}
    message = stream.add_output_item_message()
    message.internal_metadata["note"] = ON_MESSAGE
    call = stream.add_output_item_function_call("f", "call_1")
    call.internal_metadata["note"] = ON_CALL
    return [
        message.emit_added(),
        *message.text_content(["Hel", "lo"]),
        message.emit_done(),
        call.emit_added(),
        *call.arguments("{}"),
        call.emit_done(),
    ]


class Notes:
    """Plays by the text of the input: `fail`, `raise`, `refuse`, `invalid`, `echo`, `wait`, or completes."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()

    async def __call__(
        self, stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncIterator[Json]:
        plot = (await context.get_input_text()).rpartition("\n")[2]
        if plot == "refuse":
            raise ValueError("No.")
        stream.internal_metadata["note"] = ON_RESPONSE
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for event in noted(stream):
            yield event
        yield stream.checkpoint()
        if plot == "echo":
            for item in [*await context.get_history(), *await context.get_input_items()]:
                if item["type"] == "message" and item["role"] == "assistant":
                    place = {"output_index": len(stream.response["output"]), "item": item}
                    yield stream.emit_event({"type": "response.output_item.added", **place})
                    yield stream.emit_event({"type": "response.output_item.done", **place})
        if plot == "wait":
            self.waiting.set()
            await signal.wait()
        if plot == "raise":
            raise RuntimeError("broken")
        if plot == "invalid":
            yield {"type": "response.output_item.added", "output_index": 0, "item": {"internal_metadata": ON_MESSAGE}}
        yield stream.emit_failed() if plot == "fail" else stream.emit_completed()


async def every_way_out(server: ApiServer, response_id: str) -> list[bytes]:
    """What there is to read of a response, whoever asks for it."""
    url = f"/v1/responses/{response_id}"
    gets = ["", "?stream=true", "?stream=true&starting_after=3", "/input_items", "/input_items?order=asc&limit=1"]
    answers = [await server.client.get(f"{url}{path}") for path in gets]
    answers.append(await server.client.post(f"{url}/cancel"))
    return [answer.content + repr(answer.headers).encode() for answer in answers]


@EVERY_MODE
async def test_no_answer_of_any_kind_shows_internal_metadata(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bytes] = []
    async with serving(Notes()) as server:
        for plot in PLOTS:
            told = await ask(server, mode, input=plot)
            response_id = server.runs[-1].response_id
            seen += [told.answer.content, *await every_way_out(server, response_id)]
            if MODES[mode].get("store", True) and plot != "refuse":
                await assert_kept(server, response_id)
                seen.append((await server.client.delete(f"/v1/responses/{response_id}")).content)
                seen += await every_way_out(server, response_id)
    assert_clean(seen)
    assert CANARY not in caplog.text


async def assert_kept(server: ApiServer, response_id: str) -> None:
    """The notes are in storage, in the snapshot and not in the log that clients are served from."""
    stored = await read_stored(server.storage, "local", response_id)
    kept = jsonio.dumps(stored.snapshot).decode()
    assert [place in kept for place in (ON_RESPONSE, ON_MESSAGE, ON_CALL)] == [True] * 3
    assert not any(CANARY.encode() in frame for frame in stored.frames)


def assert_clean(seen: list[bytes]) -> None:
    assert not [answer for answer in seen if CANARY.encode() in answer or b"internal_metadata" in answer]


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled_response_shows_none(stream: bool) -> None:
    notes = Notes()
    async with serving(notes) as server:
        posted = asyncio.create_task(server.post(input="wait", background=True, stream=stream))
        await until(notes.waiting.is_set)
        response_id = server.runs[0].response_id
        live = (await server.get(response_id)).content
        cancelled = (await server.client.post(f"/v1/responses/{response_id}/cancel")).content
        seen = [live, cancelled, (await posted).content, *await every_way_out(server, response_id)]
    assert_clean(seen)


@EVERY_MODE
async def test_earlier_turns_show_none_to_the_client_of_a_later_one(mode: str) -> None:
    """References, and a handler that says again what stands in its history, with the notes still on it."""
    async with serving(Notes()) as server:
        first = (await server.post(input="Hello")).json()
        references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        body = [*references, {"role": "user", "content": "echo"}]
        told = await ask(server, mode, input=body, previous_response_id=first["id"])
        assert len(told.response["output"]) > 2
        seen = [told.answer.content, *await every_way_out(server, told.response["id"])]
        if MODES[mode].get("store", True):
            listed = (await server.client.get(f"/v1/responses/{told.response['id']}/input_items")).json()["data"]
            assert [item["type"] for item in listed] == ["message", "function_call", "message"]
    assert_clean(seen)


async def test_clients_cannot_plant_any() -> None:
    async with serving() as server:
        item = {"role": "user", "content": "Hello", "internal_metadata": {"note": OF_CLIENT}}
        response = (await server.post(input=[item], internal_metadata={"note": OF_CLIENT})).json()
        assert "internal_metadata" not in server.runs[0].request
        assert "internal_metadata" not in (await server.runs[0].get_input_items())[0]
        stored = await read_stored(server.storage, "local", response["id"])
        assert OF_CLIENT not in jsonio.dumps(stored.snapshot).decode()
        assert (
            OF_CLIENT.encode() not in (await server.client.get(f"/v1/responses/{response['id']}/input_items")).content
        )


async def test_broken_stream_in_flight_shows_none_either() -> None:
    """What a client has read when it is thrown out in the middle."""
    notes = Notes()
    async with serving(notes, settings=queued()) as server:
        body = {"input": "wait", "background": True, "stream": True}
        async with server.client.stream("POST", "/v1/responses", json=body) as answer:
            running = asyncio.create_task(server.run_messages())
            seen = b""
            async for chunk in answer.aiter_bytes():
                seen += chunk
                if b"function_call_arguments.done" in seen:
                    break
        response_id = events_in(seen[: seen.index(b"\n\n") + 2])[0]["response"]["id"]
        await server.client.post(f"/v1/responses/{response_id}/cancel")
        await running
    assert CANARY.encode() not in seen
