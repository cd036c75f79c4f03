"""A worker dies or freezes in the middle of its runs: another goes on, and the old one cannot write one byte more."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol import sse
from resilience.placement import partition_key, tenant_of
from storage.connection import Storage
from tests.support.azurite import AzuriteServer
from tests.support.host import FunctionHost, until
from tests.support.invariants import View, check_response
from tests.support.servers import LOOKS_AT_NO_ROW, Deployment, body, deployment, frames_from, frames_of, reached
from tests.support.turn_journal import read_entries

RECOVERY_SECONDS = 16.0
"""From the kill to the first new event that a client sees, on a machine with much other work."""

RETURN_SECONDS = 20.0
"""After this long the host's own message of a killed run comes back; the real host takes ten minutes."""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Who entered a handler says so here."""
    return tmp_path / "journal"


@pytest.fixture
def cluster(azurite: AzuriteServer, journal: Path) -> Iterator[Deployment]:
    """One process that serves HTTP; each test adds its workers."""
    with deployment(azurite, SCRIPTED_JOURNAL=str(journal)) as made:
        made.start_blocking("--only", "http")
        yield made


@pytest.fixture
async def http(cluster: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.hosts[0].base_url, timeout=120) as client:
        yield client


async def worker(cluster: Deployment, **settings: str) -> FunctionHost:
    return await cluster.start("--only", "queue", "--visibility", str(RETURN_SECONDS), **settings)


class Client:
    """Follows one background stream on one connection, to its end."""

    def __init__(self, http: httpx.AsyncClient, script: dict[str, Any]) -> None:
        self.frames: list[bytes] = []
        self.times: list[float] = []
        self.task = asyncio.create_task(self._follow(http, script))

    async def _follow(self, http: httpx.AsyncClient, script: dict[str, Any]) -> None:
        async with http.stream("POST", "/responses", json=body(script, background=True, stream=True)) as answer:
            async for frame in frames_from(answer):
                self.frames.append(frame)
                self.times.append(time.monotonic())

    @property
    def response_id(self) -> str:
        return str(sse.decode(self.frames[0])["response"]["id"])

    async def reached(self, count: int, seconds: float = 30) -> None:
        await reached(lambda: len(self.frames) >= count, f"{count} events", [self.task], seconds)


def entries_of(journal: Path, response_id: str) -> int:
    """How often the handler was entered for it."""
    return sum(entry.response_id == response_id for entry in read_entries(journal))


async def log_bytes(storage: Storage, response_id: str) -> bytes:
    row = await storage.rows.read(partition_key(tenant_of("local"), response_id), response_id)
    parts = [await storage.log.read(segment.name, 0, 1 << 24) for segment in row.segments]
    return b"".join(parts)


async def test_a_killed_worker_is_replaced_in_the_same_log_while_its_client_stays_connected(
    cluster: Deployment, http: httpx.AsyncClient, journal: Path
) -> None:
    # Both are there before: a kill need not wait for the start of a process, however long that takes.
    workers = {each.pid: each for each in await asyncio.gather(worker(cluster), worker(cluster))}
    client = Client(http, {"count": 90, "delay": 0.1, "checkpoint_every": 5})
    await client.reached(20)
    (entry,) = read_entries(journal)
    first = workers.pop(entry.pid)
    (survivor,) = workers.values()
    first.kill()
    killed_at = time.monotonic()
    before = len(client.frames)
    await asyncio.wait_for(client.task, 60)
    # What was on its way when the worker was killed may still have arrived.
    silence = max(
        later - earlier for earlier, later in zip(client.times[before - 1 :], client.times[before:], strict=False)
    )
    assert silence < RECOVERY_SECONDS, f"{silence:.1f} s without an event"
    events = [sse.decode(frame) for frame in client.frames]
    async with cluster.storage() as storage:
        await check_response(
            storage,
            "local",
            client.response_id,
            seen=[View(client.frames, ended=True)],
            entries=entries_of(journal, client.response_id),
            crashes=1,
        )
    assert [event["type"] for event in events].count("response.in_progress") == 2, cluster.logs()
    final = events[-1]["response"]
    assert final["status"] == "completed"
    texts = [part["text"] for item in final["output"] for part in item["content"]]
    assert "".join(texts).split() == [str(number) for number in range(90)]
    assert (await http.get(f"/responses/{client.response_id}")).json() == final
    replay = await http.get(f"/responses/{client.response_id}", params={"stream": "true"})
    assert frames_of(replay.content) == client.frames
    await _assert_the_old_message_changes_nothing(cluster, survivor, client, killed_at)


