"""Chains over processes that are killed: every turn runs once, in its order, one handler at a time (S3, S5, V9).

Most of a death is waiting for somebody to notice, so the stories with kills run at the same time, each on hosts of its
own; every test looks at one of them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.response import TERMINAL_STATUSES
from resilience.crash_points import SETTING
from tests.support.azurite import AzuriteServer
from tests.support.crash_cases import STEERABLE
from tests.support.host import FunctionHost, until
from tests.support.invariants import assert_chain
from tests.support.servers import PATIENT, Deployment, body, deployment, eventually
from tests.support.turn_journal import Entry, read_entries

type Json = dict[str, Any]

PRINCIPAL = "local"
END_SECONDS = 90.0
SIGNAL_SECONDS = 1.0
"""From the answer to the newer turn to the signal of the older one, in another process."""
LATEST_SIGNAL_SECONDS = 10.0
"""The same on a machine that stands still for some seconds; without a signal it would be twenty."""

STUBBORN = {"count": 12, "delay": 0.25, "on_signal": "finish", "checkpoint_every": 100}
STEERED = {**STUBBORN, "count": 400}
"""It ends when another turn waits behind it, however long it takes until that is posted."""
DEAF = {**STEERED, "on_signal": "ignore"}
"""It is still at work when its worker is killed, whatever came before."""


class Talk:
    """A conversation with hosts of its own: one that serves HTTP, and workers."""

    def __init__(self, cluster: Deployment, front: FunctionHost, http: httpx.AsyncClient, journal: Path) -> None:
        self.cluster = cluster
        self.front = front
        self.http = http
        self.journal = journal
        self.turns: list[str] = []
        self.crashes = 0

    async def worker(self, **settings: str) -> FunctionHost:
        """One more process that runs handlers."""
        return await self.cluster.start("--only", "queue", "--visibility", "10", **settings)

    async def say(self, script: Json) -> str:
        """One more turn; its id."""
        wanted = body(script, background=True, conversation="talk")
        answer = await self.http.post("/responses", json=wanted)
        assert answer.status_code == 200, answer.text
        self.turns.append(answer.json()["id"])
        return self.turns[-1]

    async def cancel(self, turn: str) -> None:
        """Cancel a turn, which has not ended."""
        answer = await self.http.post(f"/responses/{turn}/cancel")
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "cancelled"

    def entries(self, turn: str) -> list[Entry]:
        """The entries into the handler for that turn."""
        return [entry for entry in read_entries(self.journal) if entry.response_id == turn]

    async def entered(self, turn: str) -> None:
        """Wait until its handler runs."""
        assert await until(lambda: self.entries(turn), END_SECONDS), f"never entered\n{self.cluster.logs()}"

    async def workers(self) -> None:
        """Two processes that run handlers: a kill need not wait for the start of another."""
        await asyncio.gather(self.worker(), self.worker())

    def kill_who_runs(self, turn: str) -> None:
        """SIGKILL."""
        pid = self.entries(turn)[-1].pid
        next(host for host in self.cluster.hosts if host.pid == pid).kill()
        self.crashes += 1

    async def status(self, turn: str) -> str:
        """As a client sees it."""
        return str((await self.http.get(f"/responses/{turn}")).json()["status"])

    async def judge(self) -> list[str]:
        """Wait for the end of all turns, and hold them against V9; their statuses."""

        async def over() -> bool:
            return {await self.status(turn) for turn in self.turns} <= TERMINAL_STATUSES

        await eventually(over, f"the end of all turns\n{self.cluster.logs()}", END_SECONDS)
        assert await until(lambda: all(self._left(entry) for entry in read_entries(self.journal)), END_SECONDS)
        async with self.cluster.storage() as storage:
            spans = [entry.span for entry in read_entries(self.journal)]
            await assert_chain(storage, PRINCIPAL, self.turns[0], spans, accepted=self.turns, crashes=self.crashes)
        return [await self.status(turn) for turn in self.turns]

    def _left(self, entry: Entry) -> bool:
        killed = {host.pid for host in self.cluster.hosts if not host.running}
        return entry.ended is not None or entry.pid in killed


@asynccontextmanager
async def talk(azurite: AzuriteServer, directory: Path, **settings: str) -> AsyncIterator[Talk]:
    journal = directory / "journal"
    with deployment(azurite, STEERABLE, SCRIPTED_JOURNAL=str(journal), **settings) as cluster:
        front = await cluster.start("--only", "http")
        async with httpx.AsyncClient(base_url=front.base_url, timeout=60) as http:
            yield Talk(cluster, front, http, journal)


async def _killed_while_a_turn_is_queued(made: Talk) -> None:
    await made.workers()
    one = await made.say({**DEAF, "count": 120, "checkpoint_every": 4, "delay_again": 0.01})
    await made.entered(one)
    two = await made.say(STUBBORN)
    assert not made.entries(two)
    made.kill_who_runs(one)
    assert await made.judge() == ["completed", "completed"]
    assert [len(made.entries(turn)) for turn in (one, two)] == [2, 1]


async def _killed_while_the_queue_drains(made: Talk) -> None:
    await made.workers()
    one = await made.say(STEERED)
    await made.entered(one)
    two, three, four = [await made.say(STUBBORN) for _ in range(3)]
    await made.entered(two)
    made.kill_who_runs(two)
    assert await made.judge() == ["completed"] * 4
    assert len(made.entries(one)) == 1
    assert all(made.entries(turn) for turn in (three, four))


async def _killed_before_the_next_is_started(made: Talk) -> None:
    first = await made.worker(**{SETTING: "queue.send_start:before:1"})
    one = await made.say(STEERED)
    await made.entered(one)
    two, _ = [await made.say(STUBBORN) for _ in range(2)]
    await first.wait_ended(END_SECONDS)
    made.crashes += 1
    assert await made.status(one) == "completed"
    assert not made.entries(two)
    await made.worker()
    assert await made.judge() == ["completed"] * 3
    assert [len(made.entries(turn)) for turn in made.turns] == [1, 1, 1]


async def _killed_with_a_cancelled_handler(made: Talk) -> None:
    """Nobody but the dead worker would have started the next turn, had it lived."""
    await made.workers()
    one = await made.say(DEAF)  # neither the newer turn nor the cancel makes it end
    await made.entered(one)
    two = await made.say(STUBBORN)
    await made.cancel(one)
    assert not made.entries(two), "it did not wait for the handler before it"
    made.kill_who_runs(one)
    assert await made.judge() == ["cancelled", "completed"]


STORIES: dict[str, Callable[[Talk], Awaitable[None]]] = {
    "queued": _killed_while_a_turn_is_queued,
    "draining": _killed_while_the_queue_drains,
    "between": _killed_before_the_next_is_started,
    "cancelled": _killed_with_a_cancelled_handler,
}


@pytest.fixture(scope="module")
def told(azurite: AzuriteServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseException | None]:
    """What came of each story."""

    async def tell(name: str, directory: Path) -> None:
        async with talk(azurite, directory) as made:
            await STORIES[name](made)

    async def tell_all() -> list[BaseException | None]:
        return await asyncio.gather(
            *(tell(name, tmp_path_factory.mktemp(name)) for name in STORIES), return_exceptions=True
        )

    return dict(zip(STORIES, asyncio.run(tell_all()), strict=True))


def _look_at(outcome: BaseException | None) -> None:
    if outcome is not None:
        raise outcome


def test_a_queued_turn_runs_after_the_worker_of_the_one_before_it_was_killed(
    told: dict[str, BaseException | None],
) -> None:
    _look_at(told["queued"])


def test_no_turn_is_lost_or_doubled_when_the_draining_worker_is_killed(told: dict[str, BaseException | None]) -> None:
    _look_at(told["draining"])


def test_the_next_turn_runs_once_when_the_worker_is_killed_between_an_end_and_the_start(
    told: dict[str, BaseException | None],
) -> None:
    _look_at(told["between"])


def test_the_next_turn_runs_when_the_worker_is_killed_with_the_handler_of_a_cancelled_one(
    told: dict[str, BaseException | None],
) -> None:
    _look_at(told["cancelled"])


async def test_a_running_turn_learns_of_a_newer_one_in_another_process_within_a_second(
    azurite: AzuriteServer, tmp_path: Path
) -> None:
    async with talk(azurite, tmp_path, **PATIENT) as made:
        await made.worker()
        took = []
        before = await made.say({**STUBBORN, "count": 1000, "delay": 0.02})
        for _ in range(3):
            await made.entered(before)
            newer = await made.say({**STUBBORN, "count": 1000, "delay": 0.02})
            answered = time.time()
            await made.entered(newer)
            ended = made.entries(before)[0].ended
            assert ended is not None
            took.append(ended - answered)
            before = newer
        await made.cancel(before)
        assert await made.judge() == ["completed"] * 3 + ["cancelled"]
    # A busy machine may be late, but not every time.
    assert min(took) < SIGNAL_SECONDS, took
    assert max(took) < LATEST_SIGNAL_SECONDS, took


async def test_the_next_turn_begins_when_the_handler_of_a_cancelled_or_completed_one_is_gone(
    azurite: AzuriteServer, tmp_path: Path
) -> None:
    async with talk(azurite, tmp_path, **PATIENT) as made:
        await made.workers()
        # Long enough for all that follows to be posted, and less than a cancelled handler is given.
        one = await made.say({"count": 1000, "delay": 0.02, "wind_down": 6})
        await made.entered(one)
        await made.cancel(one)
        # They clean up after their last event.
        two, three, four = [await made.say({**STUBBORN, "wind_down": 1.5}) for _ in range(3)]
        await made.cancel(three)
        assert await made.judge() == ["cancelled", "completed", "cancelled", "completed"]
        assert not made.entries(three), "it was cancelled while it waited"
        for before, after in ((one, two), (two, four)):
            ended = made.entries(before)[0].ended
            assert ended is not None
            assert ended <= made.entries(after)[0].at, "two handlers at once"
