"""A fleet of engines over memory in virtual time, and everything that may happen to it, as a Hypothesis state machine.

Hypothesis looks for the shortest story after which a response is not what its clients were told, or does not end.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from protocol.errors import ApiError, CannotCancel
from resilience.context import ResponseContext
from storage.errors import StorageError, StorageUnavailable
from storage.seam import Fault, FaultKind, InjectedFault, Operation
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, Reader, background, fleet, start_message
from tests.support.handlers import Teller, entry_of, text_of
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

HOSTS = 3
WORDS = 4
PAUSE = 1.5
"""Seconds between two words: most of what happens, happens to a response that is not over."""

LAST_SECONDS = 5_000.0
"""So much virtual time everything has to come to rest in, when nothing is disturbed any more."""

MOMENTS = [0.0, 0.05, 0.5, 2.0, 2.0, 7.0, 40.0]
"""Seconds that pass between two disturbances."""

CALL_SECONDS = 60.0
"""How long a client waits for an answer."""

HARMLESS = {"attempts_exhausted", "storage_error"}
FAULTY = [*sorted(set(Operation) - {Operation.PING}), "log.*", "row.*", "ledger.*", "queue.*", "*"]
STEPS = [
    "row.read",
    "row.replace",
    "log.break",
    "log.acquire",
    "log.info",
    "log.append",
    "ledger.commit",
    "ledger.wipe",
]
"""Where a challenger, an owner or an adopter may sleep."""

DECISIVE = ["log.append", "row.replace", "row.insert", "log.acquire", "ledger.commit", "queue.send_start"]
"""Operations whose faults are worth more tries than the others'."""


@dataclass
class Known:
    """A response that a client was told of."""

    response_id: str
    reader: Reader | None
    cancelled: bool = False
    resumed: list[Reader] = field(default_factory=list)


async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
    """Tells four words; as the request says, one after the other or each a checkpoint."""
    teller = _TELLERS[request["input"]]
    async for event in teller(request, context, signal):
        yield event


_TELLERS: dict[str, Teller] = {}


