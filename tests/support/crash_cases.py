"""A real host dies at a named point (`resilience.crash_points`), and what must hold afterwards.

A case is a way to make a victim pass a point, in one of the modes in which clients use it. Beside the victim stands a
host that survives; it serves queues only from the moment the victim is gone, unless the case needs it before.
"""

import asyncio
import json
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from protocol.events import TERMINAL
from resilience.crash_points import HANDLER_POINTS, MOMENTS, SETTING
from storage.connection import Storage
from storage.driver import RESPONSES
from storage.rows import ROW_PREFIX
from storage.seam import Operation
from tests.support.azurite import AzuriteServer
from tests.support.host import FunctionHost, until
from tests.support.invariants import assert_chain, check_nothing_left, check_response
from tests.support.rest import left_to_do
from tests.support.servers import SCRIPTED, Deployment, body, deployment, eventually, frames_from
from tests.support.turn_journal import read_entries

type Json = dict[str, Any]

PRINCIPAL = "local"
DEATH_SECONDS = 60.0
END_SECONDS = 240.0
SWEEP_SECONDS = 5.0
REST_LOOK_SECONDS = 0.5

STEERABLE = "tests.support.agents.scripted:steerable_app"
LATER = ("checkpoint", Operation.QUEUE_PUSH_WATCH)
"""Points that a run passes only after a while."""

LAST = "handler.exit"
"""The point that a handler passes only if it comes to its end by itself."""

STEERED = 3
"""Events of the first turn after which the others come."""

BALLAST = "x" * 40_000
"""Enough for the request to be stored beside the row."""

PAD = 9_000
"""Enough for the later checkpoints and the outcome to be stored there too."""

SCRIPT: Json = {
    "count": 6,
    "delay": 0.25,
    "checkpoint_every": 2,
    "pad": PAD,
    "ballast": BALLAST,
    "on_signal": "finish",
}
SETTINGS = {
    "RESPONSES_SEGMENT_BLOCKS": "5",
    "RESPONSES_IDLE_CLOSE_AFTER": "0.5",
    # A host killed while its ledger rests is found by the sweep alone: once a minute, and not before this.
    "RESPONSES_IDLE_END_AFTER": "0.5",
    "RESPONSES_STALE_AFTER": "15",
    "RESPONSES_HEARTBEAT_INTERVAL": "0.4",
}
"""So that what a long life brings happens within seconds."""

ONE_SEGMENT = {"RESPONSES_SEGMENT_BLOCKS": "1000"}
"""Where the handler has to come to its end: a new segment that the cancel refuses would be where it stops."""

SHORT = ("--visibility", "4")
"""How soon the message of a killed invocation comes back."""

EAGER = {"RESPONSES_EAGER_START": "true"}
LATE = {"RESPONSES_EAGER_START": "false"}


