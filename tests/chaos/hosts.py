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
from tests.support.host import ROOT, START_SECONDS, FunctionHost, HostFailed, until

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


KILL, CRASH, EXIT = "kill", "crash", "exit"
"""The ends of a process: SIGKILL by us, by itself at the point that is named, and in its own way with a code."""

BY_ITSELF = f"{EXIT} by itself"


@dataclass(frozen=True)
class Trouble:
    """Something that was done to a process, or (pid 0) to none of them in particular. Times are Unix time."""

    kind: str
    slot: str
    pid: int
    began: float
    ended: float

    @property
    def is_end(self) -> bool:
        """Whether it was the end of the process."""
        return self.kind.partition(" ")[0] in (KILL, CRASH, EXIT)


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
        self._process: FunctionHost | None = None
        """The host, also while it starts."""
        self._stopping = False
        self._killed = False
        self._told_to_leave = False
        self._crash_at = ""

    @property
    def up(self) -> bool:
        """Whether a host runs and answers."""
        return self.host is not None and self.host.running

    async def live(self) -> None:
        """Start a host whenever there is none."""
        while not self._stopping:
            host = self._process = self._launch()
            try:
                await host.until(host._look, START_SECONDS, "to be ready")
            except HostFailed:
                self.failed_starts += not self._stopping
                self._kill(host)
            else:
                self.host = host
                await until(functools.partial(_ended, host), math.inf)
            self._look_at_the_end(host)
            self.host = None
            host.stop()
            self._keep_log(host)
            if not self._stopping:
                await asyncio.sleep(self._chance.uniform(0, 1.5))

    def _launch(self) -> FunctionHost:
        self._started += 1
        settings = {**self._environment, **self.role.settings}
        self._crash_at = ""
        self._killed = self._told_to_leave = False
        if not self.calm and self._chance.random() < CRASH_POINT_SHARE:
            points = POINTS if self._chance.random() < 0.2 else HOT_POINTS
            self._crash_at = f"{self._chance.choice(points)}:{self._chance.choice((1, 1, 2, 5, 12))}"
            settings[SETTING] = self._crash_at
        return FunctionHost.launch(ROOT, settings, *START_ARGUMENTS, *self.role.arguments)

    def _look_at_the_end(self, host: FunctionHost) -> None:
        """Note an end that is not noted yet."""
        code = host.process.wait()
        if self._killed:
            return
        if code == -signal.SIGKILL:
            self.kills += 1
            self.points.append(self._crash_at)
            self._note_end(f"{CRASH} {self._crash_at}", host)
        else:
            self._note_end(f"{EXIT if self._told_to_leave else BY_ITSELF} {code}", host)

    def _note_end(self, kind: str, host: FunctionHost) -> None:
        now = time.time()
        self._note(Trouble(kind, self.role.name, host.process.pid, now, now))

    def _keep_log(self, host: FunctionHost) -> None:
        name = f"{self.role.name}-{self._started}-{host.process.pid}.log"
        (self._logs / name).write_text(f"{SETTING}={self._crash_at}\n{host.log()}")

    def kill(self) -> None:
        """SIGKILL."""
        if self.host is not None and self.host.running:
            self.kills += 1
            self._kill(self.host)

    def _kill(self, host: FunctionHost) -> None:
        if host.running:
            self._killed = True
            self._note_end(KILL, host)
            host.process.kill()

    def leave(self) -> None:
        """SIGTERM: it drains, and another takes its place."""
        if self.host is not None:
            self._told_to_leave = True
            self.host.terminate()

    def stop(self) -> None:
        """End it for good."""
        self._stopping = True
        if self._process is not None:
            self._kill(self._process)


def _ended(host: FunctionHost) -> bool:
    return not host.running
