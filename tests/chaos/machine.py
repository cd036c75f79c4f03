"""A fleet of engines over memory in virtual time, and everything that may happen to it, as a Hypothesis state machine.

Hypothesis looks for the shortest story after which a response is not what its clients were told, or does not end.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

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

from protocol.errors import ApiError
from protocol.events import TERMINAL
from protocol.response import TERMINAL_STATUSES
from resilience.dispatch import Disposition
from resilience.options import ResponsesServerOptions
from storage.driver import WATCH_QUEUE
from storage.errors import StorageError
from storage.memory import MemoryDriver
from storage.rows import ResponseRow
from storage.seam import Fault, InjectedFault
from tests.chaos.storage_faults import STEPS, some_faults
from tests.chaos.tellers import CUT_SHORT, PAUSE, TEXTS, WORDS, Tellers
from tests.chaos.witness import Witness
from tests.support.engines import (
    PRINCIPAL,
    Entry,
    Fleet,
    Host,
    HostGone,
    Reader,
    background,
    fleet,
    start_message,
)
from tests.support.handlers import text_of
from tests.support.invariants import View, assert_chain, check_nothing_left, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

HOSTS = 3
CONVERSATIONS = ["one", "two"]

LAST_SECONDS = 5_000.0
"""So much virtual time everything has to come to rest in, when nothing is disturbed any more."""

MOMENTS = [0.0, 0.05, 0.5, 2.0, 2.0, 7.0, 40.0]
"""Seconds that pass between two disturbances."""

CALL_SECONDS = 60.0
"""How long a client waits for an answer."""

GRACE = 2
DRAIN_SECONDS = 30.0
LIMITS = [86_400.0, 86_400.0, 8.0]
"""Seconds after which a host hands a run over; a word takes 1.5 of them, and a naive handler begins again."""

HARMLESS = {"attempts_exhausted", "storage_error"}
WITH_ITS_WORKER = {"crash_recovery", "grace_exhausted"}
"""Why a response that is not resilient fails as well."""

KEYS = 3
LARGE = "x" * 40_000
"""Instructions so long that the request, and each snapshot, is stored beside the row."""
SIZES = st.sampled_from(["", "", LARGE])


class _Call:
    """A client's call: whoever gets no answer, or not the one it wants, goes on."""

    def __init__(self, told: Counter[str]) -> None:
        self._told = told

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ApiError):
            self._told["refusals"] += 1
        elif isinstance(error, HostGone | StorageError | TimeoutError):
            self._told["broken calls"] += 1
        return isinstance(error, ApiError | HostGone | StorageError | TimeoutError)


@dataclass
class Known:
    """A response that a client asked for; of a foreground one it learns by reading.

    Attributes:
        deleted: a deletion was asked for; None if it is not known what came of it.
    """

    told: str
    reader: Reader | None
    cancelled: bool = False
    deleted: bool | None = False
    resumed: list[Reader] = field(default_factory=list)

    @property
    def response_id(self) -> str:
        """Its id, "" as long as the client was not told."""
        if not self.told and self.reader is not None:
            made = [event for event in self.reader.events[:1] if "response" in event]
            self.told = str(made[0]["response"]["id"]) if made else ""
        return self.told


