"""What is left of a response when it has ended: read, replayed, deleted (B2, B4, B5, B14, B35, W4, W9, delete)."""

import asyncio
from typing import Any

import httpx
import pytest

from protocol import ids
from tests.contract.modes import EVERY_MODE, MODES, STORED_MODES, ask
from tests.support.api_server import ApiServer, events_in
from tests.support.invariants import check_nothing_left

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def readings(server: ApiServer, response_id: str) -> dict[str, httpx.Response]:
    """Every way to ask for a response."""
    url = f"/v1/responses/{response_id}"
    return {
        "get": await server.client.get(url),
        "replay": await server.client.get(f"{url}?stream=true"),
        "input_items": await server.client.get(f"{url}/input_items"),
        "cancel": await server.client.post(f"{url}/cancel"),
    }


@EVERY_MODE
async def test_what_can_be_read_afterwards_follows_from_how_it_was_asked_for(server: ApiServer, mode: str) -> None:
    told = await ask(server, mode)
    found = await readings(server, told.response["id"])
    statuses = {name: answer.status_code for name, answer in found.items()}
    if not MODES[mode].get("store", True):
        assert statuses == dict.fromkeys(statuses, 404)
        return
    assert statuses == {"get": 200, "replay": 200 if mode == "C4" else 400, "input_items": 200, "cancel": 400}
    assert found["get"].json() == told.response
    if mode == "C4":
        assert found["replay"].content == told.answer.content
    else:
        assert found["replay"].json()["error"]["param"] == "stream"


async def test_cursor_gives_what_follows_and_behind_the_end_nothing(server: ApiServer) -> None:
    """B4, W9: without a cursor, or with -1, everything; any number past the end is an empty stream that ends."""
    told = await ask(server, "C4")
    response_id, count = told.response["id"], len(told.events)
    whole = told.answer.content
    for cursor, numbers in (
        ({}, range(count)),
        ({"starting_after": -1}, range(count)),
        ({"starting_after": 0}, range(1, count)),
        ({"starting_after": count - 2}, range(count - 1, count)),
        ({"starting_after": count - 1}, range(0)),
        ({"starting_after": 10**30}, range(0)),
    ):
        answer = await server.get(response_id, stream="true", **cursor)
        assert answer.status_code == 200
        assert whole.endswith(answer.content)
        assert [event["sequence_number"] for event in events_in(answer.content)] == list(numbers)


@pytest.mark.parametrize("cursor", ["x", "", "1.5", "-2", "1e3", " 1"])
async def test_cursor_that_is_none_is_refused(server: ApiServer, cursor: str) -> None:
    told = await ask(server, "C4")
    answer = await server.get(told.response["id"], stream="true", starting_after=cursor)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "starting_after"


async def test_readers_at_the_same_time_see_the_same_bytes(server: ApiServer) -> None:
    told = await ask(server, "C4")
    readers = [server.get(told.response["id"], stream="true") for _ in range(8)]
    assert {answer.content for answer in await asyncio.gather(*readers)} == {told.answer.content}


async def test_deleted_response_is_gone_and_leaves_nothing_but_the_word_of_it(server: ApiServer) -> None:
    gone = [(await ask(server, mode, input="x" * 40_000)).response["id"] for mode in STORED_MODES]
    for response_id in gone:
        answer = await server.client.delete(f"/v1/responses/{response_id}")
        assert answer.status_code == 200
        assert answer.json() == {"id": response_id, "object": "response.deleted", "deleted": True}

        found = await readings(server, response_id)
        statuses = {name: answer.status_code for name, answer in found.items()}
        assert statuses == {"get": 400, "replay": 400, "input_items": 400, "cancel": 404}
        for name in ("get", "replay", "input_items"):
            error = found[name].json()["error"]
            assert error["type"] == "invalid_request_error"
            assert "deleted" in error["message"]
        assert (await server.client.delete(f"/v1/responses/{response_id}")).status_code == 404
    for response_id in gone:
        await until_nothing_is_left(server, response_id)


async def until_nothing_is_left(server: ApiServer, response_id: str) -> None:
    """The clean-up has a message of its own, which a queue function receives a little later."""
    async with asyncio.timeout(20):
        while True:
            await server.run_messages()
            try:
                await check_nothing_left(server.storage, "local", response_id)
                return
            except AssertionError:
                await asyncio.sleep(0.1)


async def test_deleted_response_is_nobodys_predecessor(server: ApiServer) -> None:
    told = await ask(server, "C1")
    await server.client.delete(f"/v1/responses/{told.response['id']}")
    for mode in MODES:
        refused = await ask(server, mode, previous_response_id=told.response["id"])
        assert refused.answer.status_code == 404
        assert refused.error["code"] == "previous_response_not_found"
        assert refused.error["param"] == "previous_response_id"


async def test_response_that_never_was_is_not_found_in_any_way(server: ApiServer) -> None:
    unknown = ids.new_response_id(ids.new_partition())
    found: dict[str, Any] = await readings(server, unknown)
    found["delete"] = await server.client.delete(f"/v1/responses/{unknown}")
    for answer in found.values():
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"
