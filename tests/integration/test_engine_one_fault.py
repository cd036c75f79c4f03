"""One storage call fails, once, in a story that leads through all that a response may meet: every operation in turn.

Turns of a steerable conversation, streamed and polled, with checkpoints too large for their rows; a cancel, a drain, a
take-over, keys, a deletion, a sweep. A call that fails without reaching storage, one whose reply is lost and one that
is slow must not show in any outcome, and cost no handler an entry: nobody died for it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from protocol.errors import ApiError
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.errors import StorageError
from storage.seam import Fault, FaultKind, InjectedFault, Operation
from tests.support.engines import PRINCIPAL, Fleet, Host, Reader, background, deltas, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import Span, assert_chain, check_nothing_left, check_response
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(
    resilient_background=True, steerable_conversations=True, shutdown_grace_period_seconds=1
)
TALK = {"conversation": "talk"}
WORDS = 3
PAUSE = 0.8
LARGE = 40_000
PATIENCE = 30.0

VISIBILITY = 30.0
"""The message of an invocation that was killed comes back within the story."""
TRIES = 5
KINDS: tuple[FaultKind, ...] = ("before", "after", "delay")

DELAY = 3.0
"""Less than the silence after which a worker is suspected."""

FROM_A_THREAD = {Operation.QUEUE_PUSH_WATCH: 0.01}
"""A delay there takes real time, and stops the loop."""

NEVER_PASSED = {
    Operation.ROW_CONFIRM: "only a lost reply leads there",
    Operation.CHAIN_CONFIRM: "only a lost reply leads there",
    Operation.LEDGER_CONFIRM: "only a lost reply leads there",
    Operation.LEDGER_PULSE: "only a worker whose event loop is blocked gives one",
    Operation.KEY_REPLACE: "only a key that is used again after a day leads there",
    Operation.EXPIRY_DUE: "retention, weeks later",
    Operation.EXPIRY_DONE: "retention, weeks later",
    Operation.QUEUE_DEPTH: "a probe, and no part of a response's life",
    Operation.PING: "a probe, and no part of a response's life",
}

MAY_LOSE_A_LEASE = {(Operation.QUEUE_PUSH_WATCH, "after")}
"""The receipt of the watch message went with the reply: its worker is suspected."""


class Story:
    """A fleet, a client that asks again where it gets no answer, and what it was told."""

    def __init__(self) -> None:
        self.hosts: Fleet
        self.plant: Callable[[int, Host], None] = lambda number, host: None
        self.spans: list[Span] = []
        self.lost: Counter[str] = Counter()
        """How often a response lost its owner, for a reason of the story's own."""
        self.readers: list[Reader] = []
        hold = (1, asyncio.Event())
        self._tellers = {
            "runs": Teller(WORDS, pause=PAUSE, checkpoints=True, ballast=LARGE),
            # In the middle until something happens to it.
            "stays": Teller(WORDS, pause=PAUSE, checkpoints=True, hold=hold, held=lambda entry: entry == 1),
        }

    async def tell(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        """The handler."""
        clock = asyncio.get_running_loop()
        began = clock.time()
        try:
            await context.get_history()
            if request["input"] == "refuse":
                raise ValueError("as asked")
            async for event in self._tellers[request["input"]](request, context, signal):
                yield event
        finally:
            self.spans.append((context.response_id, began, clock.time()))

    def host(self, *, queues: bool = True) -> Host:
        made = self.hosts.host(queues=queues, options=STEERABLE).serve_timer()
        self.plant(len(self.hosts.hosts) - 1, made)
        return made

    async def answered[T](self, call: Callable[[], Awaitable[T]]) -> T:
        """What a client gets in the end that asks again while the server says that it cannot."""
        for _ in range(TRIES):
            try:
                return await call()
            except StorageError:
                await asyncio.sleep(1)
            except ApiError as error:
                if error.status < 500:
                    raise
                await asyncio.sleep(1)
        raise AssertionError("storage failed once, and the server goes on refusing")

    async def turn(self, host: Host, text: str) -> Reader:
        """One more turn of the conversation; its client reads along, and learns its id when it begins."""
        reader = await self.answered(lambda: host.stream(background(text, **TALK)))
        self.readers.append(reader)
        return reader

    async def middle_of(self, reader: Reader) -> tuple[str, Host]:
        """Who is running, and where."""
        await until(lambda: deltas(reader.events), "its first word")
        response_id = await reader.response_id()
        return response_id, self.hosts.entries[response_id][-1].host

    async def play(self) -> tuple[str, str]:
        """Returns who was cancelled, and who was deleted."""
        self.hosts.visibility = VISIBILITY
        front = self.host(queues=False)
        self.host()
        await self._ask_with_keys(front)
        large = background("runs", instructions="x" * LARGE, **TALK)
        polled = (await self.answered(lambda: front.create(large)))["id"]
        turns = [await self.turn(front, "stays") for _ in range(3)]
        await self.answered(lambda: front.get(polled))
        cancelled, _ = await self.middle_of(turns[0])
        assert (await self.answered(lambda: front.cancel(cancelled)))["status"] == "cancelled"
        _, owner = await self.middle_of(turns[1])
        await self._drain(owner)
        _, owner = await self.middle_of(turns[2])
        await self._kill(owner)
        for reader in self.readers:
            await reader.whole()
        for response_id in (polled, *[await reader.response_id() for reader in self.readers]):
            await self.hosts.finished(response_id)
        last = self.host()
        await self.answered(lambda: last.inside(last.engine.sweep()))
        alone = await self._large_one(last)
        with suppress(ApiError):  # it is gone, though the first answer to that was lost
            await self.answered(lambda: last.delete(alone))
        await self.hosts.quiet()
        return cancelled, alone

    async def _large_one(self, host: Host) -> str:
        async def ask() -> str:
            return await (await host.stream(background("runs", instructions="x" * LARGE))).response_id()

        response_id = await self.answered(ask)
        await self.hosts.finished(response_id)
        return response_id

    async def _ask_with_keys(self, host: Host) -> None:
        body = {"model": "m", "input": "runs"}
        first = await self.answered(lambda: host.create(background("runs"), idempotency_key="background"))
        again = await self.answered(lambda: host.create(background("runs"), idempotency_key="background"))
        assert first["id"] == again["id"], "I1"
        with suppress(ApiError, StorageError):
            await host.create({**body, "input": "refuse"}, idempotency_key="refused")
        await self.answered(lambda: host.create(body))

    async def _drain(self, host: Host) -> None:
        self.lost.update(list(host.engine.runtime.running))
        self.host()
        host.stop_serving()
        await host.inside(host.engine.drain())
        await host.crash()

    async def _kill(self, host: Host) -> None:
        self.lost.update(list(host.engine.runtime.running))
        self.host()
        await host.crash()

    async def judge(self, cancelled: str, deleted: str, lost_leases: int) -> None:
        assert await self.hosts.ids(), "nothing was asked"
        for response_id in await self.hosts.ids():
            if response_id == deleted:
                await check_nothing_left(self.hosts.storage, PRINCIPAL, response_id)
                continue
            entries = self.hosts.entries[response_id]
            stored = await check_response(
                self.hosts.storage,
                PRINCIPAL,
                response_id,
                seen=[
                    await reader.whole_view() for reader in self.readers if await reader.response_id() == response_id
                ],
                entries=len(entries),
                crashes=self.lost[response_id],
                lost_leases=lost_leases,
                cancelled=response_id == cancelled,
                generation_of=self.hosts.generation_of(response_id),
            )
            if entries and entries[0].request["input"] == "refuse":
                continue
            expected = "cancelled" if response_id == cancelled else "completed"
            assert stored.row.status == expected, f"{stored.row.status}: {(stored.snapshot or {}).get('error')}"
        await assert_chain(
            self.hosts.storage,
            PRINCIPAL,
            cancelled,
            self.spans,
            accepted=[cancelled],
            crashes=1,
            lost_leases=lost_leases,
        )


async def _passed() -> dict[str, int]:
    """Which host comes to an operation first, undisturbed."""
    story = Story()
    async with fleet(story.tell) as story.hosts:
        await story.judge(*await story.play(), lost_leases=0)
        numbered = list(enumerate(story.hosts.hosts))
        return {name: number for number, host in reversed(numbered) for name in host.seam.counts}


@pytest.fixture(scope="module")
def passed() -> Iterator[dict[str, int]]:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        yield runner.run(_passed())


def test_the_story_leads_past_every_operation_but_those_that_are_named(passed: dict[str, int]) -> None:
    assert set(Operation) - set(passed) == set(NEVER_PASSED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", [each for each in sorted(Operation) if each not in NEVER_PASSED])
async def test_one_fault_of_an_operation_does_not_show(
    operation: Operation, kind: FaultKind, passed: dict[str, int]
) -> None:
    story = Story()
    planted: list[InjectedFault] = []

    def plant(number: int, host: Host) -> None:
        if number == passed[operation]:
            delay = FROM_A_THREAD.get(operation, DELAY)
            planted.append(host.seam.inject(Fault(operation=operation, kind=kind, times=1, delay=delay)))

    story.plant = plant
    async with fleet(story.tell) as story.hosts:
        cancelled, deleted = await story.play()
        assert [fault.hits for fault in planted] == [1]
        await story.judge(cancelled, deleted, lost_leases=int((operation, kind) in MAY_LOSE_A_LEASE))
