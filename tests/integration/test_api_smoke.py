"""The function app under the real local host and emulator: triggers, host and endpoints fit together."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response
from pydantic import TypeAdapter

from protocol.ids import new_partition, new_response_id
from storage.driver import RESPONSES, WORKERS
from tests.support.api_server import events_in, until
from tests.support.azurite import AzuriteServer
from tests.support.servers import Deployment, deployment
from tests.support.stream_oracle import assert_response, assert_whole

AGENT = "agent:app"


@pytest.fixture(scope="module")
def server(azurite: AzuriteServer) -> Iterator[Deployment]:
    with deployment(azurite, AGENT, RESPONSES_EAGER_START="true", RESPONSES_MAX_BODY_BYTES="100000") as made:
        made.start_blocking("--body-limit", "1000000")
        yield made


@pytest.fixture
async def http(server: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.hosts[0].base_url, timeout=30) as client:
        yield client


@pytest.fixture
async def client(server: Deployment) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.hosts[0].base_url}/v1", api_key="local", max_retries=0) as made:
        yield made


async def test_health_and_readiness_are_served(http: httpx.AsyncClient) -> None:
    for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": status})
        assert answer.headers["x-platform-server"].startswith("resilient-responses/")


async def test_a_typed_client_goes_through_the_life_of_a_response(client: AsyncOpenAI) -> None:
    raw = await client.responses.with_raw_response.create(input="count to 4", background=True)
    TypeAdapter(Response).validate_python(raw.http_response.json(), strict=True)
    accepted = raw.parse()
    assert accepted.status in ("queued", "in_progress")

    async def ended() -> bool:
        return (await client.responses.retrieve(accepted.id)).status == "completed"

    await until(ended, 20)
    stored = await client.responses.with_raw_response.retrieve(accepted.id)
    assert_response(stored.http_response.json())
    assert stored.parse().output_text == "1 2 3 4"
    assert [item.type async for item in client.responses.input_items.list(accepted.id)] == ["message"]
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a completed response"):
        await client.responses.cancel(accepted.id)
    await client.responses.delete(accepted.id)
    with pytest.raises(openai.BadRequestError, match="was deleted"):
        await client.responses.retrieve(accepted.id)


async def test_a_stream_is_resumed_from_the_middle(http: httpx.AsyncClient) -> None:
    body = {"input": "Hello there", "background": True, "stream": True}
    whole = await http.post("/v1/responses", json=body)
    assert whole.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert whole.headers["x-accel-buffering"] == "no"
    final = assert_whole(events_in(whole.content))
    rest = await http.get(f"/responses/{final['id']}", params={"stream": "true", "starting_after": 4})
    assert whole.content.endswith(rest.content)
    assert events_in(rest.content)[0]["sequence_number"] == 5


async def stored_ids(server: Deployment) -> set[str]:
    """The ids of all responses in the deployment's storage."""
    async with server.storage() as storage:
        rows = await storage.driver.query_entities(RESPONSES, row_key_prefix="response-")
    return {row.row_key.removeprefix("response-") for row in rows}


async def open_runs(server: Deployment) -> set[str]:
    """The entries of all workers' ledgers: what runs in the foreground stands nowhere else."""
    async with server.storage() as storage:
        entries = await storage.driver.query_entities(WORKERS, row_key_prefix="run-")
    return {entry.row_key for entry in entries}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_the_foreground_cancels_it_through_the_host(
    http: httpx.AsyncClient, server: Deployment, stream: bool
) -> None:
    known, before = await stored_ids(server), await open_runs(server)
    request = asyncio.create_task(http.post("/v1/responses", json={"input": "count to 9999", "stream": stream}))

    async def begun() -> bool:
        return bool(await open_runs(server) - before)

    await until(begun, 20)
    assert not request.done()
    request.cancel()
    found: set[str] = set()

    async def stored() -> bool:
        found.update(await stored_ids(server) - known)
        return bool(found)

    await until(stored, 20)
    (response_id,) = found
    assert (await http.get(f"/v1/responses/{response_id}")).json()["status"] == "cancelled"


async def test_errors_come_through_the_host_as_they_were_made(http: httpx.AsyncClient) -> None:
    answers = {
        400: await http.get("/v1/responses/nonsense", headers={"x-request-id": "mine"}),
        404: await http.get(f"/v1/responses/{new_response_id(new_partition())}", headers={"x-request-id": "mine"}),
        413: await http.post("/responses", content=b" " * 100_001, headers={"x-request-id": "mine"}),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["x-request-id"] == "mine"
        assert answer.json()["error"]["additionalInfo"] == {"request_id": "mine"}


async def test_an_agent_that_cannot_be_imported_is_named_in_the_log(azurite: AzuriteServer) -> None:
    with deployment(azurite, agent="there_is_no_such_agent:app") as made:
        host = await made.start()
        async with httpx.AsyncClient(base_url=host.base_url, timeout=30) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/readyz")).status_code == 503
            answer = await http.post("/v1/responses", json={"input": "x"})
        assert answer.status_code == 500
        assert "there_is_no_such_agent" not in answer.text
        await host.wait_for_log("RESPONSES_AGENT=there_is_no_such_agent:app: importing there_is_no_such_agent failed")


async def test_a_host_that_stops_with_grace_leaves_its_runs_to_the_next(azurite: AzuriteServer) -> None:
    with deployment(azurite, AGENT, RESPONSES_EAGER_START="true") as made:
        first = await made.start("--grace", "8")
        async with httpx.AsyncClient(base_url=first.base_url, timeout=30) as http:
            response = (await http.post("/v1/responses", json={"input": "count to 12", "background": True})).json()

            async def counts() -> bool:
                return bool((await http.get(f"/v1/responses/{response['id']}")).json()["output"])

            await until(counts, 20)
        first.terminate()
        assert await first.wait_ended() == 0
        second = await made.start()
        async with httpx.AsyncClient(base_url=second.base_url, timeout=30) as http:
            final: dict[str, Any] = {}

            async def ended() -> bool:
                final.update((await http.get(f"/v1/responses/{response['id']}")).json())
                return final["status"] not in ("queued", "in_progress")

            await until(ended, 30)
        texts = [part["text"] for item in final["output"] for part in item["content"]]
        assert "".join(texts).split() == [str(number) for number in range(1, 13)]
