"""Writes of an owner that were on their way when it stopped, and arrive after another one has taken over (R4).

One of each kind: an append, the row's next state, a transaction of the ledger, the creation of the log's next segment.
The proxy before the owner's storage keeps them, the owner is stopped with SIGSTOP, another worker takes over and ends
every response. Then they arrive, first without their owner, then with it.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol import sse
from resilience.record import RequestRecord
from storage.connection import Storage
from storage.driver import EVENTS, RESPONSES, WORKERS
from storage.rows import ResponseRow, row_from_entity
from tests.support.azurite import AzuriteServer
from tests.support.host import FunctionHost, until
from tests.support.invariants import View, check_response
from tests.support.paths import AGENT, Journal, assert_each_phase_once, lifetime_of
from tests.support.servers import LOOKS_AT_NO_ROW, Deployment, body, deployment, eventually, frames_from
from tests.support.storage_proxy import Call, KeptBack, StorageProxy

PRINCIPAL = "local"
PATIENCE_SECONDS = 60.0
PHASES = 14
WORKER = ("--only", "queue", "--no-timers", "--visibility", "8")
"""A message that a stopped process has received comes back soon."""
SHORT_SEGMENTS = {"RESPONSES_SEGMENT_BLOCKS": "8"}

type Json = dict[str, Any]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def cluster(azurite: AzuriteServer, journal: Journal) -> Iterator[Deployment]:
    """One process that serves HTTP; the test adds its workers."""
    with deployment(azurite, AGENT, PHASES_JOURNAL=str(journal.path), **SHORT_SEGMENTS) as made:
        made.start_blocking("--only", "http")
        yield made


@pytest.fixture
async def http(cluster: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.hosts[0].base_url, timeout=120) as client:
        yield client


def request(name: str, *, stream: bool) -> Json:
    script = {"phases": PHASES, "pace": 0.15, "checkpoints": True}
    return body(script, background=True, stream=stream, metadata={"name": name})


async def follow(http: httpx.AsyncClient, name: str) -> list[bytes]:
    async with http.stream("POST", "/responses", json=request(name, stream=True)) as answer:
        return [frame async for frame in frames_from(answer)]


async def rows(storage: Storage) -> dict[str, ResponseRow]:
    """The responses, by the names that their clients gave them."""
    found = [row_from_entity(entity) for entity in await storage.driver.query_entities(RESPONSES)]
    return {RequestRecord.from_bytes(row.request.inline or b"").request["metadata"]["name"]: row for row in found}


def creates(call: Call, segment: str) -> bool:
    return call.method == "PUT" and call.path.partition("?")[0].endswith(segment) and "comp=" not in call.path


async def test_writes_that_arrive_after_another_worker_took_over_change_nothing(
    cluster: Deployment, http: httpx.AsyncClient, azurite: AzuriteServer, journal: Journal
) -> None:
    async with StorageProxy.before(azurite) as network, cluster.storage() as storage:
        streams = {name: asyncio.create_task(follow(http, name)) for name in ("append", "segment")}
        await http.post("/responses", json=request("row", stream=False))

        async def accepted() -> bool:
            for task in streams.values():
                if task.done():
                    task.result()  # it was refused
            return len(await rows(storage)) == 3

        await eventually(accepted, "three responses are accepted")
        ids = {name: row.id for name, row in (await rows(storage)).items()}
        known = set(ids.values())
        kept = keep_writes(network, ids)
        behind_proxy = {"AzureWebJobsStorage": network.through(azurite.connection_string)}
        owner = await cluster.start(*WORKER, **behind_proxy, **LOOKS_AT_NO_ROW)
        assert await until(lambda: all(each.calls for each in kept.values()), PATIENCE_SECONDS), kept
        # Before it is posted: the owner may have received it before its client has the answer.
        kept["ledger"] = network.keep_back(lambda call: is_opening_of_another(call, known))
        ids["ledger"] = (await http.post("/responses", json=request("ledger", stream=False))).json()["id"]
        assert await until(lambda: kept["ledger"].calls, PATIENCE_SECONDS), "the owner opened it in silence"
        dead = (await rows(storage))["row"].owner
        owner.freeze()
        other = await cluster.start(*WORKER)
        frames = {name: await asyncio.wait_for(task, PATIENCE_SECONDS) for name, task in streams.items()}
        await eventually(lambda: all_completed(http, ids), "all responses are completed", PATIENCE_SECONDS)
        before = await everything(storage, dead)

        for each in kept.values():
            each.release()
        calls = {name: each.calls[0] for name, each in kept.items()}
        assert await until(lambda: all(call.status for call in calls.values()), PATIENCE_SECONDS), calls
        assert calls["append"].status == 412
        assert calls["row"].status == 412
        assert is_refused(calls["ledger"])
        # Nothing forbids an empty blob of a name that no other claim uses, and that no row names.
        assert calls["segment"].status == 201
        orphan = f"{(await rows(storage))['segment'].partition_key}/{ids['segment']}/1-1"
        assert orphan not in before
        after = {**before, orphan: b""}
        assert await everything(storage, dead) == after

        owner.thaw()
        await assert_learns(owner, dead, ids)
        assert await everything(storage, dead) == after
        for name, response_id in ids.items():
            await assert_done(storage, http, journal, response_id, frames.get(name), owner, other)
        assert "refused" not in other.log()
        # The blob that nobody knows of goes with the response.
        assert (await http.delete(f"/responses/{ids['segment']}")).status_code == 200
        assert not [name for name in await storage.driver.list_blobs(EVENTS, "") if ids["segment"] in name]


def keep_writes(network: StorageProxy, ids: dict[str, str]) -> dict[str, KeptBack]:
    """One kind of write of each response is kept from some point on: all of them are in the middle by then."""
    return {
        "append": network.keep_back(
            lambda call: ids["append"] in call.path and "comp=appendblock" in call.path, after=7
        ),
        "row": network.keep_back(
            lambda call: call.method in ("PUT", "PATCH", "MERGE") and f"RowKey='response-{ids['row']}'" in call.path,
            after=4,
        ),
        "segment": network.keep_back(lambda call: creates(call, f"/{ids['segment']}/1-1")),
    }


def is_opening_of_another(call: Call, known: set[str]) -> bool:
    """A transaction of the ledger that names a run beside those."""
    named = {found.decode() for found in re.findall(rb"run-(resp_\w+)", call.data)}
    return call.path.partition("?")[0].endswith("/$batch") and bool(named - known)


def is_refused(batch: Call) -> bool:
    """The transaction's own answer is a success, and tells of the failure inside."""
    return batch.status == 202 and (b"HTTP/1.1 412" in batch.answer or b"HTTP/1.1 404" in batch.answer)