@dataclass
class Case:
    """One death.

    Attributes:
        way: how the victim comes to the point; a key of `WAYS`.
        point: where it dies.
        passing: at which passing.
        mode: what the client asked for: `background`, `stream` or `cancel`; `steer`, a stream with two more turns
            behind it, the first of which reads it to its end; `steer and cancel`, the same, and the first is cancelled.
    """

    way: str
    point: str
    passing: int = 1
    mode: str = "stream"
    frames: list[bytes] = field(default_factory=list)
    response_id: str = ""
    later: list[str] = field(default_factory=list)
    cancelled: bool = False
    deleted: bool = False

    def __str__(self) -> str:
        return f"{self.way}-{self.mode}-{self.point}:{self.passing}"

    @property
    def steers(self) -> bool:
        """True if other turns come behind the first."""
        return self.mode in STEER

    @property
    def cancels(self) -> bool:
        """True if the (first) response is cancelled."""
        return self.mode.endswith("cancel")

    @property
    def crash_at(self) -> dict[str, str]:
        return {SETTING: f"{self.point}:{self.passing}"}

    async def play(self, azurite: AzuriteServer) -> None:
        """Die there, and look at what became of it.

        Raises:
            AssertionError: The point was not passed, or a rule does not hold afterwards.
        """
        with tempfile.TemporaryDirectory() as directory:
            journal = Path(directory) / "journal"
            settings = {**SETTINGS, "SCRIPTED_JOURNAL": str(journal)}
            if self.cancels and self.point.startswith(LAST):
                settings |= ONE_SEGMENT
            with deployment(azurite, STEERABLE if self.steers else SCRIPTED, **settings) as cluster:
                async with cluster.storage() as storage:
                    survivor = await WAYS[self.way](self, cluster)
                    await self._settle(survivor, storage, cluster)
                    await self._judge(storage, cluster, journal)
                    if self.steers:
                        await self._judge_turns(storage, journal)

    # -- the client ---------------------------------------------------------------------------------------------------

    async def ask(self, host: FunctionHost, enough: int = 10**9, **fields: Any) -> None:
        """Make a response and follow it while the host lives, or until so many events were seen."""
        script = {**SCRIPT, "delay": 0.8} if self.way == "leaving" else SCRIPT  # longer than the grace
        if self.way == "taking over":
            script = {**script, "delay": 1.0, "delay_again": 0.25}  # not at its end when its owner is killed
        if self.mode == "steer and cancel" or (self.way == "taking over" and self.steers):
            # Its handler is there when the end comes, however late its client hears of it.
            script = {**script, "on_signal": "ignore", "delay": 0.7, "count": 15}
        elif self.cancels and self.point.startswith(LATER):
            script = {**script, "on_signal": "ignore"}  # it gets that far, whenever the cancel comes
        elif self.cancels and self.point.startswith(LAST):
            script = {**script, "checkpoint_every": 0}  # one that the cancel refuses would be where the handler stops
        if self.way == "deleting":
            script = {**script, "remember": "this has a row of the chain made, which goes with the response"}
        wanted = body(script, background=True, stream=self.mode != "background", **self._conversation, **fields)
        with suppress(httpx.HTTPError):
            async with httpx.AsyncClient(base_url=host.base_url, timeout=END_SECONDS) as http:
                if self.mode == "background":
                    answer = await http.post("/responses", json=wanted)
                    self.response_id = answer.json()["id"] if answer.status_code == 200 else ""
                    return
                async with http.stream("POST", "/responses", json=wanted) as answer:
                    async for frame in frames_from(answer):
                        self.frames.append(frame)
                        self.response_id = (
                            json.loads(frame.partition(b"data: ")[2])["response"]["id"]
                            if len(self.frames) == 1
                            else self.response_id
                        )
                        if len(self.frames) == STEERED and self.steers:
                            await self._steer(http)
                        if len(self.frames) >= enough:
                            return

    @property
    def _conversation(self) -> Json:
        return {"conversation": "talk"} if self.steers else {}

    async def _steer(self, http: httpx.AsyncClient) -> None:
        """Two more turns, while the first is at work; whether they are made is known only where there is an answer."""
        for _ in range(2):
            wanted = body({**SCRIPT, "count": 2}, background=True, **self._conversation)
            answer = await http.post("/responses", json=wanted)
            if answer.status_code == 200:
                self.later.append(answer.json()["id"])

    async def cancel(self, host: FunctionHost) -> None:
        """One try to cancel it, if its id is known yet."""
        if not self.response_id:
            return
        with suppress(httpx.HTTPError):
            async with httpx.AsyncClient(base_url=host.base_url, timeout=END_SECONDS) as http:
                answer = await http.post(f"/responses/{self.response_id}/cancel")
                self.cancelled = self.cancelled or answer.status_code == 200

    # -- afterwards ---------------------------------------------------------------------------------------------------

    async def _settle(self, survivor: FunctionHost, storage: Storage, cluster: Deployment) -> None:
        if self.cancels and self.response_id:
            await eventually(lambda: self._cancel_definitely(survivor), "an answer to the cancel", END_SECONDS)

        async def ended() -> bool:
            return not await left_to_do(storage, cluster.environment)

        sweeping = asyncio.create_task(_sweep_often(cluster))
        try:
            await eventually(ended, "everything at rest", END_SECONDS, REST_LOOK_SECONDS)
        finally:
            sweeping.cancel()

    async def _cancel_definitely(self, host: FunctionHost) -> bool:
        async with httpx.AsyncClient(base_url=host.base_url, timeout=END_SECONDS) as http:
            answer = await http.post(f"/responses/{self.response_id}/cancel")
            self.cancelled = self.cancelled or answer.status_code == 200
            return answer.status_code in (200, 400)

    async def _judge(self, storage: Storage, cluster: Deployment, journal: Path) -> None:
        entries = Counter(entry.response_id for entry in read_entries(journal))
        rows = await storage.driver.query_entities(RESPONSES, row_key_prefix=ROW_PREFIX)
        ids = [row.row_key.removeprefix(ROW_PREFIX) for row in rows]
        told = {self.response_id, *self.later} - {""}
        assert told <= set(ids), f"R1: {told - set(ids)} is not on record"
        for response_id in ids:
            own = response_id == self.response_id
            if own and self.deleted:
                await check_nothing_left(storage, PRINCIPAL, response_id)
                continue
            stored = await check_response(
                storage,
                PRINCIPAL,
                response_id,
                seen=[self.frames] if own else [],
                entries=entries[response_id],
                crashes=2,  # on some ways somebody went before the victim
                cancelled=own and self.cancelled,
            )
            if own and self.way in FRONT_LIVES and self.mode != "background":
                assert json.loads(self.frames[-1].partition(b"data: ")[2])["type"] in TERMINAL, "cut off"
            if not (own and self.cancelled):
                assert stored.row.status == "completed", f"{stored.row.status}: {stored.snapshot}\n{cluster.logs()}"
                text = "".join(part["text"] for item in (stored.snapshot or {})["output"] for part in item["content"])
                count = len(text.split()) if self.steers else SCRIPT["count"]
                assert text.split() == [str(number) for number in range(count)]

    async def _judge_turns(self, storage: Storage, journal: Path) -> None:
        if self.response_id:
            spans = [entry.span for entry in read_entries(journal)]
            told = [self.response_id, *self.later]
            await assert_chain(storage, PRINCIPAL, self.response_id, spans, accepted=told, crashes=2)


