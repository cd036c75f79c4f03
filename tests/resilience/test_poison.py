"""Messages that no run can come of, before a real host: failed too often, damaged, too large, from somebody else (R5).

They lie in the queues before the worker is there, and it meets all of them at once, with normal work in between.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.storage.queue.aio import QueueClient

from resilience.placement import partition_key, tenant_of
from storage.connection import Storage
from storage.driver import QUEUES, WORK_QUEUE, QueueMessage
from tests.support.azurite import AzuriteServer
from tests.support.host import FunctionHost
from tests.support.invariants import View, check_response
from tests.support.paths import AGENT, Journal, assert_each_phase_once
from tests.support.servers import Deployment, body, deployment, eventually, frames_of

PRINCIPAL = "local"
PATIENCE_SECONDS = 60.0
POISON = "-poison"
ATTEMPTS = 5
"""`maxDequeueCount` of host.json: what was received so often is not given to the function again."""
LARGE = 48_000
"""Bytes of a message: in base64 almost the 64 KiB that a queue takes."""

type Json = dict[str, Any]


def start(response_id: str) -> bytes:
    return json.dumps({"v": 1, "tenant": tenant_of(PRINCIPAL), "id": response_id}).encode()


def filled(message: Json, name: str) -> bytes:
    """The message with a field that makes it as large as it can be."""
    return json.dumps({**message, name: "x" * (LARGE - len(json.dumps({**message, name: ""})))}).encode()


GARBAGE: dict[str, bytes] = {
    "not UTF-8": b"\xff\xfe\x80 no text \xc3\x28",
    "large and not UTF-8": b"\xff" * LARGE,
    "large": b"x" * LARGE,
    "large JSON": b"[" + b"0," * (LARGE // 2 - 1) + b"0]",
    "deep JSON": b"[" * (LARGE // 2) + b"]" * (LARGE // 2),
    "empty": b"",
    "null": b"null",
    "another version": b'{"v":2,"tenant":"a","id":"b"}',
    "id of another kind": start("msg_" + "a" * 50),
    "id that leads astray": start("resp_../../" + "a" * 40),
    "large id": filled({"v": 1, "tenant": tenant_of(PRINCIPAL)}, "id"),
    "nobody's id": start("resp_" + "a" * 50),
    "watch of nobody": b'{"v":1,"worker":"wnobody"}',
}
RAW = ("not base64 at all: \u2028 &lt;", "YWJj=", "=")
"""Texts that are not even base64."""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def cluster(azurite: AzuriteServer, journal: Journal) -> Iterator[Deployment]:
    """One process that serves HTTP; the worker comes later."""
    with deployment(azurite, AGENT, PHASES_JOURNAL=str(journal.path), RESPONSES_MISSING_ROW_PATIENCE="0.5") as made:
        made.start_blocking("--only", "http")
        yield made


@pytest.fixture
async def http(cluster: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.hosts[0].base_url, timeout=120) as client:
        yield client


async def take(storage: Storage, response_id: str) -> QueueMessage:
    """Receive the start message of a response; others are put back."""
    while True:
        message = await storage.driver.receive_message(WORK_QUEUE, visibility=60)
        assert message is not None, f"there is no message of {response_id}"
        if json.loads(message.text)["id"] == response_id:
            return message
        await storage.driver.update_message(WORK_QUEUE, message.receipt, delay=0)


async def use_up(storage: Storage, response_id: str) -> None:
    """Receive the start message as often as a host that failed with it every time."""
    count = 0
    while count < ATTEMPTS:
        message = await take(storage, response_id)
        count = message.dequeue_count
        await storage.driver.update_message(WORK_QUEUE, message.receipt, delay=0)


async def poison(storage: Storage, response_id: str) -> None:
    """Move the start message to the poison queue, as a host does."""
    message = await take(storage, response_id)
    await storage.driver.send_message(WORK_QUEUE + POISON, message.text)
    await storage.driver.delete_message(WORK_QUEUE, message.receipt)


async def litter(cluster: Deployment) -> None:
    """Put every damaged message into every queue."""
    texts = [*(base64.b64encode(data).decode() for data in GARBAGE.values()), *RAW]
    connection, prefix = cluster.environment["AzureWebJobsStorage"], cluster.environment["RESPONSES_STORAGE_PREFIX"]
    for name in (*QUEUES, *(queue + POISON for queue in QUEUES)):
        async with QueueClient.from_connection_string(connection, prefix + name) as queue:
            for text in texts:
                await queue.send_message(text)


async def accept(http: httpx.AsyncClient, storage: Storage, *, stream: bool) -> tuple[str, asyncio.Task[list[bytes]]]:
    """A response, and its client that follows it to its end; a client that polls sees no frames."""
    before = {row.row_key for row in await storage.driver.query_entities("responses")}

    async def follow() -> list[bytes]:
        answer = await http.post("/responses", json=body({"pace": 0.2}, background=True, stream=stream))
        return frames_of(answer.content) if stream else []

    client = asyncio.create_task(follow())
    new: list[str] = []

    async def accepted() -> bool:
        new[:] = [row.row_key for row in await storage.driver.query_entities("responses") if row.row_key not in before]
        return bool(new)

    await eventually(accepted, "it is accepted")
    return new[0].removeprefix("response-"), client


async def test_responses_of_poison_messages_fail_and_damaged_ones_are_survived_beside_normal_runs(
    cluster: Deployment, http: httpx.AsyncClient, journal: Journal
) -> None:
    async with cluster.storage() as storage:
        await storage.driver.ensure((), (), [queue + POISON for queue in QUEUES])
        doomed = {}
        for spoil in (use_up, poison):
            for stream in (False, True):
                response_id, client = await accept(http, storage, stream=stream)
                await spoil(storage, response_id)
                doomed[response_id] = client
        await litter(cluster)
        normal = dict([await accept(http, storage, stream=stream) for stream in (False, True)])
        await litter(cluster)
        worker = await cluster.start("--only", "queue", "--no-timers")
        async with asyncio.timeout(PATIENCE_SECONDS):
            frames = {response_id: await client for response_id, client in {**doomed, **normal}.items()}
            finals = {response_id: await ended(http, response_id) for response_id in frames}
        for response_id, final in finals.items():
            entered = [entry for entry in journal.lines("entered") if entry["response_id"] == response_id]
            if response_id in doomed:
                assert_exhausted(final)
                assert not entered
            else:
                assert_each_phase_once(final, 3)
                assert len(entered) == 1
            seen = [View(frames[response_id], ended=True)] if frames[response_id] else []
            await check_response(storage, PRINCIPAL, response_id, seen=seen, entries=len(entered))
        await eventually(lambda: is_empty(storage, WORK_QUEUE), "all damaged messages are settled", PATIENCE_SECONDS)
        await assert_goes_on(http, storage, worker)


def assert_exhausted(response: Json) -> None:
    assert response["status"] == "failed"
    assert response["output"] == []
    assert response["error"]["code"] == "server_error"
    assert response["error"]["message"]
    assert response["error"]["additionalInfo"]["shutdown_reason"] == "attempts_exhausted"


async def ended(http: httpx.AsyncClient, response_id: str) -> Json:
    while True:
        got: Json = (await http.get(f"/responses/{response_id}")).json()
        if got["status"] in ("completed", "failed"):
            return got
        await asyncio.sleep(0.1)


async def is_empty(storage: Storage, queue: str) -> bool:
    return await storage.driver.count_messages(queue) == 0


async def assert_goes_on(http: httpx.AsyncClient, storage: Storage, worker: FunctionHost) -> None:
    """The very same process does what comes."""
    response_id, client = await accept(http, storage, stream=True)
    assert await client
    assert (await ended(http, response_id))["status"] == "completed"
    row = await storage.rows.read(partition_key(tenant_of(PRINCIPAL), response_id), response_id)
    assert (row.generation, row.attempt) == (1, 1)
    assert worker.running
    assert "cannot be served any more" not in worker.log()
    # Dropped at once: what cannot be understood now will not be understood later.
    assert not re.findall(r"(?:run_response|adopt_worker|fail_\w+|retry_\w+) failed.*", worker.log())