class World(RuleBasedStateMachine):
    """Three hosts, one account."""

    told: ClassVar[Counter[str]] = Counter()
    """What happened in all stories together: a story in which nothing happens proves nothing."""

    known: Bundle[Known] = Bundle("known")
    faults: Bundle[InjectedFault] = Bundle("faults")

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.responses: list[Known] = []
        self.frozen: set[Host] = set()
        self.injected: list[tuple[Host, InjectedFault]] = []
        self.keyed: dict[int, Known] = {}
        self.disturbances: Counter[Host] = Counter()
        self.tellers = Tellers()
        self._context = fleet(self.tellers)

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Let time pass until that is done."""
        return self.loop.run_until_complete(work)

    @initialize(
        target=known,
        eager=st.lists(st.booleans(), min_size=HOSTS, max_size=HOSTS),
        resilient=st.lists(st.sampled_from([True, True, False]), min_size=HOSTS, max_size=HOSTS),
        limits=st.lists(st.sampled_from(LIMITS), min_size=HOSTS, max_size=HOSTS),
        steerable=st.booleans(),
        troubles=st.just([]) | some_faults(ahead=30) | some_faults(ahead=30),
    )
    def open(
        self, eager: list[bool], resilient: list[bool], limits: list[float], steerable: bool, troubles: list[Fault]
    ) -> Any:
        """Three hosts, of which one may have trouble with storage; two responses under way, and where chains are
        steerable two turns of a conversation.
        """
        self.steerable = steerable
        self.hosts: Fleet = self.run(self._enter())
        self.tellers.fleet = self.hosts
        for each in zip(eager, resilient, limits, strict=True):
            self._add(*each)
        first, second, third = self.hosts.hosts
        for fault in troubles:
            self._inject(second, fault)
        made = [self._make(first, "plain", stream=True), self._make(second, "checkpoints", stream=False)]
        turns = [self._make(host, "lingering", stream=True, conversation="one") for host in (second, third)]
        return multiple(*made, *turns)

    async def _enter(self) -> Fleet:
        return await self._context.__aenter__()

    def _add(self, eager: bool, resilient: bool = True, limit: float = LIMITS[0]) -> None:
        self.run(self._open_host(eager, resilient, limit))

    async def _open_host(self, eager: bool, resilient: bool = True, limit: float = LIMITS[0]) -> None:
        options = ResponsesServerOptions(
            resilient_background=resilient,
            steerable_conversations=self.steerable,
            shutdown_grace_period_seconds=GRACE,
        )
        self.hosts.host(
            options=options,
            line=Witness.line(self.told),
            eager_start=eager,
            segment_blocks=5,
            handover_after=limit,
        ).serve_timer()

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

    def _disturb(self, host: Host, times: int = 1) -> Host:
        """What may cost a host its runs, so often; a fault costs as many as it hits."""
        self.disturbances[host] += times
        self.tellers.disturbed.add(host)
        return host

    # -- clients ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.living)
    @rule(target=known, host=st.integers(0, 5), text=st.sampled_from(TEXTS), stream=st.booleans(), size=SIZES)
    def accept(self, host: int, text: str, stream: bool, size: str) -> Any:
        return self._make(self._one(host), text, stream=stream, instructions=size)

    @precondition(lambda self: self.living)
    @rule(target=known, host=st.integers(0, 5), number=st.integers(0, KEYS - 1))
    def accept_with_key(self, host: int, number: int) -> Any:
        """The same request under the same key, whenever it comes: one response (I1)."""
        return self._make_keyed(self._one(host), number)

    @precondition(lambda self: self.living)
    @rule(
        target=known,
        host=st.integers(0, 5),
        troubles=some_faults(ahead=5),
        text=st.sampled_from(TEXTS),
        stream=st.booleans(),
        size=SIZES,
        number=st.sampled_from([None, None, *range(KEYS)]),
        conversation=st.sampled_from(["", *CONVERSATIONS]),
    )
    def accept_on_bad_terms(
        self,
        host: int,
        troubles: list[Fault],
        text: str,
        stream: bool,
        size: str,
        number: int | None,
        conversation: str,
    ) -> Any:
        """Storage fails its host at this moment, and for a moment."""
        victim = self._one(host)
        injected = [self._inject(victim, fault) for fault in troubles]
        try:
            if number is not None:
                return self._make_keyed(victim, number)
            return self._make(victim, text, stream=stream, instructions=size, conversation=conversation)
        finally:
            for each in injected:
                each.remove()

    @precondition(lambda self: self.living)
    @rule(
        target=known,
        host=st.integers(0, 5),
        text=st.sampled_from(TEXTS),
        stream=st.booleans(),
        conversation=st.sampled_from(CONVERSATIONS),
    )
    def take_turn(self, host: int, text: str, stream: bool, conversation: str) -> Any:
        return self._make(self._one(host), text, stream=stream, conversation=conversation)

    @precondition(lambda self: self.living)
    @rule(
        target=known,
        host=st.integers(0, 5),
        text=st.sampled_from(TEXTS),
        known=known,
        foreground=st.booleans(),
    )
    def go_on(self, host: int, text: str, known: Known | None, foreground: bool) -> Any:
        if known is None or not known.response_id:
            return None
        fields = {"previous_response_id": known.response_id}
        if foreground:
            return self._make_here(host, text, **fields)
        return self._make(self._one(host), text, stream=True, **fields)

    @precondition(lambda self: self.living)
    @rule(
        target=known,
        host=st.integers(0, 5),
        text=st.sampled_from(TEXTS),
        conversation=st.sampled_from(CONVERSATIONS),
    )
    def take_turn_here(self, host: int, text: str, conversation: str) -> Any:
        """In the foreground; the client reads along, and knows nothing before its turn comes."""
        return self._make_here(host, text, conversation=conversation)

    def _make(self, host: Host, text: str, *, stream: bool, **fields: str) -> Known | None:
        said = {name: value for name, value in fields.items() if value}
        return self._keep(self.run(self._accept(host, background(text, **said), stream)))

    def _make_keyed(self, host: Host, number: int) -> Known | None:
        """A key that is used again leads to what is known already, whose deletion or refusal it may answer with."""
        body = background(TEXTS[number], **({"instructions": LARGE} if number else {}))
        made = self.run(self._accept(host, body, stream=False, key=f"key {number}"))
        if made is None:
            return None
        known = self.keyed.setdefault(number, made)
        assert made.told == known.told, f"I1: {made.told} and {known.told} for one key"
        self.told["keyed requests"] += 1
        return self._keep(made) if known is made else None

    def _make_here(self, host: int, text: str, **fields: str) -> Known | None:
        body = {"model": "m", "input": text, **fields}
        return self._keep(self.run(self._accept_here(self._one(host), body)))

    def _keep(self, made: Known | None) -> Known | None:
        if made is not None:
            self.responses.append(made)
        return made

    async def _accept(self, host: Host, body: dict[str, Any], stream: bool, key: str = "") -> Known | None:
        with _Call(self.told):
            async with asyncio.timeout(CALL_SECONDS):
                if not stream:
                    return Known((await host.create(body, idempotency_key=key))["id"], None)
                reader = await host.stream(body)
                try:
                    return Known(await reader.response_id(), reader)
                except AssertionError:
                    if not host.dead and not self._may_break(host):
                        raise
        return None

    async def _accept_here(self, host: Host, body: dict[str, Any]) -> Known | None:
        with _Call(self.told):
            async with asyncio.timeout(CALL_SECONDS):
                return Known("", await host.stream(body))
        return None

    @precondition(lambda self: self.living)
    @rule(known=known, host=st.integers(0, 5))
    def cancel(self, known: Known | None, host: int) -> None:
        if known is not None and known.response_id:
            self.run(self._cancel(known, self._one(host)))

    async def _cancel(self, known: Known, host: Host) -> None:
        with _Call(self.told):
            async with asyncio.timeout(CALL_SECONDS):
                assert (await host.cancel(known.response_id))["status"] == "cancelled"
                known.cancelled = True
                self.told["cancels"] += 1

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 5), host=st.integers(0, 5))
    def delete(self, which: int, host: int) -> None:
        there = [known for known in self.responses if known.response_id and not known.deleted]
        if there:
            self.run(self._delete_one(there, which, self._one(host)))

    async def _delete_one(self, there: Sequence[Known], which: int, host: Host) -> None:
        """One that has ended, if there is one: the others are only refused."""
        ended = [known for known in there if (await self._status_of(known)) in TERMINAL_STATUSES]
        chosen = ended or there
        await self._delete(chosen[which % len(chosen)], host)

    async def _status_of(self, known: Known) -> str:
        row = await self.hosts.row(known.response_id)
        return row.status if row is not None else ""

    async def _delete(self, known: Known, host: Host) -> None:
        with suppress(HostGone, StorageError, TimeoutError):
            try:
                before, known.deleted = known.deleted, None
                async with asyncio.timeout(CALL_SECONDS):
                    await host.delete(known.response_id)
                    known.deleted = True
                    self.told["deletions"] += 1
            except ApiError:
                known.deleted = before

    @precondition(lambda self: self.living)
    @rule(known=known, host=st.integers(0, 5), after=st.integers(-1, 6))
    def follow(self, known: Known | None, host: int, after: int) -> None:
        if known is not None and known.reader is not None and known.response_id:
            self.run(self._follow(known, self._one(host), after))

    async def _follow(self, known: Known, host: Host, after: int) -> None:
        with _Call(self.told):
            async with asyncio.timeout(CALL_SECONDS):
                known.resumed.append(await host.replay(known.response_id, after))

    @rule(known=known)
    def stop_reading(self, known: Known | None) -> None:
        """With no reader left, nobody completes a log but those who have to; a foreground run is cancelled."""
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
        victim = self._disturb(self._busy(host))
        self.run(victim.crash())
        self._add(eager)

    @precondition(lambda self: self.living)
    @rule(target=known, host=st.integers(0, 5), eager=st.booleans())
    def drain(self, host: int, eager: bool) -> Any:
        """It is stopped in order, as far as it gets, with something to hand over; another one is there before."""
        made = None
        if not any(each.engine.runtime.running for each in self.living):
            made = self._make(self._one(host), "plain", stream=True)
            self.run(asyncio.sleep(PAUSE))
        self._add(eager)
        self.run(self._drain(self._disturb(self._busy(host))))
        return made

    async def _drain(self, host: Host) -> None:
        host.stop_serving()
        with suppress(HostGone, StorageError, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await host.inside(host.engine.drain())
                self.told["drains"] += 1
        await host.crash()

    @precondition(lambda self: self.living)
    @rule(host=st.integers(0, 5), ahead=st.integers(1, 200))
    def crash_at_a_call(self, host: int, ahead: int) -> None:
        victim = self._disturb(self._busy(host))
        victim.crash_at(len(victim.calls) + ahead, "before" if ahead % 2 else "after")
        self._add(bool(ahead % 3))

    @precondition(lambda self: len(self.living) > 1)
    @rule(host=st.integers(0, 5), seconds=st.sampled_from(MOMENTS))
    def freeze(self, host: int, seconds: float) -> None:
        victim = self._disturb(self._busy(host))
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
        if known is not None and known.response_id:
            for _ in range(times):
                text = start_message(known.response_id)
                self.run(self.hosts.storage.driver.send_message("responses-work", text, delay=delay))

    @rule(queue=st.sampled_from(["responses-work", "responses-watch"]), text=st.text(max_size=20))
    def deliver_garbage(self, queue: str, text: str) -> None:
        self.run(self.hosts.storage.driver.send_message(queue, text))

    @rule(number=st.integers(0, 5))
    def lose_a_watch_message(self, number: int) -> None:
        """The queue forgets one: its worker notices by itself, or the sweep finds that it is dead."""
        driver = self.hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        waiting = driver.queues[WATCH_QUEUE]
        if waiting:
            lost = waiting.pop(number % len(waiting)).text
            self.told["lost watch messages"] += 1
            for host in self.hosts.hosts:
                if f'"{host.engine.runtime.worker.id}"' in lost:
                    self._disturb(host)

    @precondition(lambda self: self.living)
    @rule(host=st.integers(0, 5))
    def suspect(self, host: int) -> None:
        worker = self._disturb(self._busy(host)).engine.runtime.worker.id or "w-nobody"
        self.run(self.hosts.storage.watch.send(worker, delay=0))

    @precondition(lambda self: self.living)
    @rule(host=st.integers(0, 5), seconds=st.sampled_from([-86_400, -90, 90, 86_400]))
    def skew_the_clock(self, host: int, seconds: int) -> None:
        """Hosts do not agree on the time of day; nothing is decided by it."""
        self._one(host).engine.runtime.now = lambda: self.hosts.now() + seconds

    # -- storage ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.living)
    @rule(target=faults, host=st.integers(0, 5), troubles=some_faults(ahead=20), seconds=st.sampled_from(MOMENTS))
    def fail(self, host: int, troubles: list[Fault], seconds: float) -> Any:
        victim = self._busy(host)
        injected = [self._inject(victim, fault) for fault in troubles]
        self.run(asyncio.sleep(seconds))
        return multiple(*injected)

    @precondition(lambda self: self.living)
    @rule(
        target=faults,
        host=st.integers(0, 5),
        steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=4, unique=True),
        again=st.sampled_from([None, 0.5, 8.0]),
    )
    def sleep(self, host: int, steps: list[str], again: float | None) -> Any:
        """It sleeps before its next steps, is thought to be dead meanwhile, and goes on when the faults are mended."""
        sleeper = self._busy(host)
        hangs = [self._inject(sleeper, Fault(operation=step, kind="hang", times=1)) for step in steps]
        worker = sleeper.engine.runtime.worker.id
        if again is not None and worker is not None:
            self.run(asyncio.sleep(again))
            self._disturb(sleeper)  # whether it sleeps or not
            self.run(self.hosts.storage.watch.send(worker, delay=0))
        return multiple(*hangs)

    def _inject(self, host: Host, fault: Fault) -> InjectedFault:
        injected = self._disturb(host, times=0).seam.inject(fault)
        self.injected.append((host, injected))
        return injected

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
        for host, injected in self.injected:
            self._disturb(host, injected.hits)
            self.told[f"fault {injected.fault.kind}"] += injected.hits
            for operation, hits in injected.names.items():
                self.told[f"fault {injected.fault.kind} {operation}"] += hits
            injected.remove()
        for host in self.hosts.hosts:
            host.resume()
        await self._open_host(eager=False)
        await self.hosts.quiet(LAST_SECONDS)
        told = {known.response_id: known for known in self.responses if known.response_id}
        rows = {response_id: await self._row(response_id) for response_id in await self.hosts.ids()}
        background = {each for each, known in told.items() if not _is_foreground(known)}
        assert background <= set(rows), f"R1: {background - set(rows)} is not on record"
        for response_id, row in rows.items():
            await self._check(response_id, row, told.get(response_id))
        spans = self.tellers.spans(rows)
        chains = defaultdict(list)
        for row in rows.values():
            if row.turn:
                chains[row.partition_key].append(row.id)
        for turns in chains.values():
            most = max(self._allowed(self.hosts.entries[turn]) for turn in turns)
            await assert_chain(self.hosts.storage, PRINCIPAL, turns[0], spans, crashes=most)

    def _allowed(self, entries: Sequence[Entry]) -> int:
        """How often a response may have been lost: only who entered it can lose it, and who hands it over does."""
        disturbed = sum(self.disturbances[host] for host in {entry.host for entry in entries})
        return disturbed + sum(entry.context.shutdown.is_set() for entry in entries)

    async def _row(self, response_id: str) -> ResponseRow:
        row = await self.hosts.row(response_id)
        assert row is not None
        return row

    async def _check(self, response_id: str, row: ResponseRow, known: Known | None) -> None:
        given_up = known is None and row.deleted  # the insert of its row was not answered
        if given_up or (known is not None and (known.deleted or (known.deleted is None and row.deleted))):
            await check_nothing_left(self.hosts.storage, PRINCIPAL, response_id)
            return
        entries = self.hosts.entries[response_id]
        self.told["second entries"] += max(0, len(entries) - 1)
        self.told["hand-overs"] += sum(entry.context.shutdown.is_set() for entry in entries[:-1])
        stored = await check_response(
            self.hosts.storage,
            PRINCIPAL,
            response_id,
            seen=self._views(known) if known else [],
            entries=len(entries),
            crashes=self._allowed(entries),
            cancelled=known.cancelled if known else False,
            generation_of=self._generation_of(response_id, entries),
        )
        resilient = row.disposition == Disposition.RESILIENT
        assert resilient or len(entries) <= 1, f"V7: {len(entries)} entries of a response that is not resilient"
        self.told[stored.row.status] += 1
        snapshot = stored.snapshot or {}
        if stored.row.status == "failed":
            error = snapshot["error"]
            reason = (error.get("additionalInfo") or {}).get("shutdown_reason", error["code"])
            assert reason in HARMLESS | (set() if resilient else WITH_ITS_WORKER), f"R5: {error}"
            assert any(map(self._may_break, self.hosts.hosts)), f"R5: {error} although nothing was disturbed"
            self.told[reason] += 1
        elif stored.row.status == "completed":
            told = [int(word.partition("n")[2]) for word in text_of(snapshot).split()]
            cut_short = entries[0].request["input"] in CUT_SHORT
            assert told == list(range(len(told) if cut_short else WORDS)), f"R7: {text_of(snapshot)}"
        else:
            assert stored.row.status == "cancelled"
            assert known is not None or not row.background

    def _generation_of(self, response_id: str, entries: Sequence[Entry]) -> Callable[[Json], int | None] | None:
        """Those that are cut short do not tell which entry they are."""
        told = not entries or entries[0].request["input"] not in CUT_SHORT
        return self.hosts.generation_of(response_id) if told else None

    def _views(self, known: Known) -> list[View]:
        """What the client saw; of a response in the foreground only what it saw to the end tells anything."""
        readers = [reader for reader in (known.reader, *known.resumed) if reader is not None]
        if _is_foreground(known):
            readers = [reader for reader in readers if reader.ended and reader.types[-1] in TERMINAL]
        return [self._view(reader) for reader in readers]

    def _view(self, reader: Reader) -> View:
        return replace(reader.view, ended=reader.ended and not self._may_break(reader.host))

    def _may_break(self, host: Host) -> bool:
        """Who cannot read on, or has a time limit, ends its streams before their end; the client resumes (R13)."""
        return host in self.disturbances or host.settings.handover_after < LIMITS[0]


def _is_foreground(known: Known) -> bool:
    return (
        known.reader is not None and bool(known.reader.events) and not known.reader.events[0]["response"]["background"]
    )


def _assert_consistent(one: list[bytes], other: list[bytes]) -> None:
    """V2: two views have the same frame under the same number."""
    if one and other:
        numbered = {_number(frame): frame for frame in one}
        for frame in other:
            assert numbered.get(_number(frame), frame) == frame, "V2: two readers saw different events"


def _number(frame: bytes) -> bytes:
    return frame.rpartition(b'"sequence_number":')[2][:12].partition(b",")[0].rstrip(b"}\n")
