"""`python -m tests.chaos`: for so many seconds hosts are killed, frozen and cut off under traffic; then all is judged.

The exit code is 0 without a violation, if there was enough trouble for that to say something. What is needed to
understand a violation lies in `.run/chaos/SEED-TIME/`: the logs of every process, the entries into the handler, the
troubles, the violations with the frames of their responses. The same seed draws the same roles, scripts, crash points
and troubles; the timing of processes is not part of it, so a replay is a run with the same seed, some longer than the
time of the violation.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from storage.connection import Storage, StorageSettings, open_storage
from tests.chaos.hosts import ROLES, Slot, Trouble
from tests.chaos.judge import Judge, Violation, read_journal, rest
from tests.chaos.line import Line
from tests.chaos.silences import SILENCE, silences_noted
from tests.chaos.traffic import Traffic, client, per_mode
from tests.chaos.troubles import WEIGHTS, Troubles, merged
from tests.support.azurite import AzuriteServer
from tests.support.host import ROOT, until
from tests.support.invariants import read_stored

START_SECONDS = 120.0
REPORT_SECONDS = 30.0
FULL_SECONDS = 1800.0
LEAST_KILLS = 300
LEAST_RESPONSES = 1500
"""In a full run; in a shorter one proportionally less."""

FENCED = ("appends refused", "status writes refused")
"""What the logs have to tell of in a full run: without them no fence was tried (R4)."""

RATE = 1.6
"""Clients per second."""

AT_ONCE = 40
SETTINGS = {
    "RESPONSES_AGENT": "tests.chaos.agent:app",
    "RESPONSES_LOG_FORMAT": "json",  # for `tests.chaos.evidence`
    # Small, so that segments roll and time limits are met in runs of seconds.
    "RESPONSES_SEGMENT_BLOCKS": "12",
    "RESPONSES_STALE_AFTER": "30",
    "RESPONSES_FINISH_PATIENCE": "10",
    "RESPONSES_MISSING_ROW_PATIENCE": "10",
}


@dataclass
class Run:
    """One run of chaos."""

    seconds: float
    seed: int
    directory: Path
    troubles: list[Trouble] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    chains: int = 0
    reentries: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """What the logs tell: refusals, hand-overs, take-overs."""

    def chance(self, of: str) -> random.Random:
        """A source of chance of its own for each part: their turns have no order."""
        return random.Random(f"{self.seed} {of}")

    async def play(self) -> None:
        """All of it."""
        logs = self.directory / "logs"
        logs.mkdir(parents=True)
        azurite = AzuriteServer.start()
        try:
            with azurite.namespace() as names:
                journal = self.directory / "journal"
                environment = {**names, **SETTINGS, "CHAOS_JOURNAL": str(journal)}
                storage = open_storage(StorageSettings.from_environment(environment))
                async with contextlib.aclosing(storage), client() as http, contextlib.AsyncExitStack() as lines:
                    for role in ROLES:
                        line = await lines.enter_async_context(Line.before(azurite, self.chance(f"line {role.name}")))
                        chance = self.chance(f"slot {role.name}")
                        self.slots.append(Slot(role, line, environment, logs, chance, self.troubles.append))
                    self.traffic = Traffic(self.slots, http, self.chance("traffic"))
                    async with silences_noted(storage.driver.ping, self.troubles.append):
                        await self._run(storage, environment, journal, logs)
        finally:
            azurite.stop()

    async def _run(self, storage: Storage, environment: dict[str, str], journal: Path, logs: Path) -> None:
        self.made = Troubles(self.slots, storage, self.chance("troubles"), self.traffic.known_ids, self.troubles.append)
        lives = [asyncio.create_task(slot.live(), name=slot.role.name) for slot in self.slots]
        reporter = asyncio.create_task(self._report())
        try:
            assert await until(lambda: all(slot.up for slot in self.slots), START_SECONDS), "the hosts do not start"
            end = asyncio.get_running_loop().time() + self.seconds
            await asyncio.gather(self.made.make(end), self.traffic.make(end, RATE, AT_ONCE))
            for slot in self.slots:
                slot.calm = True
            self._say("the sky clears; waiting for every response to end")
            await self.traffic.finish()
            self.violations += await rest(storage, environment, self._say)
        finally:
            reporter.cancel()
            for slot in self.slots:
                slot.stop()
            await asyncio.gather(*lives)
        self._say("judging")
        judge = Judge(storage, read_journal(journal), merged(self.troubles), logs)
        await judge.all(self.traffic.told)
        self.violations += judge.violations
        self.outcomes.update(judge.outcomes)
        self.turns, self.chains = judge.turns, judge.chains
        self.reentries.update(judge.reentries)
        self.seen.update(judge.evidence.counts())
        await self._keep(storage)

    async def _keep(self, storage: Storage) -> None:
        """What a violation is understood by."""
        (self.directory / "troubles").write_text("\n".join(json.dumps(asdict(each)) for each in merged(self.troubles)))
        lines = []
        for violation in self.violations:
            lines.append(f"{violation.mode} {violation.response_id}\n{violation.what}\n")
            with contextlib.suppress(AssertionError, Exception):
                stored = await read_stored(storage, "local", violation.response_id)
                lines.append(f"{stored.row}\n{b''.join(stored.frames).decode()}\n")
            for told in self.traffic.told:
                if told.response_id == violation.response_id:
                    lines += [f"told: {told.began} {b''.join(view).decode()}\n" for view in told.views]
                    lines.append(f"final: {told.final}\n")
        (self.directory / "violations").write_text("\n".join(lines))

    @property
    def kills(self) -> int:
        return sum(slot.kills for slot in self.slots)

    @property
    def responses(self) -> int:
        return sum(told.answered for told in self.traffic.told)

    @property
    def failed_calls(self) -> int:
        """Storage calls of the hosts."""
        return sum(slot.line.failed for slot in self.slots)

    @property
    def silences(self) -> Sequence[float]:
        """Seconds for which the emulator answered nobody."""
        return [each.ended - each.began for each in self.troubles if each.kind == SILENCE]

    @property
    def happened(self) -> Mapping[str, int]:
        """How often there was what has to be in a full run."""
        troubles = {kind: self.made.done[kind] for kind in WEIGHTS}
        return {
            **troubles,
            "storage calls that failed": self.failed_calls,
            **{each: self.seen[each] for each in FENCED},
        }

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._say(f"{self.kills} kills, {self.responses} responses, {self.traffic.under_way} under way")

    def _say(self, text: str) -> None:
        click.echo(f"{time.strftime('%H:%M:%S')} {text}")

    def summary(self) -> Sequence[str]:
        """What happened, the one line that counts last."""
        points = Counter(point.rpartition(":")[0] for slot in self.slots for point in slot.points)
        calls = sum(slot.line.calls for slot in self.slots)
        left = [f"{each.mode} {each.response_id}: {each.what[:300]}" for each in self.violations[:40]]
        return [
            "troubles: " + _counted(self.made.done),
            f"kills at named points: {sum(points.values())}, at {len(points)} points: {_counted(points)}",
            f"storage calls: {calls}, {self.failed_calls} of them failed",
            f"silences of the emulator: {len(self.silences)}, the longest {max(self.silences, default=0):.0f} s",
            f"starts that failed: {sum(slot.failed_starts for slot in self.slots)}",
            "modes: " + _counted(per_mode(self.traffic.told)),
            "outcomes: " + _counted(self.outcomes),
            f"clients that a crowded conversation never came to: {self.traffic.crowded_out}",
            f"second entries into handlers: {sum(self.reentries.values())}, because of: {_counted(self.reentries)}",
            "in the logs: " + _counted(self.seen),
            *left,
            f"chaos: {self.kills} kills, {self.responses} responses, {self.turns} turns of {self.chains} chains, "
            f"{len(self.violations)} violations; "
            f"again: make chaos SECONDS={self.seconds:.0f} SEED={self.seed}; details: {self.directory}",
        ]


def shortfalls(had: Mapping[str, int], least: Mapping[str, int]) -> Sequence[str]:
    """What there was too little of for a run to prove anything."""
    return [f"too few {what}: {had[what]}, not {count}" for what, count in least.items() if had[what] < count]


def least_of(seconds: float, least_kills: int | None = None, least_responses: int | None = None) -> Mapping[str, int]:
    """What has to happen in so many seconds; a full run has to have some of everything."""
    share = seconds / FULL_SECONDS
    least = {
        "kills": int(LEAST_KILLS * share) if least_kills is None else least_kills,
        "responses": int(LEAST_RESPONSES * share) if least_responses is None else least_responses,
    }
    if seconds >= FULL_SECONDS:
        least |= dict.fromkeys((*WEIGHTS, "storage calls that failed", *FENCED), 1)
    return least


def _counted(counts: "Counter[str] | dict[str, int] | object") -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), default=FULL_SECONDS, show_default=True, help="How long.")
@click.option("--seed", type=int, help="Of everything that is left to chance.  [default: another one each time]")
@click.option(
    "--least-kills",
    type=click.IntRange(min=0),
    help=f"With fewer it fails.  [default: {LEAST_KILLS} in {FULL_SECONDS:.0f} s]",
)
@click.option(
    "--least-responses",
    type=click.IntRange(min=0),
    help=f"With fewer it fails.  [default: {LEAST_RESPONSES} in {FULL_SECONDS:.0f} s]",
)
def main(seconds: float, seed: int | None, least_kills: int | None, least_responses: int | None) -> None:
    """Kill, freeze and cut off real hosts under traffic; 0 violations is what has to come out."""
    seed = seed if seed is not None else random.SystemRandom().randrange(10**6)
    directory = ROOT / ".run" / "chaos" / f"{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = Run(seconds, seed, directory)
    click.echo(f"chaos of {seconds:.0f} s, seed {seed}")
    asyncio.run(run.play())
    for line in run.summary():
        click.echo(line)
    had = {**run.happened, "kills": run.kills, "responses": run.responses}
    short = shortfalls(had, least_of(seconds, least_kills, least_responses))
    for line in short:
        click.echo(line)
    sys.exit(1 if run.violations or short else 0)


if __name__ == "__main__":
    main()