async def _sweep_often(cluster: Deployment) -> None:
    """Have whoever has timers sweep more often than once a minute: many cases, and most of each would be waiting."""
    async with httpx.AsyncClient(timeout=END_SECONDS) as http:
        while True:
            for host in [host for host in cluster.hosts if host.running]:
                with suppress(httpx.HTTPError):
                    await http.post(f"{host.base_url}/admin/functions/sweep", json={})
            await asyncio.sleep(SWEEP_SECONDS)


async def _dies(victim: FunctionHost) -> None:
    assert await victim.wait_ended(DEATH_SECONDS) == -signal.SIGKILL, victim.log()


# -- the ways to a point ---------------------------------------------------------------------------------------------


async def _accepting(case: Case, cluster: Deployment) -> FunctionHost:
    """The victim accepts a response and runs it at once."""
    victim, front = await asyncio.gather(
        cluster.start(*SHORT, **EAGER, **case.crash_at), cluster.start("--only", "http")
    )
    asking = asyncio.create_task(case.ask(victim))
    if case.cancels:
        await until(lambda: bool(case.response_id) or not victim.running, DEATH_SECONDS)
        await case.cancel(victim)
    await _dies(victim)
    await cluster.start("--only", "queue", *SHORT, **LATE)
    await asking
    return front


async def _running(case: Case, cluster: Deployment) -> FunctionHost:
    """The victim runs what another process accepted."""
    front, victim = await asyncio.gather(
        cluster.start("--only", "http"), cluster.start("--only", "queue", *SHORT, **LATE, **case.crash_at)
    )
    asking = asyncio.create_task(case.ask(front))
    if case.cancels:
        await until(lambda: bool(case.response_id) or not victim.running, DEATH_SECONDS)
        await asyncio.sleep(0.6)
        await case.cancel(front)
    await _dies(victim)
    await cluster.start("--only", "queue", *SHORT, **LATE)
    await asyncio.wait_for(asking, END_SECONDS)
    return front


async def _taking_over(case: Case, cluster: Deployment) -> FunctionHost:
    """The victim takes over from an owner that died."""
    front, owner, victim = await asyncio.gather(
        cluster.start("--only", "http"),
        cluster.start(*SHORT, **EAGER),
        cluster.start("--only", "queue", *SHORT, **LATE, **case.crash_at),
    )
    asking = asyncio.create_task(case.ask(owner))
    await eventually(lambda: _has_id(case), "an id")
    await asyncio.sleep(0.8)
    owner.kill()
    if case.cancels:
        await case.cancel(front)
    await _dies(victim)
    await cluster.start("--only", "queue", *SHORT, **LATE)
    await asyncio.wait_for(asking, END_SECONDS)
    return front


async def _leaving(case: Case, cluster: Deployment) -> FunctionHost:
    """The victim hands its run over, for it has to stop."""
    front, victim = await asyncio.gather(
        cluster.start("--only", "http"),
        cluster.start("--only", "queue", *SHORT, **LATE, **case.crash_at, RESPONSES_HANDOVER_AFTER="0.5"),
    )
    asking = asyncio.create_task(case.ask(front))
    await _dies(victim)
    await cluster.start("--only", "queue", *SHORT, **LATE)
    await asyncio.wait_for(asking, END_SECONDS)
    return front


