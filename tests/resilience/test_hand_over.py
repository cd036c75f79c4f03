"""Hand-over: a worker that has to stop, or comes near its time limit, leaves its runs to others, at once.

The runs keep every finished phase with a checkpoint; what a phase says tells which entry of the handler wrote it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol import sse
from protocol.response import TERMINAL_STATUSES
from tests.support.azurite import AzuriteServer
from tests.support.host import FunctionHost
from tests.support.invariants import View, check_response
from tests.support.paths import AGENT, HOST_GRACE, Journal, assert_each_phase_once, lifetime_of, markers
from tests.support.servers import PATIENT, Deployment, body, deployment, frames_from, reached

PRINCIPAL = "local"
HAND_OVER_SECONDS = 2.0
"""From the signal to the first event that the next worker adds, in each stream of a replacement. A busy machine may be
late, but not every time.
"""
LATEST_SECONDS = 20.0
"""The same on a machine that stands still for some seconds. A run that was not handed over is silent for longer."""

START_SECONDS = 2.0
"""What the start of a worker takes at most where nothing else runs."""
SLOWEST = 4.0
"""So many times slower a machine with other work may be; beyond that, nothing is excused."""

TIME_LIMIT_SECONDS = 20.0
BEFORE_TIME_LIMIT = {"RESPONSES_HANDOVER_AFTER": "9"}
LONG_RUN = {"phases": 61, "pace": 1}
"""Lasts for more than three times as long as the host lets a function run."""

type Json = dict[str, Any]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def cluster(azurite: AzuriteServer, journal: Journal) -> Iterator[Deployment]:
    """No process yet; each test starts its own."""
    with deployment(azurite, AGENT, PHASES_JOURNAL=str(journal.path), PHASES_GRACE="2", **PATIENT) as made:
        yield made


class Client:
    """Follows one background response to its end, on one connection or by polling."""

    def __init__(self, http: httpx.AsyncClient, script: Mapping[str, Any], *, stream: bool) -> None:
        self.name = f"client {id(self)}"
        self.frames: list[bytes] = []
        self.times: list[float] = []
        self.final: Json = {}
        self.ended_at = 0.0
        self._request = body(script, background=True, stream=stream, metadata={"client": self.name})
        self.task = asyncio.create_task(self._follow(http) if stream else self._poll(http))

    async def _follow(self, http: httpx.AsyncClient) -> None:
        async with http.stream("POST", "/responses", json=self._request) as answer:
            async for frame in frames_from(answer):
                self.frames.append(frame)
                self.times.append(time.monotonic())
        self.final = sse.decode(self.frames[-1])["response"]
        self.ended_at = time.monotonic()

    async def _poll(self, http: httpx.AsyncClient) -> None:
        self.final = (await http.post("/responses", json=self._request)).json()
        while self.final["status"] not in TERMINAL_STATUSES:
            await asyncio.sleep(0.2)
            self.final = (await http.get(f"/responses/{self.final['id']}")).json()
        self.ended_at = time.monotonic()

    def reset_after(self, moment: float) -> float | None:
        """When the first reset since then arrived: the first event of the next entry."""
        for frame, arrived in zip(self.frames, self.times, strict=True):
            if arrived > moment and sse.event_type(frame) == "response.in_progress":
                return arrived
        return None


async def check_ended(cluster: Deployment, journal: Journal, client: Client) -> int:
    """The invariants, and every phase done once, in order; how many hand-overs it took."""
    entries = journal.lines("entered", client=client.name)
    assert client.final["status"] == "completed"
    async with cluster.storage() as storage:
        stored = await check_response(
            storage,
            PRINCIPAL,
            client.final["id"],
            seen=[View(client.frames, ended=True)] if client.frames else [],
            entries=len(entries),
            lost_leases=len(entries) - 1,
            generation_of=lifetime_of,
        )
    assert [entry["lifetime"] for entry in entries] == list(range(len(entries)))
    assert [entry["is_recovery"] for entry in entries] == [False] + [True] * (len(entries) - 1)
    assert stored.row.generation == len(entries)
    assert stored.row.attempt == 1, "a hand-over counts as a failed attempt"
    assert_each_phase_once(client.final, len(client.final["output"]))
    return len(entries) - 1


@dataclass(frozen=True)
class LongRuns:
    """What became of two runs that last longer than their host's time limit.

    Attributes:
        seconds: how long each took, as its client saw it.
        hand_overs: how many there were of each.
        finals: the responses.
        entered_by: the processes whose handlers were entered.
        worker: the process that was there at first.
        worker_runs: whether it was there in the end.
        log: what it wrote.
    """

    seconds: list[float]
    hand_overs: list[int]
    finals: list[Json]
    entered_by: set[int]
    worker: int
    worker_runs: bool
    log: str


async def play_long_runs(azurite: AzuriteServer, directory: Path) -> LongRuns:
    journal = Journal(directory / "journal")
    limited = ("--only", "queue", "--function-timeout", str(TIME_LIMIT_SECONDS))
    with deployment(azurite, AGENT, PHASES_JOURNAL=str(journal.path), PHASES_GRACE="2", **PATIENT) as made:
        front, worker = await asyncio.gather(made.start("--only", "http"), made.start(*limited, **BEFORE_TIME_LIMIT))
        async with httpx.AsyncClient(base_url=front.base_url, timeout=120) as http:
            began = time.monotonic()
            script = {**LONG_RUN, "checkpoints": True}
            clients = [
                Client(http, {**script, "on_shutdown": on_shutdown}, stream=stream)
                for on_shutdown, stream in (("exit", True), ("ignore", False))
            ]
            await asyncio.wait_for(asyncio.gather(*(client.task for client in clients)), 180)
        return LongRuns(
            seconds=[client.ended_at - began for client in clients],
            hand_overs=[await check_ended(made, journal, client) for client in clients],
            finals=[client.final for client in clients],
            entered_by={line["pid"] for line in journal.lines("entered")},
            worker=worker.pid,
            worker_runs=worker.running,
            log=worker.log(),
        )


@pytest.fixture(scope="module")
def long_runs(azurite: AzuriteServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[LongRuns]]:
    """Played in a thread beside the other tests: it lasts for a minute, and most of the time nothing happens."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: asyncio.run(play_long_runs(azurite, tmp_path_factory.mktemp("long"))))


