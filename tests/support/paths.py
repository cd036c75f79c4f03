"""The ways a worker stops, each played once with a response of every row in it.

Path A: SIGTERM, and the handlers get to their end within the grace. Path B: SIGTERM, and the grace is too short for
them. Path C: SIGKILL. Path CUT_SHORT: SIGTERM, and the host ends the process before the app's grace is over, which is
C by another way. The signal goes to the process that runs the background handlers and to an HTTP process that
runs the foreground ones; another HTTP process and a successor of the worker stay. Every handler is in the middle of
its last phase when the signal comes: two phases are done, half of the third is said.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from protocol import sse
from protocol.events import TERMINAL
from protocol.response import TERMINAL_STATUSES
from tests.support.host import FunctionHost, until
from tests.support.servers import PATIENT, Deployment, body, frames_from, frames_of, reached

type Json = dict[str, Any]

AGENT = "tests.support.agents.phases:app"
FRAGILE_AGENT = "tests.support.agents.phases:fragile_app"

ROWS = ("1", "2", "3", "4", "11")
CUT_SHORT = "cut_short"
MODES = ("json", "stream")

HANDLER_GRACE = {"A": 30.0, "B": 1.0, "C": 1.0, CUT_SHORT: 30.0}
"""Seconds that a handler may go on after the signal."""
HOST_GRACE = 45.0
"""Seconds after which the host would end whatever still runs."""
SHORT_HOST_GRACE = 1.0
"""The same on the path on which it comes first."""
SETTINGS: dict[str, dict[str, str]] = {"A": PATIENT, "B": PATIENT, "C": {}, CUT_SHORT: {}}
"""On A and B every host says when it goes: a death that somebody believes in is none."""

BEGUN = ("response.created", "response.in_progress")
HALF_PHASE = ("response.output_item.added", "response.content_part.added", "response.output_text.delta")
PHASE = (
    *HALF_PHASE,
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
)
BEFORE_SIGNAL = (*BEGUN, *PHASE, *PHASE, *HALF_PHASE)
"""The types of the events that every stream has had when the signal comes."""

STAY_SECONDS = 60.0
END_SECONDS = 60.0

CLIENT_HEADERS = {"x-client-trace": "of the first entry"}
QUERY = {"deployment": "blue"}


class Journal:
    """What the handlers wrote of themselves, whichever process they ran in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, what: str, **metadata: str) -> list[Json]:
        """The lines of a kind, of the responses with that metadata."""
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text().rpartition("\n")  # a long line may be on its way
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["what"] == what and metadata.items() <= line["metadata"].items()]

    async def reached(self, what: str, count: int, seconds: float) -> None:
        """Wait for so many lines of a kind."""
        assert await until(lambda: len(self.lines(what)) >= count, seconds), f"only {len(self.lines(what))} {what}"


@dataclass
class Played:
    """What became of one response, as its client and everybody else saw it.

    Attributes:
        response_id: its id, from the handler's own journal where the client was not told.
        frames: what its client saw of the stream, on one connection or two.
        connections: on how many.
        answer: the answer to the POST of a client that does not stream, None if its connection broke. It may be the
        host's, which says that its app is gone.
        got: GET, in the end, from the HTTP process that stayed.
        input_items: the same of its input items.
        entries: the handler's entries, as the handler noted them.
        broke: what ended the connection to the first process, if it broke.
        error: why it could not be followed to its end.
    """

    row: str
    path: str
    mode: str
    response_id: str = ""
    frames: list[bytes] = field(default_factory=list)
    connections: int = 0
    answer: httpx.Response | None = None
    got: httpx.Response | None = None
    input_items: httpx.Response | None = None
    entries: list[Json] = field(default_factory=list)
    broke: httpx.TransportError | None = None
    error: BaseException | None = None

    @property
    def name(self) -> str:
        return f"{self.row}-{self.path}-{self.mode}"

    @property
    def background(self) -> bool:
        return self.row in ("1", "2", "11")

    @property
    def stored(self) -> bool:
        return self.row != "4"

    @property
    def events(self) -> list[Json]:
        """What its client saw."""
        return [sse.decode(frame) for frame in self.frames]

    @property
    def whole(self) -> bool:
        """Whether its client saw the end of the stream."""
        return bool(self.frames) and sse.event_type(self.frames[-1]) in TERMINAL

    @property
    def stays(self) -> bool:
        """Whether its client has seen all that its first entry says before the signal."""
        return self.mode == "json" or len(self.frames) >= len(BEFORE_SIGNAL)

    def request(self) -> Json:
        """Two phases and a half before the signal; the last one ends after it only where the path says so."""
        script = {
            "checkpoints": self.row != "1",
            "stay_in": 2,
            "on_shutdown": "finish" if self.path == "A" else "ignore",
        }
        return body(
            script,
            store=self.stored,
            background=self.background,
            stream=self.mode == "stream",
            metadata={"cell": self.name},
        )


def markers(response: Json) -> list[str]:
    """The texts of a response's output: which lifetime did which phase."""
    return ["".join(part["text"] for part in item["content"]) for item in response["output"]]