class World(RuleBasedStateMachine):
    """Three hosts, one account."""

    known: Bundle[Known] = Bundle("known")
    faults: Bundle[InjectedFault] = Bundle("faults")

    def __init__(self) -> None:
        super().__init__()
        _TELLERS.update(
            plain=Teller(WORDS, pause=PAUSE),
            checkpoints=Teller(WORDS, pause=PAUSE, checkpoints=True),
            quick=Teller(WORDS),
        )
        self.loop = VirtualTimeLoop()
        self.responses: list[Known] = []
        self.frozen: set[Host] = set()
        self.injected: list[InjectedFault] = []
        self.disturbed = 0
        self._context = fleet(handler)

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Let time pass until that is done."""
        return self.loop.run_until_complete(work)

    @initialize(target=known, eager=st.lists(st.booleans(), min_size=HOSTS, max_size=HOSTS))
    def open(self, eager: list[bool]) -> Any:
        """Three hosts, and three responses under way."""
        self.hosts: Fleet = self.run(self._enter())
        self.run(self._start(eager))
        made = [self._make(0, "plain", stream=True), self._make(1, "checkpoints", stream=True)]
        return multiple(*made, self._make(2, "checkpoints", stream=False))

    async def _enter(self) -> Fleet:
        return await self._context.__aenter__()

    async def _start(self, eager: list[bool]) -> None:
        for each in eager:
            self._add(each)

    def _add(self, eager: bool) -> Host:
        return self.hosts.host(eager_start=eager, segment_blocks=5).serve_timer()

    @property
    def living(self) -> list[Host]:
        """Hosts that answer."""
        return [host for host in self.hosts.hosts if not host.dead and host not in self.frozen]

    def _one(self, number: int) -> Host:
        return self.living[number % len(self.living)]

    def _busy(self, number: int) -> Host:
        """One that has something to lose, if there is one."""
        busy = [host for host in self.living if host.engine.runtime.running] or self.living
        return busy[number % len(busy)]

    # -- clients ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.living)
    @rule(
        target=known,
        host=st.integers(0, 5),
        text=st.sampled_from(["plain", "checkpoints", "quick"]),
        stream=st.booleans(),
    )
    def accept(self, host: int, text: str, stream: bool) -> Any:
        return self._make(host, text, stream=stream)

    def _make(self, host: int, text: str, *, stream: bool) -> Known | None:
        made = self.run(self._accept(self._one(host), text, stream))
        if made is not None:
            self.responses.append(made)
        return made

    async def _accept(self, host: Host, text: str, stream: bool) -> Known | None:
        with suppress(HostGone, StorageError, ApiError, TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                if not stream:
                    return Known((await host.create(background(text)))["id"], None)
                reader = await host.stream(background(text))
                return Known(await reader.response_id(), reader)
        return None

    @precondition(lambda self: self.living)
    @rule(known=known, host=st.integers(0, 5))
    def cancel(self, known: Known | None, host: int) -> None:
        if known is not None:
            self.run(self._cancel(known, self._one(host)))

    async def _cancel(self, known: Known, host: Host) -> None:
        with suppress(HostGone, StorageError, CannotCancel, TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                assert (await host.cancel(known.response_id))["status"] == "cancelled"
                known.cancelled = True

    @precondition(lambda self: self.living)
    @rule(known=known, host=st.integers(0, 5), after=st.integers(-1, 6))
    def follow(self, known: Known | None, host: int, after: int) -> None:
        if known is not None and known.reader is not None:
            self.run(self._follow(known, self._one(host), after))

    async def _follow(self, known: Known, host: Host, after: int) -> None:
        with suppress(HostGone, StorageError, TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                known.resumed.append(await host.replay(known.response_id, after))

    @rule(known=known)
    def stop_reading(self, known: Known | None) -> None:
        """With no reader left, nobody completes a log but those who have to."""
        if known is not None:
            for reader in (known.reader, *known.resumed):
                if reader is not None:
                    self.run(reader.leave())

    # -- time, hosts, messages ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(MOMENTS))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: self.living)
    @rule(host=st.integers(0, 5), eager=st.booleans())
    def crash(self, host: int, eager: bool) -> None:
        self.disturbed += 1
        self.run(self._busy(host).crash())
        self.run(self._start([eager]))

    @precondition(lambda self: self.living)
    @rule(host=st.integers(0, 5), ahead=st.integers(1, 200))
    def crash_at_a_call(self, host: int, ahead: int) -> None:
        self.disturbed += 1
        victim = self._busy(host)
        victim.crash_at(len(victim.calls) + ahead, "before" if ahead % 2 else "after")
        self.run(self._start([bool(ahead % 3)]))

    @precondition(lambda self: len(self.living) > 1)
    @rule(host=st.integers(0, 5), seconds=st.sampled_from(MOMENTS))
    def freeze(self, host: int, seconds: float) -> None:
        self.disturbed += 1
        victim = self._busy(host)
        victim.pause()
        self.frozen.add(victim)
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: self.frozen)
    @rule()
    def thaw(self) -> None:
        for host in self.frozen:
            host.resume()
        self.frozen.clear()

    @rule(known=known, delay=st.sampled_from([0, 3, 30]), times=st.integers(1, 3))
    def deliver_again(self, known: Known | None, delay: float, times: int) -> None:
        if known is not None:
            for _ in range(times):
                text = start_message(known.response_id)
                self.run(self.hosts.storage.driver.send_message("responses-work", text, delay=delay))

    @rule(queue=st.sampled_from(["responses-work", "responses-watch"]), text=st.text(max_size=20))
    def deliver_garbage(self, queue: str, text: str) -> None:
        self.run(self.hosts.storage.driver.send_message(queue, text))

    @precondition(lambda self: self.living)
    @rule(host=st.integers(0, 5))
    def suspect(self, host: int) -> None:
        self.disturbed += 1
        worker = self._busy(host).engine.runtime.worker.id or "w-nobody"
        self.run(self.hosts.storage.watch.send(worker, delay=0))

    @precondition(lambda self: self.living)
    @rule(host=st.integers(0, 5), seconds=st.sampled_from([-86_400, -90, 90, 86_400]))
    def skew_the_clock(self, host: int, seconds: int) -> None:
        """Hosts do not agree on the time of day; nothing is decided by it."""
        self._one(host).engine.runtime.now = lambda: self.hosts.now() + seconds

    # -- storage ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.living)
    @rule(
        target=faults,
        host=st.integers(0, 5),
        operation=st.sampled_from(DECISIVE) | st.sampled_from(FAULTY),
        kind=st.sampled_from(["before", "after", "delay"]),
        times=st.integers(1, 6),
        spared=st.integers(0, 2),
        seconds=st.sampled_from(MOMENTS),
    )
    def fail(
        self, host: int, operation: str, kind: FaultKind, times: int, spared: int, seconds: float
    ) -> InjectedFault:
        fault = Fault(operation=operation, kind=kind, error=StorageUnavailable, times=times, after=spared, delay=8.0)
        injected = self._inject(self._busy(host), fault)
        self.run(asyncio.sleep(seconds))
        return injected

    @precondition(lambda self: self.living)
    @rule(
        target=faults, host=st.integers(0, 5), operation=st.sampled_from(STEPS), again=st.sampled_from([None, 0.5, 8.0])
    )
    def sleep(self, host: int, operation: str, again: float | None) -> InjectedFault:
        """It sleeps before one step, is thought to be dead meanwhile, and goes on when the fault is mended."""
        sleeper = self._busy(host)
        fault = self._inject(sleeper, Fault(operation=operation, kind="hang", times=1))
        worker = sleeper.engine.runtime.worker.id
        if again is not None and worker is not None:
            self.run(asyncio.sleep(again))
            self.run(self.hosts.storage.watch.send(worker, delay=0))
        return fault

    def _inject(self, host: Host, fault: Fault) -> InjectedFault:
        self.disturbed += 1
        self.injected.append(host.seam.inject(fault))
        return self.injected[-1]

    @rule(fault=consumes(faults))
    def mend(self, fault: InjectedFault) -> None:
        fault.remove()

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def what_was_read_is_a_piece_of_one_log(self) -> None:
        for known in self.responses:
            views = [reader.frames for reader in (known.reader, *known.resumed) if reader is not None]
            for view in views[1:]:
                _assert_consistent(views[0], view)

    def teardown(self) -> None:
        try:
            if hasattr(self, "hosts"):
                self.run(self._finish())
        finally:
            if hasattr(self, "hosts"):
                self.run(self._context.__aexit__(None, None, None))
            self.loop.close()

    async def _finish(self) -> None:
        for fault in self.injected:
            fault.remove()
        for host in self.hosts.hosts:
            host.resume()
        self._add(eager=False)
        await self.hosts.quiet(LAST_SECONDS)
        told = {known.response_id: known for known in self.responses}
        stored_ids = await self.hosts.ids()
        assert set(told) <= set(stored_ids), f"R1: {set(told) - set(stored_ids)} is not on record"
        for response_id in stored_ids:
            await self._check(response_id, told.get(response_id))

    async def _check(self, response_id: str, known: Known | None) -> None:
        readers = [known.reader, *known.resumed] if known else []
        entries = self.hosts.entries[response_id]
        stored = await check_response(
            self.hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.frames for reader in readers if reader is not None],
            entries=len(entries),
            crashes=self.disturbed,
            cancelled=known.cancelled if known else False,
            generation_of=entry_of,
        )
        snapshot = stored.snapshot or {}
        if stored.row.status == "failed":
            error = snapshot["error"]
            reason = (error.get("additionalInfo") or {}).get("shutdown_reason", error["code"])
            assert reason in HARMLESS, f"R5: {error}"
            assert self.disturbed, f"R5: {error} although nothing was disturbed"
        elif stored.row.status == "completed":
            told = [word.partition("n")[2] for word in text_of(snapshot).split()]
            assert told == [str(number) for number in range(WORDS)], f"R7: {text_of(snapshot)}"
        else:
            assert known is not None
            assert stored.row.status == "cancelled"


def _assert_consistent(one: list[bytes], other: list[bytes]) -> None:
    """V2: two views have the same frame under the same number."""
    if one and other:
        numbered = {_number(frame): frame for frame in one}
        for frame in other:
            assert numbered.get(_number(frame), frame) == frame, "V2: two readers saw different events"


def _number(frame: bytes) -> bytes:
    return frame.rpartition(b'"sequence_number":')[2][:12].partition(b",")[0].rstrip(b"}\n")
