"""`Idempotency-Key` (I1) over real HTTP and several processes: one key and body, one response."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from protocol import ids
from resilience.idempotency import RequestKey
from resilience.placement import partition_key, tenant_of
from resilience.runtime import unix_time
from storage.connection import Storage
from tests.support.azurite import AzuriteServer
from tests.support.servers import PATIENT, Deployment, body, deployment, events_of, eventually

FLAGS: list[dict[str, bool]] = [{}, {"stream": True}, {"background": True}, {"background": True, "stream": True}]


@pytest.fixture(scope="module")
def server(azurite: AzuriteServer) -> Iterator[Deployment]:
    """Two processes that serve everything: requests with one key meet in storage only."""
    with deployment(azurite, RESPONSES_EAGER_START="true", **PATIENT) as made:
        made.start_blocking()
        made.start_blocking()
        yield made


@pytest.fixture
async def clients(server: Deployment) -> AsyncIterator[list[httpx.AsyncClient]]:
    made = [httpx.AsyncClient(base_url=host.base_url, timeout=60) for host in server.hosts]
    yield made
    for client in made:
        await client.aclose()


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def id_in(answer: httpx.Response) -> str:
    """The id of the response that an answer is about."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        return str(events_of(answer.content)[0]["response"]["id"])
    return str(answer.json()["id"])


async def rows_of(storage: Storage) -> set[str]:
    return {row.row_key for row in await storage.driver.query_entities("responses")}


@pytest.mark.parametrize("flags", FLAGS)
async def test_the_same_key_and_body_answer_with_the_same_response(
    clients: list[httpx.AsyncClient], flags: dict[str, bool]
) -> None:
    request, headers = body({"count": 2}, **flags), key()
    first = await clients[0].post("/responses", json=request, headers=headers)
    again = [await client.post("/responses", json=request, headers=headers) for client in clients]
    assert {id_in(answer) for answer in again} == {id_in(first)}
    if flags == {}:
        assert [answer.json() for answer in again] == [first.json()] * 2
    if flags == {"background": True, "stream": True}:
        assert [answer.content for answer in again] == [first.content] * 2


@pytest.mark.parametrize("flags", FLAGS)
async def test_concurrent_requests_with_one_key_make_one_response(
    server: Deployment, clients: list[httpx.AsyncClient], flags: dict[str, bool]
) -> None:
    request, headers = body({"count": 3, "delay": 0.1}, **flags), key()
    async with server.storage() as storage:
        before = await rows_of(storage)
        answers = await asyncio.gather(
            *(client.post("/responses", json=request, headers=headers) for client in clients * 3)
        )
        assert len({id_in(answer) for answer in answers}) == 1
        assert await rows_of(storage) - before == {f"response-{id_in(answers[0])}"}


async def test_another_body_under_the_same_key_is_refused(clients: list[httpx.AsyncClient]) -> None:
    headers = key()
    await clients[0].post("/responses", json=body({"count": 1}), headers=headers)
    refused = await clients[1].post("/responses", json=body({"count": 2}), headers=headers)
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_reused"


async def test_a_key_of_an_endless_length_is_refused(clients: list[httpx.AsyncClient]) -> None:
    refused = await clients[0].post("/responses", json=body(), headers={"Idempotency-Key": "k" * 300})
    assert refused.status_code == 400


async def test_a_request_that_was_refused_may_be_made_again_under_its_key(clients: list[httpx.AsyncClient]) -> None:
    headers = key()
    refusing: dict[str, Any] = body({"raise_first": True, "end": "refuse"})
    for client in clients:
        assert (await client.post("/responses", json=refusing, headers=headers)).status_code == 400
    made = await clients[0].post("/responses", json=body(), headers=headers)
    assert made.json()["status"] == "completed"


async def test_a_background_response_claimed_by_a_process_that_died_is_made_by_the_next_request(
    server: Deployment, clients: list[httpx.AsyncClient]
) -> None:
    """The crash between claim and record: the key stands for an id that nothing else knows."""
    headers, request = key(), body({"count": 2}, background=True)
    claimed = ids.new_response_id(ids.new_partition())
    async with server.storage() as storage:
        await _claim(storage, headers["Idempotency-Key"], request, claimed)
        answers = await asyncio.gather(
            *(client.post("/responses", json=request, headers=headers) for client in clients * 2)
        )
        assert {id_in(answer) for answer in answers} == {claimed}
        row = await storage.rows.read(partition_key(tenant_of("local"), claimed), claimed)
        assert row.disposition == "resilient"

    async def completed() -> bool:
        return bool((await clients[0].get(f"/responses/{claimed}")).json()["status"] == "completed")

    await eventually(completed, "the response is completed")


async def test_a_foreground_process_killed_after_its_claim_leaves_a_failed_response_to_the_next_request(
    azurite: AzuriteServer,
) -> None:
    with deployment(azurite) as made:
        victim, other = await made.start(), await made.start()
        request, headers = body({"count": 500, "delay": 0.1}), key()
        async with (
            httpx.AsyncClient(base_url=victim.base_url, timeout=60) as first,
            httpx.AsyncClient(base_url=other.base_url, timeout=60) as second,
        ):
            broken = asyncio.create_task(first.post("/responses", json=request, headers=headers))
            async with made.storage() as storage:
                await eventually(lambda: storage.driver.query_entities("idempotency"), "the key is claimed")
            victim.kill()
            with pytest.raises(httpx.HTTPError):
                await broken
            answer = await second.post("/responses", json=request, headers=headers)
            assert answer.json()["status"] == "failed", answer.text
            assert answer.json()["error"]["additionalInfo"]["shutdown_reason"] == "crash_recovery"


async def _claim(storage: Storage, idempotency_key: str, request: dict[str, Any], response_id: str) -> None:
    """Claim a key as a process does, and go no further."""

    class Parts:
        pass

    parts: Any = Parts()
    parts.storage, parts.now = storage, unix_time
    claimed = RequestKey(parts, tenant_of("local"), idempotency_key, request)
    assert await claimed.claim(partition_key(tenant_of("local"), response_id), response_id) is None
