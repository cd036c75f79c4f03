"""A handler that blocks the event loop of its worker: nothing else runs there meanwhile, and yet it is not dead."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from protocol import sse
from resilience.options import EngineSettings
from storage.driver import WATCH_QUEUE
from tests.support.azurite import AzuriteServer
from tests.support.host import FunctionHost
from tests.support.invariants import check_response
from tests.support.paths import AGENT, Journal, markers
from tests.support.servers import body, deployment, frames_from, frames_of, reached
from tests.support.storage_proxy import Call, StorageProxy

BLOCKED_SECONDS = 40.0
PUSH_SECONDS = EngineSettings().watch_visibility
"""What a worker is pushed within in production. The hosts here have more patience, for on a machine that stands still
for some seconds it is right to suspect a worker; what is proven is that its pushes come at that pace all the time that
its handler blocks, but for such moments.
"""
LEAST_SHARE = 0.75
"""Of the time that the handler blocks: so much lies between pushes no further apart than that."""

STALE_SECONDS = 16.0
"""The silence of a ledger that makes the sweep suspect its worker."""
WATCH_SECONDS = 12.0
"""That of a watch message that makes its receiver do so. Both end long before the handler does, and neither because the
machine stood still for some seconds.
"""

SETTLED_SECONDS = 30.0

LOST_SECONDS = 4.5
"""A push that is held for so long arrives after its sender gave up waiting for the answer (3 s)."""

BESIDE = 30
"""Phases of a run that lasts until the other one blocks, however busy the machine."""


async def sweep_until(host: FunctionHost, done: asyncio.Task[None]) -> list[float]:
    """Have a host look for dead workers each second; when it did."""
    sweeps: list[float] = []
    async with httpx.AsyncClient(base_url=host.base_url, timeout=SETTLED_SECONDS) as http:
        while not done.done():
            assert (await http.post("/admin/functions/sweep", json={})).status_code == 202
            sweeps.append(time.monotonic())
            await asyncio.wait({done}, timeout=1)
    return sweeps


def pushed_share(pushes: list[float], began: float, ended: float) -> float:
    """How much of that time lies between two pushes that follow each other closely enough."""
    within = [began, *(moment for moment in pushes if began < moment < ended), ended]
    gaps = [later - earlier for earlier, later in pairwise(within)]
    return sum(gap for gap in gaps if gap < PUSH_SECONDS) / (ended - began)


@pytest.mark.timeout(300)  # the handler alone blocks for most of a minute
async def test_blocked_worker_keeps_all_its_runs_although_another_waits_for_them(
    azurite: AzuriteServer, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    settings = {
        "RESPONSES_HEARTBEAT_INTERVAL": "3",
        "RESPONSES_STALE_AFTER": str(STALE_SECONDS),
        "RESPONSES_WATCH_VISIBILITY": str(WATCH_SECONDS),
    }
    pushes: list[float] = []

    def note(call: Call) -> bool:
        if call.method == "PUT" and WATCH_QUEUE in call.path and "visibilitytimeout" in call.path:
            pushes.append(time.monotonic())
        return False

    async with StorageProxy.before(azurite) as network:
        network.keep_back(note)
        with deployment(azurite, AGENT, PHASES_JOURNAL=str(journal.path), **settings) as made:
            connection = network.through(made.environment["AzureWebJobsStorage"])
            front, worker, other = await asyncio.gather(
                made.start("--only", "http"),
                made.start("--only", "queue", AzureWebJobsStorage=connection),
                made.start("--only", "queue"),
            )
            other.freeze()  # it must not take the runs now, and be there all the time that the handler blocks
            async with httpx.AsyncClient(base_url=front.base_url, timeout=90) as http:
                frames: dict[str, list[bytes]] = {"blocking": [], "beside": []}

                async def follow(name: str, **script: object) -> None:
                    request = body(script, background=True, stream=True, metadata={"client": name})
                    async with http.stream("POST", "/responses", json=request) as answer:
                        async for frame in frames_from(answer):
                            frames[name].append(frame)

                beside = asyncio.create_task(follow("beside", phases=BESIDE, pace=0.2))
                await reached(lambda: len(frames["beside"]) > 5, "it runs", [beside])
                blocking = asyncio.create_task(follow("blocking", stay_in=1, block=BLOCKED_SECONDS))
                await reached(lambda: journal.lines("staying"), "the handler blocks", [blocking])
                other.thaw()
                began, seen = time.monotonic(), len(frames["beside"])
                sweeps = asyncio.create_task(sweep_until(other, blocking))
                await asyncio.wait_for(asyncio.gather(blocking, beside), BLOCKED_SECONDS + SETTLED_SECONDS)
                swept = [moment - began for moment in await sweeps]
                assert [moment for moment in swept if STALE_SECONDS < moment < BLOCKED_SECONDS], swept
                assert len(frames["beside"]) > seen
                assert pushed_share(pushes, began, began + BLOCKED_SECONDS) > LEAST_SHARE, pushes
            async with made.storage() as storage:
                for name, phases in (("blocking", 3), ("beside", BESIDE)):
                    final = sse.decode(frames[name][-1])["response"]
                    entries = journal.lines("entered", client=name)
                    assert [entry["pid"] for entry in entries] == [worker.pid]
                    stored = await check_response(
                        storage, "local", final["id"], seen=[frames[name]], entries=len(entries)
                    )
                    assert stored.row.generation == 1
                    assert markers(final) == [f"L0_phase{phase}" for phase in range(phases)]
            for host in (worker, other):
                assert "is dead" not in host.log()
                assert "declared dead" not in host.log()


async def test_blocked_worker_keeps_its_run_although_the_answer_to_a_push_was_lost(
    azurite: AzuriteServer, tmp_path: Path
) -> None:
    """Nobody can push its message any more, and nobody but its thread can say that it lives."""
    journal = Journal(tmp_path / "journal")
    settings = {"PHASES_JOURNAL": str(journal.path), "RESPONSES_WATCH_VISIBILITY": str(WATCH_SECONDS)}
    async with StorageProxy.before(azurite) as network:
        with deployment(azurite, AGENT, **settings) as made:
            connection = network.through(made.environment["AzureWebJobsStorage"])
            front, worker, other = await asyncio.gather(
                made.start("--only", "http"),
                made.start("--only", "queue", AzureWebJobsStorage=connection),
                made.start("--only", "queue"),
            )
            other.freeze()
            async with httpx.AsyncClient(base_url=front.base_url, timeout=90) as http:
                script = {"stay_in": 1, "block": 2 * WATCH_SECONDS}
                blocking = asyncio.create_task(http.post("/responses", json=body(script, background=True, stream=True)))
                await reached(lambda: journal.lines("staying"), "the handler blocks", [blocking])
                other.thaw()
                network.hold("queue")
                await asyncio.sleep(LOST_SECONDS)
                network.release("queue")
                answer = await asyncio.wait_for(blocking, 2 * WATCH_SECONDS + SETTLED_SECONDS)
            # Its message was received, and put back; else this would prove nothing.
            assert "adopt_worker succeeded" in other.log()
            frames = frames_of(answer.content)
            final = sse.decode(frames[-1])["response"]
            assert [entry["pid"] for entry in journal.lines("entered")] == [worker.pid]
            assert "is dead" not in other.log()
            async with made.storage() as storage:
                await check_response(storage, "local", final["id"], seen=[frames], entries=1)