def lifetime_of(event: Json) -> int | None:
    """The entry that said an event, counted from zero, where the event tells."""
    delta = str(event.get("delta", ""))
    return int(delta[1:-1]) if delta.startswith("L") else None


def assert_each_phase_once(response: Json, phases: int) -> list[int]:
    """The phases are there, each once and in order, and no entry's stand behind those of a later one; whose each is."""
    done = [re.fullmatch(r"L(\d+)_phase(\d+)", text) for text in markers(response)]
    assert [match and int(match[2]) for match in done] == list(range(phases))
    lifetimes = [int(match[1]) for match in done if match]
    assert lifetimes == sorted(lifetimes)
    return lifetimes


@dataclass
class Scene:
    """A path after it was played.

    Attributes:
        worker: process id of the worker that got the signal.
        successor: of the one that did not.
        played: what was seen of each response, by its name `row-path-mode`.
    """

    worker: int
    successor: int
    played: dict[str, Played]


@dataclass
class Stage:
    """The processes of one path, without the worker's successor."""

    path: str
    staying: FunctionHost
    leaving: FunctionHost
    worker: FunctionHost

    @classmethod
    async def build(cls, made: Deployment, path: str) -> "Stage":
        """Two HTTP processes and a worker; the leaving one's responses are not resilient (row 2)."""
        grace = ["--grace", str(SHORT_HOST_GRACE if path == CUT_SHORT else HOST_GRACE)]
        staying, leaving, worker = await asyncio.gather(
            made.start("--only", "http", RESPONSES_AGENT=AGENT),
            made.start("--only", "http", *grace, RESPONSES_AGENT=FRAGILE_AGENT),
            made.start("--only", "queue", *grace, RESPONSES_AGENT=AGENT),
        )
        return cls(path, staying, leaving, worker)

    def signal(self) -> None:
        """Tell, or kill, the worker and the leaving HTTP process."""
        for host in (self.worker, self.leaving):
            host.kill() if self.path == "C" else host.terminate()


async def play(made: Deployment, path: str, journal: Journal) -> Scene:
    """Play a path to the end of every response."""
    played = [Played(row, path, mode) for row in ROWS for mode in MODES]
    stage = await Stage.build(made, path)
    timeout = httpx.Timeout(90)
    async with (
        httpx.AsyncClient(base_url=stage.staying.base_url, timeout=timeout) as staying,
        httpx.AsyncClient(base_url=stage.leaving.base_url, timeout=timeout) as leaving,
    ):
        clients = [
            asyncio.create_task(_follow(each, staying if each.row in ("1", "11") else leaving, staying, journal))
            for each in played
        ]
        await reached(
            lambda: len(journal.lines("staying")) == len(played), "every handler stays", clients, STAY_SECONDS
        )
        await reached(lambda: all(each.stays for each in played), "all was heard", clients, STAY_SECONDS)
        successor = await made.start("--only", "queue", RESPONSES_AGENT=AGENT)
        stage.signal()
        ends = await asyncio.gather(
            *(asyncio.wait_for(client, END_SECONDS) for client in clients), return_exceptions=True
        )
        if path != "C":
            assert await stage.worker.wait_ended(HOST_GRACE) == 0
            assert await stage.leaving.wait_ended(HOST_GRACE) == 0
        for each, end in zip(played, ends, strict=True):
            each.entries = journal.lines("entered", cell=each.name)
            each.error = end
            if end is not None:
                end.add_note(f"The first connection: {each.broke!r}, {each.answer and each.answer.text}")
                end.add_note(made.account())
    return Scene(stage.worker.pid, successor.pid, {each.name: each for each in played})


async def _follow(played: Played, first: httpx.AsyncClient, other: httpx.AsyncClient, journal: Journal) -> None:
    """One client: it asks one process, and goes on with another one when its connection breaks."""
    request = played.request()
    more: Json = {"json": request, "params": QUERY, "headers": CLIENT_HEADERS}
    try:
        if played.mode == "stream":
            async with first.stream("POST", "/responses", **more) as answer:
                played.connections += 1
                async for frame in frames_from(answer):
                    played.frames.append(frame)
        else:
            played.answer = await first.post("/responses", **more)
            played.connections += 1
    except httpx.TransportError as error:
        played.broke = error
    told = played.answer is not None and played.answer.is_success and played.answer.json()["id"]
    played.response_id = told or journal.lines("entered", cell=played.name)[0]["response_id"]
    path = f"/responses/{played.response_id}"
    if played.background and played.mode == "stream" and not played.whole:
        last = sse.sequence_of(played.frames[-1])
        answer = await other.get(path, params={"stream": "true", "starting_after": last})
        played.connections += 1
        played.frames += frames_of(answer.content)
    played.got = await _ended(other, path, lambda got: got.status_code == 404 and not played.stored)
    played.input_items = await other.get(f"{path}/input_items")


async def _ended(client: httpx.AsyncClient, path: str, enough: Callable[[httpx.Response], bool]) -> httpx.Response:
    """GET until it has a terminal status."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        got = await client.get(path)
        if enough(got) or (got.status_code == 200 and got.json()["status"] in TERMINAL_STATUSES):
            return got
        assert time.monotonic() < deadline, f"{path}: {got.status_code} {got.text}"
        await asyncio.sleep(0.1)
