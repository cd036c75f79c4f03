"""How long a running response is silent when its worker goes: `make bench-recovery`.

Every figure is what a client sees: from the signal to the process until the first event that another worker made
reaches a connection that was open all the time. The client reads from a third process, which serves HTTP only, so
every event has gone through storage. The yardstick is what the same way takes without any mishap: from a POST to its
first event, in the same rounds; `× yardstick` makes runs on different machines comparable.

Four ways to go:

- *killed*: SIGKILL while a second worker is alive and idle;
- *only one*: SIGKILL of the only worker, and a new one started at once, its start included;
- *hand-over*: SIGTERM with grace while a second worker is alive;
- *slept through*: SIGKILL, and the dead worker's watch message lost, so that only the timer can find it.

Each round has a fresh response and ends with its cancellation. Before a signal comes a random pause, as long as the
longest of the intervals that could be in step with it.

Exit code 1: a target was missed.
"""

import asyncio
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import click
import httpx
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.queue import QueueClient

from benchmarks.deployment import Deployment, Host, deployment, until

QUESTION = {"model": "bench", "input": "count to 5000", "background": True, "stream": True}
WATCH_QUEUE = "responses-watch"
GRACE = ("--grace", "30")
LONGEST_INTERVAL = 1.2
EVENTS_BEFORE = 6
"""So many events, deltas among them, show that the run is under way."""

FIRST_SECONDS = 30.0
GO_ON_SECONDS = 60.0
SWEEP_SECONDS = 240.0


@dataclass(frozen=True)
class Target:
    """A percentile that has to be reached, in seconds."""

    percentile: int
    seconds: float

    def __str__(self) -> str:
        return f"p{self.percentile} ≤ {self.seconds:g} s"


