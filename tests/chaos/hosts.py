"""The processes: each slot keeps one host running, whatever ends it."""

import asyncio
import functools
import math
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resilience.crash_points import POINTS, SETTING
from tests.chaos.line import Line
from tests.support.host import ROOT, FunctionHost, HostFailed, until

GRACE_SECONDS = 8.0
MESSAGE_VISIBILITY = 20.0
"""Seconds after which the message of a killed invocation comes back; the real host takes ten minutes."""

START_ARGUMENTS = ("--grace", str(GRACE_SECONDS), "--visibility", str(MESSAGE_VISIBILITY))


CRASH_POINT_SHARE = 0.6
"""How many hosts have a crash point; most of them die in another way before."""

HOT_POINTS = [
    point
    for point in POINTS
    if point.startswith(("log.", "row.", "ledger.", "queue.", "event", "checkpoint", "handler"))
    and not point.startswith(("row.list", "row.delete", "row.confirm", "ledger.confirm", "ledger.stale", "ledger.time"))
]
"""Those that a host passes in the usual course of things."""


@dataclass(frozen=True)
class Role:
    """What a slot's hosts are: command line and app settings of their own."""

    name: str
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def serves_http(self) -> bool:
        """Whether clients can talk to it."""
        return "queue" not in self.arguments


FRAGILE = "tests.chaos.agent:fragile_app"
ROLES = (
    Role("http", ("--only", "http")),
    Role("fragile", ("--only", "http"), {"RESPONSES_AGENT": FRAGILE}),
    Role("queue", ("--only", "queue"), {"RESPONSES_EAGER_START": "false"}),
    Role("short", ("--only", "queue"), {"RESPONSES_HANDOVER_AFTER": "4"}),
    Role("eager", (), {"RESPONSES_EAGER_START": "true"}),
)


@dataclass(frozen=True)
class Trouble:
    """Something that was done to a process, or (pid 0) to all of them. Times are Unix time."""

    kind: str
    slot: str
    pid: int
    began: float
    ended: float


class Slot:
    """Keeps a host of one role running until told to stop."""

    def __init__(
        self,
        role: Role,
        line: Line,
        environment: Mapping[str, str],
        logs: Path,
        chance: random.Random,
        note: Callable[[Trouble], None],
    ) -> None:
        self.role = role
        self.line = line
        self.host: FunctionHost | None = None
        self.calm = False
        """From now on hosts start without a crash point."""
        self.kills = 0
        self.failed_starts = 0
        self.points: list[str] = []
        """The crash points at which hosts died."""
        self._environment = dict(environment)
        self._environment["AzureWebJobsStorage"] = line.through(environment["AzureWebJobsStorage"])
        self._logs = logs
        self._chance = chance
        self._note = note
        self._started = 0
        self._stopping = False
        self._expected = False
        self._crash_at = ""

    @property
    def up(self) -> bool:
        """Whether a host runs and answers."""
        return self.host is not None and self.host.running

    async def live(self) -> None:
        """Start a host whenever there is none."""
        while not self._stopping:
            try:
                self.host = await self._start()
            except HostFailed as failure:
                self.failed_starts += 1
                self._keep_log(str(failure))
                continue
            host = self.host
            await until(functools.partial(_ended, host), math.inf)
            self._look_at_the_end(host)
            self.host = None
            host.stop()
            self._keep_log(host.log(), host.pid)
            if not self._stopping:
                await asyncio.sleep(self._chance.uniform(0, 1.5))

    async def _start(self) -> FunctionHost:
        self._started += 1
        settings = {**self._environment, **self.role.settings}
        self._crash_at = ""
        if not self.calm and self._chance.random() < CRASH_POINT_SHARE:
            points = POINTS if self._chance.random() < 0.2 else HOT_POINTS
            self._crash_at = f"{self._chance.choice(points)}:{self._chance.choice((1, 1, 2, 5, 12))}"
            settings[SETTING] = self._crash_at
        return await FunctionHost.start(ROOT, settings, *START_ARGUMENTS, *self.role.arguments)

    def _look_at_the_end(self, host: FunctionHost) -> None:
        code = host.process.wait()
        if code == -signal.SIGKILL and not self._expected:
            self.kills += 1
            self.points.append(self._crash_at)
            now = time.time()
            self._note(Trouble(f"crash {self._crash_at}", self.role.name, host.pid, now, now))
        self._expected = False

    def _keep_log(self, text: str, pid: int = 0) -> None:
        name = f"{self.role.name}-{self._started}-{pid}.log"
        (self._logs / name).write_text(f"{SETTING}={self._crash_at}\n{text}")

    def kill(self) -> None:
        """SIGKILL."""
        if self.host is not None and self.host.running:
            self._expected = True
            self.kills += 1
            self.host.process.kill()

    def leave(self) -> None:
        """SIGTERM: it drains, and another takes its place."""
        if self.host is not None:
            self.host.terminate()

    def stop(self) -> None:
        """End it for good."""
        self._stopping = True
        if self.host is not None and self.host.running:
            self._expected = True
            self.host.thaw()
            self.host.process.kill()


def _ended(host: FunctionHost) -> bool:
    return not host.running
