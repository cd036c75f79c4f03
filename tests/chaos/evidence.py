"""What the processes of a run say of themselves: their logs, line by line, and what follows from them.

The hosts log in JSON (`api.logs`); the agent says in the same logs when an entry into its handler begins and ends, and
when a run of a response begins, whose `attempt_id` tells the claim's generation and the worker that has it. Lines that
are no JSON are of the host's start, or tracebacks of the interpreter; nothing is concluded from them.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ENTERED = "chaos: entered {}"
LEFT = "chaos: left {}"
LEFT_AT_SHUTDOWN = "chaos: left {} at shutdown"
ATTEMPT = "chaos: attempt {}"
"""What `tests.chaos.agent` says: of an entry by its name, of a run's beginning with the number of the attempt."""

_ENTERED = re.compile(ENTERED.format(r"(\w+)"))
_SHUT_DOWN = re.compile(LEFT_AT_SHUTDOWN.format(r"(\w+)"))
_ATTEMPT = re.compile(ATTEMPT.format(r"(\d+)"))
_DEAD = re.compile(r"worker (\w+) (?:is dead: \d+ open entries|was declared dead by another)")
_ADOPTED = re.compile(r"worker \w+ is dead: \d+ open entries")
_REFUSED = re.compile(r"response (\w+): storage refused (a status write|an append) of generation (\d+)")
_BROKE_OFF = re.compile(r"response (\w+): the run broke off")
_CUT = re.compile(r"response (\w+): a stream broke off")
_POISON = re.compile(r"responses-work, received \d+ times, moves to the poison queue")
_INVOKED = re.compile(r"(\w+) (?:succeeded|failed), ([\d.]+) ms")
_SLACK = 0.05
"""Seconds by which a line may stand beside the invocation it was written in: durations are rounded."""


@dataclass(frozen=True)
class Line:
    """One line of a log; `at` is Unix time."""

    at: float
    pid: int
    message: str
    response_id: str = ""
    attempt_id: str = ""
    exception: str = ""


@dataclass(frozen=True)
class Attempt:
    """A run of a response that began in a process, whether or not its handler was entered.

    Attributes:
        at: when, as Unix time.
        generation: the claim's number, 0 if it is not known.
        worker: who had it, "" if it was not known yet (a foreground run).
        number: of the attempt (R5), as the server counts; 0 in an entry.
    """

    at: float
    pid: int
    generation: int
    worker: str
    number: int = 0


@dataclass(frozen=True)
class Refusal:
    """Storage refused a write, or did not answer for too long and the run `broke_off`."""

    at: float
    pid: int
    generation: int
    broke_off: bool = False


class Evidence:
    """What the logs of all processes say.

    Attributes:
        entries: who had an entry into the handler, by its name.
        shut_down: when an entry was left with `context.shutdown` set, by its name.
        attempts: the runs of each response, in their order.
        deaths: when a worker was first said to be dead, by itself or by who adopted its ledger.
        refusals: of each response.
        cuts: when a stream of a response ended early for a reason that its host tells, and in which process.
        poisoned: when a start message went to the poison queue.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self.entries: dict[str, Attempt] = {}
        self.shut_down: dict[str, float] = {}
        self.attempts: defaultdict[str, list[Attempt]] = defaultdict(list)
        self.deaths: dict[str, float] = {}
        self.refusals: defaultdict[str, list[Refusal]] = defaultdict(list)
        self.cuts: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        self.poisoned: list[float] = []
        self._workers: defaultdict[int, set[str]] = defaultdict(set)
        self._refused: Counter[str] = Counter()
        self._adoptions: list[Line] = []
        self._invocations: defaultdict[int, list[tuple[str, float, float]]] = defaultdict(list)
        for line in sorted(lines, key=lambda each: each.at):
            self._take(line)

    @classmethod
    def read(cls, directory: Path) -> "Evidence":
        """Of the files `{slot}-{number}-{pid}.log` of a directory."""
        return cls(line for path in directory.glob("*-*-*.log") for line in read_lines(path))

    def workers(self, pid: int) -> set[str]:
        """The worker ids that a process is known to have had."""
        return self._workers[pid]

    def counts(self) -> Mapping[str, int]:
        """How often storage refused a write, an entry was left at a shutdown, and a worker was taken over."""
        takeovers = Counter(f"take-overs by {self._occasion(line)}" for line in self._adoptions)
        return {"entries left at a shutdown": len(self.shut_down), **self._refused, **takeovers}

    def _take(self, line: Line) -> None:
        generation, worker = _claim(line.attempt_id)
        if worker:
            self._workers[line.pid].add(worker)
        if match := _ENTERED.fullmatch(line.message):
            self.entries[match[1]] = Attempt(line.at, line.pid, generation, worker)
        elif match := _SHUT_DOWN.fullmatch(line.message):
            self.shut_down[match[1]] = line.at
        elif match := _ATTEMPT.fullmatch(line.message):
            attempt = Attempt(line.at, line.pid, generation, worker, int(match[1]))
            self.attempts[line.response_id].append(attempt)
        elif match := _DEAD.match(line.message):
            self._take_death(line, match[1])
        elif match := _REFUSED.match(line.message):
            self.refusals[match[1]].append(Refusal(line.at, line.pid, int(match[3])))
            self._refused[f"{match[2].split()[1]} writes refused".replace("append writes", "appends")] += 1
        elif match := _BROKE_OFF.match(line.message):
            self.refusals[match[1]].append(Refusal(line.at, line.pid, 0, broke_off=True))
        elif match := _CUT.match(line.message):
            self.cuts[match[1]].append((line.at, line.pid))
        elif _POISON.search(line.message):
            self.poisoned.append(line.at)
        elif match := _INVOKED.match(line.message):
            self._invocations[line.pid].append((match[1], line.at - float(match[2]) / 1000, line.at))

    def _take_death(self, line: Line, worker: str) -> None:
        self.deaths.setdefault(worker, line.at)
        if _ADOPTED.match(line.message):
            self._adoptions.append(line)
        else:
            self._workers[line.pid].add(worker)

    def _occasion(self, line: Line) -> str:
        """Which function was at work when a worker was adopted; none is known of a process that died in it."""
        around = {
            function
            for function, began, ended in self._invocations[line.pid]
            if began - _SLACK <= line.at <= ended + _SLACK
        }
        if "adopt_worker" in around:
            return "watch message"
        return "sweep" if "sweep" in around else "nobody knows"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of one process; its id is the last part of the file's name."""
    pid = int(path.stem.rpartition("-")[2])
    with path.open(errors="replace") as log:
        for text in log:
            line = _parsed(text, pid)
            if line is not None:
                yield line


def _parsed(text: str, pid: int) -> Line | None:
    if not text.startswith('{"time"'):
        return None
    try:
        fields = json.loads(text)
    except ValueError:  # its process was killed while it wrote
        return None
    return Line(
        datetime.fromisoformat(fields["time"]).timestamp(),
        pid,
        fields["message"],
        fields.get("response_id", ""),
        fields.get("attempt_id", ""),
        fields.get("exception", ""),
    )


def _claim(attempt_id: str) -> tuple[int, str]:
    """The generation and the worker."""
    generation, _, worker = attempt_id.partition("-")
    return int(generation or 0), worker