@pytest.mark.usefixtures("long_runs")
async def test_workers_are_replaced_one_after_another_under_running_responses(
    cluster: Deployment, journal: Journal
) -> None:
    replaced = 3
    front, worker = await asyncio.gather(cluster.start("--only", "http"), draining_worker(cluster))
    rounds: list[tuple[float, list[float]]] = []
    async with httpx.AsyncClient(base_url=front.base_url, timeout=90) as http:
        exiting = {"checkpoints": True, "leaves": replaced, "pace": 0.3, "on_shutdown": "exit"}
        streams = [Client(http, exiting, stream=True) for _ in range(6)]
        # An error while the worker stops belongs to the stop: it is no failure of the response.
        others = [Client(http, {**exiting, "on_shutdown": "raise"}, stream=stream) for stream in (True, False)]
        tasks = [each.task for each in streams + others]
        for lifetime in range(replaced):
            entries = (lifetime + 1) * len(tasks)
            await reached(lambda least=entries: len(journal.lines("entered")) >= least, f"{entries} entries", tasks)  # type: ignore[misc]
            began = time.monotonic()
            successor = await draining_worker(cluster)
            signalled = time.monotonic()
            worker.terminate()
            await reached(lambda since=signalled: all(each.reset_after(since) for each in streams), "they go on", tasks)  # type: ignore[misc]
            # On a machine with other work everything takes longer, as the start of a worker shows.
            slowness = min(SLOWEST, max(1.0, (signalled - began) / START_SECONDS))
            rounds.append((slowness, [(each.reset_after(signalled) or 0) - signalled for each in streams]))
            assert await worker.wait_ended(HOST_GRACE) == 0
            worker = successor
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
    for client in streams + others:
        assert await check_ended(cluster, journal, client) == replaced
    assert any(max(silences) <= HAND_OVER_SECONDS * slowness for slowness, silences in rounds), rounds
    assert all(max(silences) < LATEST_SECONDS for _, silences in rounds), rounds


async def draining_worker(cluster: Deployment) -> FunctionHost:
    return await cluster.start("--only", "queue", "--grace", str(HOST_GRACE))


LIMITED = ("--function-timeout", "10")
"""The host ends a process in which a function runs longer."""
BEFORE_LIMIT = {"RESPONSES_HANDOVER_AFTER": "1.5"}


async def test_run_of_several_time_limits_length_ends_without_losing_its_process(
    cluster: Deployment, journal: Journal
) -> None:
    front, worker = await asyncio.gather(
        cluster.start("--only", "http"), cluster.start("--only", "queue", *LIMITED, **BEFORE_LIMIT)
    )
    script = {"checkpoints": True, "pace": 0.3}
    # More often than a response may be tried: none of these counts as a failed attempt.
    exiting = {**script, "on_shutdown": "exit", "leaves": 10}
    async with httpx.AsyncClient(base_url=front.base_url, timeout=90) as http:
        clients = [Client(http, exiting, stream=stream) for stream in (True, False)]
        clients.append(Client(http, {**script, "on_shutdown": "ignore", "leaves": 5}, stream=True))
        await asyncio.wait_for(asyncio.gather(*(each.task for each in clients)), 150)
    for client, leaves in zip(clients, (10, 10, 5), strict=True):
        assert await check_ended(cluster, journal, client) == leaves
    assert worker.running
    assert {line["pid"] for line in journal.lines("entered")} == {worker.pid}
    assert "run_response failed" not in worker.log()


async def test_foreground_runs_end_before_the_time_limit_ends_their_process(cluster: Deployment) -> None:
    front = await cluster.start("--only", "http", *LIMITED, **BEFORE_LIMIT)
    async with httpx.AsyncClient(base_url=front.base_url, timeout=90) as http:
        hurrying, ignoring = await asyncio.gather(
            http.post("/responses", json=body({"stay_in": 1, "on_shutdown": "finish"})),
            http.post("/responses", json=body({"stay_in": 1, "on_shutdown": "ignore"})),
        )
        assert hurrying.json()["status"] == "completed"
        assert markers(hurrying.json()) == ["L0_phase0", "L0_phase1", "L0_phase2"]
        assert ignoring.json()["status"] == "failed"
        assert ignoring.json()["error"]["additionalInfo"]["shutdown_reason"] == "grace_exhausted"
        for answer in (hurrying, ignoring):
            assert (await http.get(f"/responses/{answer.json()['id']}")).json() == answer.json()
    assert front.running


async def test_run_of_three_time_limits_length_does_every_phase_once(long_runs: Future[LongRuns]) -> None:
    """The last test of this file: the first one began it."""
    played = await asyncio.wrap_future(long_runs)
    for seconds, hand_overs, final in zip(played.seconds, played.hand_overs, played.finals, strict=True):
        assert seconds >= 3 * TIME_LIMIT_SECONDS
        lifetimes = assert_each_phase_once(final, LONG_RUN["phases"])
        assert set(lifetimes) == set(range(hand_overs + 1))
        assert max(Counter(lifetimes).values()) * LONG_RUN["pace"] < TIME_LIMIT_SECONDS
    assert played.worker_runs, played.log
    assert played.entered_by == {played.worker}
    assert "run_response failed" not in played.log