@dataclass(frozen=True)
class Figure:
    """What was measured in one way to go."""

    name: str
    targets: tuple[Target, ...]
    seconds: list[float] = field(default_factory=list)

    def at(self, percentile: int) -> float:
        """The percentile by nearest rank."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(percentile / 100 * len(ordered)) - 1)]

    def missed(self) -> list[Target]:
        """Targets that were not reached."""
        return [target for target in self.targets if self.at(target.percentile) > target.seconds]


class Follower:
    """A client on one connection, and when each of its events came."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.asked_at = time.monotonic()
        self.arrivals: list[tuple[float, str]] = []
        self.response_id = ""
        self._task = asyncio.create_task(self._follow(http))

    async def _follow(self, http: httpx.AsyncClient) -> None:
        async with http.stream("POST", "/v1/responses", json=QUESTION) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    self.arrivals.append((time.monotonic(), line.removeprefix("event: ")))
                elif line.startswith("data: ") and not self.response_id:
                    self.response_id = json.loads(line.removeprefix("data: "))["response"]["id"]

    def resets(self) -> list[float]:
        """When a worker, the first or a later one, began to speak."""
        return [when for when, name in self.arrivals if name == "response.in_progress"]

    async def reached(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait; an error of the connection is raised, not waited out."""
        await until(lambda: condition() or self._task.done(), seconds, what)
        if self._task.done():
            self._task.result()
            raise RuntimeError(f"the stream ended before: {what}")

    async def close(self, http: httpx.AsyncClient) -> None:
        """Cancel the response and read its stream to the end."""
        (await http.post(f"/v1/responses/{self.response_id}/cancel")).raise_for_status()
        async with asyncio.timeout(GO_ON_SECONDS):
            await self._task


type Mishap = Callable[[Host], Awaitable[None]]


class Bench:
    """The rounds; between two of them exactly one worker is alive, and idle."""

    def __init__(self, place: Deployment, http: httpx.AsyncClient, chance: random.Random) -> None:
        self._place = place
        self._http = http
        self._chance = chance
        self._worker: Host | None = None
        self.yardstick = Figure("yardstick: POST to first event", ())

    async def replaced(self, figure: Figure, rounds: int, mishap: Mishap, seconds: float = GO_ON_SECONDS) -> None:
        """Measure rounds in which a second worker is there before the mishap of the first."""
        for number in range(rounds):
            first = await self._alone()
            follower = await self._ask()
            second = await self._place.start_worker(*GRACE)
            await self._measure(figure, follower, first, mishap, seconds, number + 1, rounds)
            self._place.drop(first)
            self._worker = second
            await follower.close(self._http)

    async def restarted(self, figure: Figure, rounds: int) -> None:
        """Measure rounds in which the only worker is killed and another one is started."""
        for number in range(rounds):
            first = await self._alone()
            follower = await self._ask()
            starting: list[asyncio.Task[Host]] = []

            async def mishap(host: Host, starting: list[asyncio.Task[Host]] = starting) -> None:
                host.kill()
                starting.append(asyncio.create_task(self._place.start_worker(*GRACE)))

            await self._measure(figure, follower, first, mishap, GO_ON_SECONDS, number + 1, rounds)
            self._place.drop(first)
            self._worker = await starting[0]
            await follower.close(self._http)

    async def _alone(self) -> Host:
        if self._worker is None:
            self._worker = await self._place.start_worker(*GRACE)
        return self._worker

    async def _ask(self) -> Follower:
        follower = Follower(self._http)
        await follower.reached(lambda: len(follower.arrivals) >= EVENTS_BEFORE, FIRST_SECONDS, "the first events")
        self.yardstick.seconds.append(follower.arrivals[0][0] - follower.asked_at)
        return follower

    async def _measure(
        self, figure: Figure, follower: Follower, host: Host, mishap: Mishap, seconds: float, number: int, rounds: int
    ) -> None:
        await asyncio.sleep(self._chance.uniform(0, LONGEST_INTERVAL))
        before = len(follower.resets())
        began = time.monotonic()
        await mishap(host)
        await follower.reached(lambda: len(follower.resets()) > before, seconds, f"{figure.name}: an event after it")
        took = follower.resets()[before] - began
        figure.seconds.append(took)
        say(f"  {figure.name} {number}/{rounds}: {took:.2f} s")


async def kill(host: Host) -> None:
    """SIGKILL."""
    host.kill()


async def terminate(host: Host) -> None:
    """SIGTERM."""
    host.terminate()


def kill_and_lose_watch(connection_string: str) -> Mishap:
    """SIGKILL, and the watch messages that there are removed before any of them shows."""

    async def mishap(host: Host) -> None:
        host.kill()
        with (
            QueueClient.from_connection_string(connection_string, WATCH_QUEUE) as queue,
            suppress(ResourceNotFoundError),
        ):
            queue.clear_messages()

    return mishap


async def measure(kills: int, restarts: int, handovers: int, sweeps: int, eager: bool, seed: int) -> list[Figure]:
    """All rounds; the figures, the yardstick first."""
    killed = Figure("killed, a second worker alive", (Target(50, 7), Target(99, 10)))
    alone = Figure("only one, killed and restarted", (Target(50, 7), Target(99, 10)))
    handed = Figure("hand-over after SIGTERM", (Target(95, 2),))
    asleep = Figure("slept through, found by the sweep", (Target(99, 150),))
    async with deployment(RESPONSES_AGENT="agent:app", RESPONSES_EAGER_START=str(eager).lower()) as place:
        front = await place.start_host("--only", "http")
        async with httpx.AsyncClient(base_url=front.base_url, timeout=SWEEP_SECONDS) as http:
            bench = Bench(place, http, random.Random(seed))
            await bench.replaced(handed, handovers, terminate)
            await bench.replaced(killed, kills, kill)
            await bench.restarted(alone, restarts)
            await bench.replaced(asleep, sweeps, kill_and_lose_watch(place.connection_string), SWEEP_SECONDS)
    return [figure for figure in (bench.yardstick, killed, alone, handed, asleep) if figure.seconds]


def table(figures: Sequence[Figure]) -> str:
    """The figures, one a line, in seconds."""
    unit = figures[0].at(50)
    lines = [f"{'':36}{'n':>4}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}{'× yardstick':>13}  target"]
    for figure in figures:
        values = [figure.at(percentile) for percentile in (50, 95, 99, 100)]
        missed = figure.missed()
        verdict = ", ".join(f"{target}{' MISSED' if target in missed else ''}" for target in figure.targets)
        numbers = "".join(f"{value:8.2f}" for value in values)
        lines.append(f"{figure.name:36}{len(figure.seconds):4}{numbers}{values[0] / unit:13.1f}  {verdict}".rstrip())
    return "\n".join(lines)


def machine() -> str:
    """What it was measured on; the load says whether others were at work."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs, load {load}; "
        f"Python {platform.python_version()}; Azurite in memory"
    )


def say(text: str) -> None:
    """One line, at once."""
    click.echo(text)
    sys.stdout.flush()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--kills", type=click.IntRange(0), default=30, help="Workers killed while a second one is alive.")
@click.option("--restarts", type=click.IntRange(0), default=30, help="Only workers killed and restarted.")
@click.option("--handovers", type=click.IntRange(0), default=20, help="Workers ended with SIGTERM and grace.")
@click.option("--sweeps", type=click.IntRange(0), default=2, help="Workers killed whose watch message is lost.")
@click.option("--eager/--no-eager", default=False, help="Workers may start a run without its queue message.")
@click.option("--seed", type=int, default=0, help="For the pauses before the signals.")
def main(kills: int, restarts: int, handovers: int, sweeps: int, eager: bool, seed: int) -> None:
    """Measure how long a response is silent when its worker goes. The full run takes about 20 minutes."""
    if not kills + restarts + handovers + sweeps:
        raise click.UsageError("there is nothing to measure")
    say(f"before: {machine()}")
    figures = asyncio.run(measure(kills, restarts, handovers, sweeps, eager, seed))
    say(f"\nafter:  {machine()}\n")
    say(table(figures))
    if any(figure.missed() for figure in figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