async def _deleting(case: Case, cluster: Deployment) -> FunctionHost:
    """The victim deletes a finished response."""
    survivor, victim = await asyncio.gather(
        cluster.start(*SHORT, **EAGER), cluster.start("--only", "http", **case.crash_at)
    )
    await case.ask(survivor)
    case.deleted = True
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient(base_url=victim.base_url, timeout=END_SECONDS) as http:
            await http.delete(f"/responses/{case.response_id}")
    await _dies(victim)

    async def gone() -> bool:
        async with httpx.AsyncClient(base_url=survivor.base_url, timeout=END_SECONDS) as http:
            await http.delete(f"/responses/{case.response_id}")
            await asyncio.sleep(0.5)
        async with cluster.storage() as storage:
            with suppress(AssertionError):
                await check_nothing_left(storage, PRINCIPAL, case.response_id)
                return True
        return False

    await eventually(gone, "the end of the deletion", END_SECONDS)
    return survivor


async def _keyed(case: Case, cluster: Deployment) -> FunctionHost:
    """The victim makes a response for an idempotency key; so does who survives."""
    victim, survivor = await asyncio.gather(
        cluster.start(*SHORT, **EAGER, **case.crash_at), cluster.start(*SHORT, **EAGER)
    )
    wanted = body(SCRIPT, background=True)
    headers = {"Idempotency-Key": "the key"}
    async with httpx.AsyncClient(timeout=END_SECONDS) as http:
        if case.point.startswith("key.read"):
            case.response_id = (await http.post(f"{survivor.base_url}/responses", json=wanted, headers=headers)).json()[
                "id"
            ]
        with suppress(httpx.HTTPError):
            await http.post(f"{victim.base_url}/responses", json=wanted, headers=headers)
        await _dies(victim)
        answer = await http.post(f"{survivor.base_url}/responses", json=wanted, headers=headers)
        assert answer.status_code == 200, answer.text
        assert case.response_id in ("", answer.json()["id"]), "I1: another response for the same key"
        case.response_id = answer.json()["id"]
    case.mode = "background"
    return survivor


async def _asked(case: Case, cluster: Deployment) -> FunctionHost:
    """The victim is asked whether it is ready, and to sweep."""
    victim, survivor = await asyncio.gather(
        cluster.start("--no-timers", **case.crash_at), cluster.start("--only", "http")
    )
    async with httpx.AsyncClient(base_url=victim.base_url, timeout=END_SECONDS) as http:
        with suppress(httpx.HTTPError):
            await http.get("/readyz")
            await http.post("/admin/functions/sweep", json={})
    await _dies(victim)
    return survivor


async def _has_id(case: Case) -> bool:
    return bool(case.response_id)


WAYS: dict[str, Callable[[Case, Deployment], Awaitable[FunctionHost]]] = {
    "accepting": _accepting,
    "running": _running,
    "taking over": _taking_over,
    "leaving": _leaving,
    "deleting": _deleting,
    "keyed": _keyed,
    "asked": _asked,
}

FRONT_LIVES = ("running", "leaving")
"""On these ways the client's own server survives: its stream has to reach the end."""

STEER = ("steer", "steer and cancel")
BACKGROUND_ONLY = ("background",)
LOG_ONLY = ("stream", "cancel", *STEER)
ALL = ("background", "stream", "cancel", *STEER)
ENDED = ("background", "stream", "steer")

