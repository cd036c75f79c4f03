"""What each mode of a request answers over HTTP, and what is readable afterwards (C1–C8, B1–B18)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilience import ResponseContext, ResponseEventStream
from tests.support.api_server import ApiServer, events_in, queued, serving, until
from tests.support.stream_oracle import assert_response, assert_whole


class Held:
    """A script that says a word and waits; `go` lets it end."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.signals: list[asyncio.Event] = []

    async def __call__(
        self, stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncIterator[dict[str, Any]]:
        self.signals.append(signal)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for event in stream.output_item_message("Hello"):
            yield event
        waits = {asyncio.ensure_future(signal.wait()), asyncio.ensure_future(self.go.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        yield stream.emit_completed()


def ids_of(server: ApiServer) -> list[str]:
    return [context.response_id for context in server.runs]


async def test_foreground_answers_when_it_ended_and_is_readable_after() -> None:
    async with serving() as server:
        answer = await server.post(input="Hello", model="m")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        response = answer.json()
        assert_response(response)
        assert response["status"] == "completed"
        assert response["output"][0]["content"][0]["text"] == "Hello"
        assert (await server.get(response["id"])).json() == response


async def test_foreground_stream_ends_with_what_a_get_answers_and_is_not_replayed() -> None:
    async with serving() as server:
        answer = await server.post(input="Hello", stream=True)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["connection"] == "keep-alive"
        assert answer.headers["x-accel-buffering"] == "no"
        final = assert_whole(events_in(answer.content))
        assert (await server.get(final["id"])).json() == final
        replay = await server.get(final["id"], stream="true")
        assert replay.status_code == 400
        assert replay.json()["error"]["param"] == "stream"


@pytest.mark.parametrize("settings", [queued(), None], ids=["queue", "eager"])
async def test_background_answers_before_its_end_and_is_polled(settings: Any) -> None:
    held = Held()
    async with serving(held, **({"settings": settings} if settings else {})) as server:
        answer = await server.post(input="Hello", background=True)
        response = answer.json()
        assert answer.status_code == 200
        assert_response(response)
        assert response["status"] in ("queued", "in_progress")
        polled = (await server.get(response["id"])).json()
        assert polled["status"] in ("queued", "in_progress")
        held.go.set()
        await server.run_messages()
        final = await server.get_ended(response["id"])
        assert final["status"] == "completed"
        assert (await server.get(response["id"], stream="true")).status_code == 400


async def test_background_stream_is_replayed_byte_for_byte_from_any_number() -> None:
    async with serving() as server:
        answer = await server.post(input="Hello", background=True, stream=True)
        final = assert_whole(events_in(answer.content))
        replay = await server.get(final["id"], stream="true")
        assert replay.content == answer.content
        for after in range(-1, len(events_in(answer.content)) + 1):
            rest = await server.get(final["id"], stream="TRUE", starting_after=after)
            assert rest.status_code == 200
            assert answer.content.endswith(rest.content)
            assert [event["sequence_number"] for event in events_in(rest.content)] == list(
                range(after + 1, len(events_in(answer.content)))
            )


@pytest.mark.parametrize("stream", [False, True])
async def test_unstored_foreground_touches_no_storage_and_is_gone_after(stream: bool) -> None:
    async with serving() as server:
        answer = await server.post(input="Hello", store=False, stream=stream)
        response = assert_whole(events_in(answer.content)) if stream else answer.json()
        assert response["status"] == "completed"
        assert response["store"] is False
        assert server.storage.seam.total() == 0
        assert (await server.get(response["id"])).status_code == 404
        assert (await server.get(response["id"], stream="true")).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_unstored_background_is_refused(stream: bool) -> None:
    async with serving() as server:
        answer = await server.post(input="Hello", store=False, background=True, stream=stream)
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["code"], error["param"]) == ("unsupported_parameter", "background")
        assert server.runs == []


@pytest.mark.parametrize("stream", [False, True])
async def test_foreground_in_flight_is_not_found(stream: bool) -> None:
    held = Held()
    async with serving(held) as server:
        pending = asyncio.create_task(server.post(input="Hello", stream=stream))
        await until(lambda: bool(held.signals))
        url = f"/v1/responses/{ids_of(server)[0]}"
        assert (await server.client.get(url)).status_code == 404
        assert (await server.client.post(f"{url}/cancel")).status_code == 404
        assert (await server.client.delete(url)).status_code == 404
        held.go.set()
        await pending
        assert (await server.client.get(url)).status_code == 200


async def test_foreground_client_that_leaves_a_stream_cancels_it() -> None:
    held = Held()
    async with serving(held) as server:
        async with server.client.stream("POST", "/v1/responses", json={"input": "x", "stream": True}) as answer:
            async for _ in answer.aiter_bytes():
                break
        await until(held.signals[0].is_set)
        assert server.runs[0].client_cancelled
        final = await server.get_ended(ids_of(server)[0])
        assert (final["status"], final["output"]) == ("cancelled", [])


async def test_foreground_client_that_leaves_while_it_waits_cancels_the_run() -> None:
    held = Held()
    async with serving(held) as server:
        pending = asyncio.create_task(server.post(input="x"))
        await until(lambda: bool(held.signals))
        pending.cancel()
        await until(held.signals[0].is_set)
        assert server.runs[0].client_cancelled
        assert (await server.get_ended(ids_of(server)[0]))["status"] == "cancelled"


async def test_background_client_that_leaves_changes_nothing() -> None:
    held = Held()
    async with serving(held) as server:
        body = {"input": "x", "stream": True, "background": True}
        async with server.client.stream("POST", "/v1/responses", json=body) as answer:
            async for _ in answer.aiter_bytes():
                break
        response_id = ids_of(server)[0]
        resumed = asyncio.create_task(server.get(response_id, stream="true", starting_after=0))
        held.go.set()
        events = events_in((await resumed).content)
        assert events[0]["sequence_number"] == 1
        assert events[-1]["response"]["status"] == "completed"
        assert not held.signals[0].is_set()


async def test_cancel_of_a_background_response_is_final_and_ends_its_stream() -> None:
    held = Held()
    async with serving(held) as server:
        stream = asyncio.create_task(server.post(input="x", stream=True, background=True))
        await until(lambda: bool(held.signals))
        url = f"/v1/responses/{ids_of(server)[0]}"
        cancelled = await server.client.post(f"{url}/cancel")
        assert cancelled.status_code == 200
        assert (cancelled.json()["status"], cancelled.json()["output"]) == ("cancelled", [])
        last = events_in((await stream).content)[-1]
        assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")
        assert (await server.client.post(f"{url}/cancel")).json()["status"] == "cancelled"


async def test_cancel_of_a_foreground_response_is_refused() -> None:
    async with serving() as server:
        response = (await server.post(input="Hello")).json()
        answer = await server.client.post(f"/v1/responses/{response['id']}/cancel")
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "Cannot cancel a synchronous response."


async def test_deleted_response_is_gone() -> None:
    async with serving() as server:
        response = (await server.post(input="Hello")).json()
        url = f"/v1/responses/{response['id']}"
        answer = await server.client.delete(url)
        assert answer.json() == {"id": response["id"], "object": "response.deleted", "deleted": True}
        assert (await server.client.get(url)).status_code == 400
        assert (await server.client.get(f"{url}/input_items")).status_code == 400
        assert (await server.client.post(f"{url}/cancel")).status_code == 404


async def test_delete_of_a_response_in_flight_is_refused() -> None:
    held = Held()
    async with serving(held) as server:
        response = (await server.post(input="x", background=True)).json()
        answer = await server.client.delete(f"/v1/responses/{response['id']}")
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "Cannot delete an in-flight response."
        held.go.set()
        await server.get_ended(response["id"])


async def test_input_items_are_listed_by_page() -> None:
    async with serving() as server:
        messages = [{"role": "user", "content": f"{number}"} for number in range(3)]
        response = (await server.post(input=messages)).json()
        url = f"/v1/responses/{response['id']}/input_items"
        page = (await server.client.get(url, params={"limit": 2, "order": "asc"})).json()
        assert page["object"] == "list"
        assert page["has_more"] is True
        assert [item["content"][0]["text"] for item in page["data"]] == ["0", "1"]
        rest = (await server.client.get(url, params={"order": "asc", "after": page["last_id"]})).json()
        assert [item["content"][0]["text"] for item in rest["data"]] == ["2"]


async def test_every_route_answers_without_the_version_too() -> None:
    async with serving() as server:
        response = (await server.client.post("/responses", json={"input": "Hello"})).json()
        assert (await server.client.get(f"/responses/{response['id']}")).json() == response
        assert (await server.client.get(f"/responses/{response['id']}/input_items")).status_code == 200
        assert (await server.client.post(f"/responses/{response['id']}/cancel")).status_code == 400
        assert (await server.client.delete(f"/responses/{response['id']}")).status_code == 200


async def test_handler_sees_the_client_headers_and_the_query() -> None:
    async with serving() as server:
        await server.client.post(
            "/v1/responses?api-version=1&x=a&x=b",
            json={"input": "x"},
            headers={"X-Client-Trace": "T1", "x-other": "no"},
        )
        assert server.runs[0].client_headers == {"x-client-trace": "T1"}
        assert server.runs[0].query_parameters == {"api-version": "1", "x": "b"}