async def _assert_the_old_message_changes_nothing(
    cluster: Deployment, survivor: FunctionHost, client: Client, killed_at: float
) -> None:
    """The host gives the killed invocation's message to the other worker, which leaves everything as it is."""
    async with cluster.storage() as storage:
        key = partition_key(tenant_of("local"), client.response_id)
        row = await storage.rows.read(key, client.response_id)
        data = await log_bytes(storage, client.response_id)
        assert data == b"".join(client.frames)
        # One invocation for the message that the adopter sent, one for that of the killed worker.
        left = killed_at + RETURN_SECONDS + 25 - time.monotonic()
        assert await until(lambda: survivor.log().count("run_response succeeded") >= 2, left), "it did not come back"
        assert await storage.rows.read(key, client.response_id) == row
        assert await log_bytes(storage, client.response_id) == data


async def test_the_only_worker_comes_back_and_goes_on(
    cluster: Deployment, http: httpx.AsyncClient, journal: Path
) -> None:
    first = await worker(cluster)
    client = Client(http, {"count": 200, "delay": 0.1, "delay_again": 0.01})
    await client.reached(12)
    first.kill()
    await worker(cluster)
    await asyncio.wait_for(client.task, 60)
    async with cluster.storage() as storage:
        await check_response(
            storage,
            "local",
            client.response_id,
            seen=[View(client.frames, ended=True)],
            entries=entries_of(journal, client.response_id),
            crashes=1,
        )
    assert [sse.event_type(frame) for frame in client.frames].count("response.in_progress") == 2
    final = sse.decode(client.frames[-1])["response"]
    assert final["output"][0]["content"][0]["text"].split() == [str(number) for number in range(200)]


async def test_a_frozen_owner_is_refused_by_storage_in_every_append_and_status_write(
    cluster: Deployment, http: httpx.AsyncClient, journal: Path
) -> None:
    # Together no more than `newBatchThreshold` of host.json: only so many are sure to run at once in one worker.
    streams, polls = 10, 6
    # There before, and asleep: the first entries need not outlast the start of a process.
    successor = await worker(cluster)
    successor.freeze()
    frozen = await worker(cluster, **LOOKS_AT_NO_ROW)
    # The first entry lasts long enough on a busy machine; what comes after the freeze need not.
    streamed = [Client(http, {"count": 150, "delay": 0.2, "delay_again": 0.01}) for _ in range(streams)]
    # Without a log: what the frozen worker tries to write late is their status.
    silent = body({"count": 60, "delay": 0.5, "checkpoint_every": 1, "delay_again": 0.01}, background=True)
    accepted = await asyncio.gather(*(http.post("/responses", json=silent) for _ in range(polls)))
    polled = [answer.json()["id"] for answer in accepted]
    for client in streamed:
        await client.reached(8)
    assert await all_in(http, polled, {"in_progress"})
    frozen.freeze()
    successor.thaw()
    for client in streamed:
        await asyncio.wait_for(client.task, 90)
    assert await all_in(http, polled, {"completed"})
    async with cluster.storage() as storage:
        before = await _everything(storage, streamed, polled)
        frozen.thaw()
        refusals = {
            **{client.response_id: "refused an append of generation 1" for client in streamed},
            **dict.fromkeys(polled, "refused a status write of generation 1"),
        }
        for response_id, refusal in refusals.items():
            await frozen.wait_for_log(f"response {response_id}: storage {refusal}", 60)
        assert await _everything(storage, streamed, polled) == before
        views = {client.response_id: [View(client.frames, ended=True)] for client in streamed}
        for response_id in refusals:
            await check_response(
                storage,
                "local",
                response_id,
                seen=views.get(response_id, []),
                entries=entries_of(journal, response_id),
                lost_leases=1,
            )
    assert "refused" not in successor.log()
    for client in streamed:
        final = sse.decode(client.frames[-1])["response"]
        assert final == (await http.get(f"/responses/{client.response_id}")).json()


async def all_in(http: httpx.AsyncClient, response_ids: list[str], statuses: set[str], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answers = [await http.get(f"/responses/{response_id}") for response_id in response_ids]
        if all(answer.json()["status"] in statuses for answer in answers):
            return True
        await asyncio.sleep(0.1)
    return False


async def _everything(storage: Storage, streamed: list[Client], polled: list[str]) -> list[object]:
    """The rows, with their etags, and the logs."""
    ids = [client.response_id for client in streamed] + polled
    rows: list[object] = [
        await storage.rows.read(partition_key(tenant_of("local"), response_id), response_id) for response_id in ids
    ]
    return rows + [await log_bytes(storage, client.response_id) for client in streamed]