# Which operations a victim passes on which way, and in which modes of its client.
PASSED: dict[str, dict[Operation, tuple[str, ...]]] = {
    "accepting": {
        Operation.LOG_CREATE: LOG_ONLY,
        Operation.LOG_ACQUIRE: LOG_ONLY,
        Operation.LOG_APPEND: LOG_ONLY,
        Operation.PAYLOAD_PUT: ALL,
        Operation.ROW_INSERT: ALL,
        Operation.ROW_READ: ALL,
        Operation.CHAIN_READ: STEER,
        Operation.CHAIN_REPLACE: ("steer and cancel",),
        Operation.ROW_REPLACE: ALL,
        Operation.LEDGER_BEGIN: ALL,
        Operation.LEDGER_COMMIT: ENDED,
        Operation.LEDGER_END: ALL,
        Operation.QUEUE_SEND_START: ALL,
        Operation.QUEUE_SEND_WATCH: ALL,
        Operation.QUEUE_PUSH_WATCH: ALL,
        Operation.QUEUE_DELETE_WATCH: ALL,
    },
    "running": {
        Operation.LOG_CREATE: ("stream",),
        Operation.LOG_ACQUIRE: LOG_ONLY,
        Operation.LOG_APPEND: LOG_ONLY,
        Operation.PAYLOAD_GET: ALL,
        Operation.PAYLOAD_PUT: ("background", "stream"),
        Operation.ROW_READ: ALL,
        Operation.CHAIN_READ: STEER,
        Operation.CHAIN_REPLACE: ("steer and cancel",),
        Operation.QUEUE_SEND_START: STEER,
        Operation.ROW_REPLACE: ALL,
        Operation.LEDGER_BEGIN: ALL,
        Operation.LEDGER_COMMIT: ENDED,
        Operation.LEDGER_END: ALL,
        Operation.QUEUE_SEND_WATCH: ALL,
        Operation.QUEUE_DELETE_WATCH: ALL,
    },
    "taking over": {
        Operation.LEDGER_BEGIN: ALL,
        Operation.LEDGER_COMMIT: ENDED,
        Operation.LEDGER_END: ENDED,
        Operation.QUEUE_SEND_WATCH: ALL,
        Operation.LEDGER_READ: ALL,
        Operation.LEDGER_MARK_DEAD: ALL,
        Operation.LEDGER_ENTRIES: ALL,
        Operation.LEDGER_WIPE: ALL,
        Operation.QUEUE_SEND_START: ALL,
        Operation.CHAIN_READ: STEER,
        Operation.LOG_BREAK: LOG_ONLY,
        Operation.LOG_ACQUIRE: LOG_ONLY,
        Operation.LOG_INFO: LOG_ONLY,
        Operation.LOG_READ: LOG_ONLY,
        Operation.ROW_REPLACE: ENDED,
    },
    "leaving": {
        Operation.LOG_RELEASE: ("stream",),
        Operation.LOG_APPEND: ("stream",),
        Operation.ROW_REPLACE: ("background", "stream"),
        Operation.LEDGER_COMMIT: ("background", "stream"),
        Operation.QUEUE_SEND_START: ("background", "stream"),
    },
    "deleting": {
        Operation.LOG_LIST: ("stream",),
        Operation.LOG_DELETE: ("stream",),
        Operation.PAYLOAD_LIST: ("stream",),
        Operation.PAYLOAD_DELETE: ("stream",),
        Operation.QUEUE_SEND_START: ("stream",),
        Operation.ROW_REPLACE: ("stream",),
        Operation.CHAIN_DELETE: ("stream",),
    },
    "keyed": {
        Operation.KEY_CLAIM: BACKGROUND_ONLY,
        Operation.KEY_READ: BACKGROUND_ONLY,
    },
    "asked": {
        Operation.PING: BACKGROUND_ONLY,
        Operation.LEDGER_TIME: BACKGROUND_ONLY,
        Operation.LEDGER_STALE: BACKGROUND_ONLY,
    },
}


def every_case() -> list[Case]:
    """A death at every point that a victim passes, on every way and in every mode that leads there."""
    cases = [
        Case(way, f"{operation}:{moment}", mode=mode)
        for way, operations in PASSED.items()
        for operation, modes in operations.items()
        for mode in modes
        for moment in MOMENTS
    ]
    cases += [
        Case(way, point, mode=mode) for way in ("accepting", "running") for point in HANDLER_POINTS for mode in ALL
    ]
    # Not only the first event: in the middle, and right before the end.
    cases += [
        Case("running", f"{point}", passing, mode)
        for point in HANDLER_POINTS[1:3]
        for passing in (5, 9)
        for mode in ALL[:2]
    ]
    # The outcome, and checkpoints after the first one.
    cases += [
        Case("running", f"{operation}:{moment}", passing, mode)
        for operation in (Operation.ROW_REPLACE, Operation.PAYLOAD_PUT)
        for moment in MOMENTS
        for passing in (2, 3)
        for mode in ALL[:2]
        if not (operation is Operation.PAYLOAD_PUT and passing == 3)
    ]
    cases += [Case("running", f"{Operation.ROW_REPLACE}:{moment}", 4, "stream") for moment in MOMENTS]
    # Turns that end in the middle of a chain, and at its end.
    cases += [
        Case(way, f"{operation}:{moment}", passing, "steer")
        for way in ("accepting", "running")
        for operation in (Operation.ROW_REPLACE, Operation.QUEUE_SEND_START, Operation.CHAIN_READ)
        for moment in MOMENTS
        for passing in (2, 3)
        # Who only runs them sends the start of the second and of the third.
        if (way, operation, passing) != ("running", Operation.QUEUE_SEND_START, 3)
    ]
    return cases
