"""A worker that lives but looks dead, and one that is dead but does not look so."""

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
from storage.rows import ResponseRow
from tests.support.azurite import AzuriteServer
from tests.support.host import FunctionHost
from tests.support.invariants import View, check_response
from tests.support.paths import AGENT, Journal, assert_each_phase_once, lifetime_of
from tests.support.servers import PATIENT, Deployment, body, deployment, events_of, eventually, frames_from, reached
from tests.support.storage_proxy import StorageProxy

PHASES = 80
PATIENCE_SECONDS = 90.0
HELD_SECONDS = 15.0
"""So long a worker's pushes are held back at least: three times what makes it look dead. All runs last longer."""

PAUSED = {"AzureWebJobs.adopt_worker.Disabled": "true"}
"""Watch messages are received by nobody."""
IDLE = {"AzureWebJobs.run_response.Disabled": "true"}
STALE_SECONDS = 10.0
SHORT = {"RESPONSES_HEARTBEAT_INTERVAL": "1", "RESPONSES_STALE_AFTER": str(STALE_SECONDS)}


class Client:
    """Follows one background stream to its end."""

    def __init__(self, http: httpx.AsyncClient, **script: Any) -> None:
        self.frames: list[bytes] = []
        self.task = asyncio.create_task(self._follow(http, script))

    async def _follow(self, http: httpx.AsyncClient, script: dict[str, Any]) -> None:
        async with http.stream("POST", "/responses", json=body(script, background=True, stream=True)) as answer:
            async for frame in frames_from(answer):
                self.frames.append(frame)

    @property
    def response_id(self) -> str:
        return str(sse.decode(self.frames[0])["response"]["id"])

    def resets(self) -> int:
        """How many workers have spoken."""
        return [sse.event_type(frame) for frame in self.frames].count("response.in_progress")

    async def reached(self, count: int) -> None:
        await reached(lambda: len(self.frames) >= count, f"{count} events", [self.task], PATIENCE_SECONDS)

    async def whole(self) -> list[bytes]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.task
        return self.frames


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def cluster(azurite: AzuriteServer) -> Iterator[Deployment]:
    """One process that serves HTTP; each test adds its workers."""
    with deployment(azurite) as made:
        made.start_blocking("--only", "http")
        yield made


@pytest.fixture
async def http(cluster: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.hosts[0].base_url, timeout=120) as client:
        yield client


async def row_of(storage: Storage, response_id: str) -> ResponseRow:
    return await storage.rows.read(partition_key(tenant_of("local"), response_id), response_id)


def numbers_in(response: Any) -> list[int]:
    texts = [part["text"] for item in response["output"] for part in item["content"]]
    return [int(word) for word in "".join(texts).split()]


@pytest.mark.timeout(300)  # three quarters of a minute of runs, beside whatever else the machine does
async def test_a_live_worker_whose_pushes_are_held_back_loses_its_runs_once_and_goes_on_under_a_new_id(
    cluster: Deployment, http: httpx.AsyncClient, azurite: AzuriteServer, journal: Journal
) -> None:
    phases = {"RESPONSES_AGENT": AGENT, "PHASES_JOURNAL": str(journal.path)}
    async with StorageProxy.before(azurite) as network, cluster.storage() as storage:
        connection = network.through(cluster.environment["AzureWebJobsStorage"])
        survivor = await cluster.start("--only", "queue", **phases, **PATIENT)
        suspect = await cluster.start(AzureWebJobsStorage=connection, RESPONSES_EAGER_START="true", **phases)
        async with httpx.AsyncClient(base_url=suspect.base_url, timeout=120) as own:
            long = {"phases": PHASES, "pace": 0.4, "checkpoints": True}
            clients = [Client(own, **long) for _ in range(3)]
            silent = [(await own.post("/responses", json=body(long, background=True))).json()["id"] for _ in range(2)]
            for client in clients:
                await client.reached(20)
            lasting = {"phases": 40, "pace": 1}
            foreground = [
                asyncio.create_task(own.post("/responses", json=body(lasting, stream=stream)))
                for stream in (False, True)
            ]
            ids = [client.response_id for client in clients] + silent
            (declared_dead,) = {(await row_of(storage, response_id)).owner for response_id in ids}
            await eventually(lambda: has_open(storage, declared_dead, len(ids) + len(foreground)), "all runs are open")
            # The worker's words to its queues, its pushes among them, arrive when others have taken its runs over.
            network.hold("queue")
            held = time.monotonic()
            await reached(lambda: all(len(entries_of(journal, each)) == 2 for each in ids), "all runs moved")
            await asyncio.sleep(held + HELD_SECONDS - time.monotonic())
            assert not any(each.done() for each in foreground), "they are to end behind their worker's back"
            going_on = {(await row_of(storage, response_id)).status for response_id in ids}
            assert going_on == {"in_progress"}, "the words are to arrive in the middle of the runs"
            network.release("queue")
            final = [sse.decode((await client.whole())[-1])["response"] for client in clients]
            await eventually(lambda: all_completed(http, silent), "all runs are completed", PATIENCE_SECONDS)
            final += [(await http.get(f"/responses/{response_id}")).json() for response_id in silent]
            await suspect.wait_for_log(f"worker {declared_dead} was declared dead by another", PATIENCE_SECONDS)
            answers = [await answer for answer in foreground]
        moved = [await row_of(storage, response_id) for response_id in ids]
        assert {(row.status, row.generation, row.attempt) for row in moved} == {("completed", 2, 2)}
        assert declared_dead not in {row.owner for row in moved}
        assert [client.resets() for client in clients] == [2, 2, 2]
        views = [[View(client.frames, ended=True)] for client in clients] + [[] for _ in silent]
        for response, seen in zip(final, views, strict=True):
            entries = entries_of(journal, response["id"])
            assert [entry["pid"] for entry in entries] == [suspect.pid, survivor.pid]
            assert [entry["lifetime"] for entry in entries] == [0, 1]
            assert set(assert_each_phase_once(response, PHASES)) == {0, 1}
            await check_response(
                storage,
                "local",
                response["id"],
                seen=seen,
                entries=len(entries),
                lost_leases=1,
                generation_of=lifetime_of,
            )
        assert survivor.log().count(f"worker {declared_dead} is dead: {len(ids) + len(foreground)} open") == 1
        assert "refused an append" not in survivor.log()
        await assert_one_outcome(http, journal, answers)
        survivor.stop()
        await assert_goes_on(http, storage, {declared_dead, *(row.owner for row in moved)})
        assert {entry["pid"] for entry in journal.lines("entered")[-1:]} == {suspect.pid}