async def everything(storage: Storage, worker_id: str) -> dict[str, Any]:
    """The rows with their etags, what that worker's ledger has, and the bytes of every log."""
    found: dict[str, Any] = {
        f"{entity.partition_key} {entity.row_key}": entity
        for entity in [
            *await storage.driver.query_entities(RESPONSES),
            *await storage.driver.query_entities(WORKERS, partition_key=worker_id),
        ]
    }
    for name in await storage.driver.list_blobs(EVENTS, ""):
        found[name] = await storage.driver.read_range(EVENTS, name, 0, 1 << 24)
    return found


async def all_completed(http: httpx.AsyncClient, ids: dict[str, str]) -> bool:
    answers = [await http.get(f"/responses/{response_id}") for response_id in ids.values()]
    return all(answer.json()["status"] == "completed" for answer in answers)


async def assert_learns(owner: FunctionHost, worker_id: str, ids: dict[str, str]) -> None:
    """The old owner, going on, is refused in each, and is done with all of them."""
    await owner.wait_for_log(f"response {ids['append']}: storage refused an append of generation 1", PATIENCE_SECONDS)
    for name in ("row", "segment"):
        refusal = f"response {ids[name]}: storage refused a status write of generation 1"
        await owner.wait_for_log(refusal, PATIENCE_SECONDS)
    await owner.wait_for_log(f"worker {worker_id} was declared dead by another", PATIENCE_SECONDS)
    await owner.until(
        lambda: owner.log().count("run_response succeeded") >= len(ids), PATIENCE_SECONDS, "to be done with all of them"
    )
    assert "run_response failed" not in owner.log()


async def assert_done(
    storage: Storage,
    http: httpx.AsyncClient,
    journal: Journal,
    response_id: str,
    frames: list[bytes] | None,
    owner: FunctionHost,
    other: FunctionHost,
) -> None:
    """Every phase once, by the old owner as far as it got, the rest by the new one; what nobody began by that alone."""
    entries = [entry for entry in journal.lines("entered") if entry["response_id"] == response_id]
    stored = await check_response(
        storage,
        PRINCIPAL,
        response_id,
        seen=[] if frames is None else [View(frames, ended=True)],
        entries=len(entries),
        lost_leases=len(entries) - 1,
        generation_of=lifetime_of,
    )
    final = (await http.get(f"/responses/{response_id}")).json()
    lifetimes = assert_each_phase_once(final, PHASES)
    name = final["metadata"]["name"]
    if name == "ledger":
        assert [entry["pid"] for entry in entries] == [other.pid]
        assert set(lifetimes) == {0}
        assert (stored.row.generation, stored.row.attempt) == (1, 1)
        return
    assert [entry["pid"] for entry in entries] == [owner.pid, other.pid]
    assert [entry["is_recovery"] for entry in entries] == [False, True]
    assert set(lifetimes) == {0, 1}, f"{name}: {lifetimes}"
    assert (stored.row.generation, stored.row.attempt) == (2, 2)
    if frames is not None:
        assert [sse.event_type(frame) for frame in frames].count("response.in_progress") == 2
    if name == "segment":
        assert [segment.name.rpartition("/")[2] for segment in stored.row.segments][:2] == ["0-0", "1-2"]