def entries_of(journal: Journal, response_id: str) -> list[dict[str, Any]]:
    return [entry for entry in journal.lines("entered") if entry["response_id"] == response_id]


async def has_open(storage: Storage, worker_id: str, count: int) -> bool:
    return len(await storage.ledger.entries(worker_id)) == count


async def all_completed(http: httpx.AsyncClient, response_ids: list[str]) -> bool:
    answers = [await http.get(f"/responses/{response_id}") for response_id in response_ids]
    return all(answer.json()["status"] == "completed" for answer in answers)


async def assert_one_outcome(http: httpx.AsyncClient, journal: Journal, answers: list[httpx.Response]) -> None:
    """What the adopter recorded of the foreground runs is what their clients, still connected, were told (B6, W4)."""
    told = [answers[0].json(), events_of(answers[1].content)[-1]["response"]]
    for response in told:
        assert response["status"] == "failed"
        assert response["error"]["code"] == "server_error"
        assert (await http.get(f"/responses/{response['id']}")).json() == response
        assert len(entries_of(journal, response["id"])) == 1


async def assert_goes_on(http: httpx.AsyncClient, storage: Storage, others: set[str]) -> None:
    """The once suspected worker, now the only one, runs what comes, under an id that nobody declared dead."""
    client = Client(http)
    await client.whole()
    row = await row_of(storage, client.response_id)
    assert (row.status, row.attempt) == ("completed", 1)
    assert row.owner not in others
    assert client.resets() == 1


async def test_a_dead_worker_whose_watch_message_was_slept_through_is_found_by_the_sweep_alone(
    cluster: Deployment, http: httpx.AsyncClient
) -> None:
    first, sweeper = await asyncio.gather(paused_worker(cluster), paused_worker(cluster, **IDLE))
    orphan = Client(http, count=60, delay=0.4, delay_again=0.02, checkpoint_every=5)
    await orphan.reached(12)
    first.kill()
    busy = await paused_worker(cluster)
    # Without a heartbeat it would be found too.
    unharmed = Client(http, count=100, delay=1.5 * STALE_SECONDS / 100)
    await unharmed.reached(8)

    async def over() -> bool:
        await sweep(sweeper)
        return orphan.resets() > 1 and unharmed.task.done()

    await eventually(over, "the orphan goes on, and the other run is over", PATIENCE_SECONDS)
    async with cluster.storage() as storage:
        for client, resets in ((orphan, 2), (unharmed, 1)):
            await client.whole()
            await check_response(storage, "local", client.response_id, seen=[View(client.frames, ended=True)])
            assert client.resets() == resets
        final = sse.decode(orphan.frames[-1])["response"]
        assert numbers_in(final) == list(range(60))
        unharmed_row = await row_of(storage, unharmed.response_id)
        assert (unharmed_row.generation, unharmed_row.attempt) == (1, 1), "a worker with a heartbeat was swept away"
    assert sweeper.log().count("is dead") == 1
    assert "is dead" not in busy.log()


async def paused_worker(cluster: Deployment, **settings: str) -> FunctionHost:
    return await cluster.start("--only", "queue", "--no-timers", **PAUSED, **SHORT, **settings)


async def sweep(host: FunctionHost) -> None:
    """Let the timer function run now, to its end."""
    before = host.log().count("sweep succeeded")
    async with httpx.AsyncClient(base_url=host.base_url, timeout=30) as admin:
        answer = await admin.post("/admin/functions/sweep", json={})
    assert answer.status_code == 202, answer.text
    await host.until(lambda: host.log().count("sweep succeeded") > before, PATIENCE_SECONDS, "to have swept")
