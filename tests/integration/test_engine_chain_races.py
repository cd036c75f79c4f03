"""Turns that meet: storage decides, whatever the order in which its calls arrive (S2 to S5, V9).

Each round has its own seed, which delays each storage call of three processes on its way there and back.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from protocol.errors import (
    ApiError,
    CannotCancel,
    ConversationForkNotSupported,
    ConversationLocked,
    ConversationQueueFull,
)
from resilience.chain import MAX_PENDING
from resilience.options import ResponsesServerOptions
from storage.chains import ChainRow
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, fleet, key_of, start_message, until
from tests.support.invariants import assert_chain, check_response
from tests.support.turns import Act, Turns, at_once, lasting, until_opened, until_told
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

ROUNDS = 200
RIVALS = 20

type Json = dict[str, Any]


class Scene:
    """Three processes over one account, two of which serve the queues; every storage call takes its time."""

    def __init__(self, hosts: Fleet, turns: Turns, chance: random.Random, *, steerable: bool) -> None:
        options = ResponsesServerOptions(resilient_background=True, steerable_conversations=steerable)
        self.hosts = hosts
        self.turns = turns
        self.chance = chance
        self.processes = [
            hosts.host("api", queues=False, options=options),
            hosts.host("worker", options=options),
            hosts.host("eager", options=options, eager_start=True),
        ]
        for host in self.processes:
            host.seam.hooks.append(self._delay)
        self.accepted: list[str] = []

    async def _delay(self, name: str, moment: Moment) -> None:
        if self.chance.random() < 0.3:
            await asyncio.sleep(self.chance.random() * 0.05)

    def any_host(self) -> Host:
        """One of the processes."""
        return self.chance.choice(self.processes)

    async def post(self, text: str, **fields: Any) -> str:
        """The id of a turn: ended in the foreground, accepted in the background, streamed or not."""
        fields.setdefault("background", self.chance.random() < 0.6)
        host = self.any_host()
        if self.chance.random() < 0.3:
            reader = await host.stream({"input": text, **fields})
            response_id = await reader.response_id()
        else:
            response_id = str((await host.create({"input": text, **fields}))["id"])
        self.accepted.append(response_id)
        return response_id

    def soon[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """`work`, at some moment of the next 0.2 seconds."""

        async def later() -> T:
            await asyncio.sleep(self.chance.random() * 0.2)
            return await work

        return asyncio.ensure_future(later())

    async def at_rest(self, response_id: str) -> ChainRow:
        """The chain once nothing of it runs or waits; then V9."""

        async def idle() -> bool:
            chain = await self.hosts.storage.chains.read(key_of(response_id))
            return not (chain.unfinished or chain.ending) and not any(
                host.engine.runtime.running for host in self.processes
            )

        await until(idle, "the end of the chain")
        return await assert_chain(self.hosts.storage, PRINCIPAL, response_id, self.turns.spans, accepted=self.accepted)


@asynccontextmanager
async def scene(seed: int, act: Act = at_once, *, steerable: bool = True) -> AsyncIterator[Scene]:
    turns = Turns(act)
    async with fleet(turns) as hosts:
        yield Scene(hosts, turns, random.Random(seed), steerable=steerable)


async def every_round(play: Callable[[int], Awaitable[None]], rounds: int = ROUNDS) -> None:
    for seed in range(rounds):
        try:
            await play(seed)
        except BaseException as error:
            error.add_note(f"in the round of seed {seed}")
            raise


def refusals(calls: list[asyncio.Task[Any]]) -> int:
    """How many of them were refused by now."""
    return sum(call.done() and isinstance(call.exception(), ApiError) for call in calls)


async def test_of_twenty_turns_on_one_predecessor_exactly_one_is_accepted() -> None:
    async def play(seed: int) -> None:
        async with scene(seed) as stage:
            first = await stage.post("first", background=True)
            rivals = [stage.soon(stage.post(f"rival {n}", previous_response_id=first)) for n in range(RIVALS)]
            outcomes = await asyncio.gather(*rivals, return_exceptions=True)
            [winner] = [each for each in outcomes if isinstance(each, str)]
            assert sum(isinstance(each, ConversationForkNotSupported) for each in outcomes) == RIVALS - 1
            chain = await stage.at_rest(first)
            assert (chain.last, chain.turns) == (winner, 2)
            assert stage.turns.order == [first, winner]

    await every_round(play)


async def test_of_twenty_turns_in_one_conversation_exactly_one_runs_and_the_others_find_it_locked() -> None:
    async def play(seed: int) -> None:
        async with scene(seed, until_opened, steerable=False) as stage:
            rivals = [stage.soon(stage.post(f"rival {n}", conversation="conv_a")) for n in range(RIVALS)]
            await until(lambda: refusals(rivals) == RIVALS - 1, "the refusals")
            for n in range(RIVALS):
                stage.turns.gates[f"rival {n}"].set()
            outcomes = await asyncio.gather(*rivals, return_exceptions=True)
            [winner] = [each for each in outcomes if isinstance(each, str)]
            assert sum(isinstance(each, ConversationLocked) for each in outcomes) == RIVALS - 1
            chain = await stage.at_rest(winner)
            assert (chain.last, chain.turns) == (winner, 1)
            assert stage.turns.order == [winner]

    await every_round(play)


async def test_of_twenty_turns_in_one_steerable_conversation_ten_are_taken_and_run_one_by_one() -> None:
    """S5: one runs, nine wait."""

    async def play(seed: int) -> None:
        async with scene(seed, until_opened) as stage:
            texts = [f"rival {n}" for n in range(RIVALS)]
            posts = [stage.soon(stage.post(text, conversation="conv_a")) for text in texts]
            await until(lambda: refusals(posts) == RIVALS - 1 - MAX_PENDING, "the refusals")
            for text in texts:
                stage.turns.gates[text].set()
            outcomes = await asyncio.gather(*posts, return_exceptions=True)
            taken = [each for each in outcomes if isinstance(each, str)]
            assert sum(isinstance(each, ConversationQueueFull) for each in outcomes) == RIVALS - len(taken)
            assert len(taken) == 1 + MAX_PENDING
            await stage.at_rest(taken[0])
            assert sorted(stage.turns.order) == sorted(taken)

    await every_round(play, 50)


@pytest.mark.parametrize("steerable", [True, False])
async def test_a_turn_that_arrives_while_the_active_one_ends_runs_after_it_or_is_refused(steerable: bool) -> None:
    outcomes = set()

    async def play(seed: int) -> None:
        async with scene(seed, lasting(0.3), steerable=steerable) as stage:
            first = asyncio.ensure_future(stage.post("first", conversation="conv_a"))
            await until(lambda: stage.turns.entered("first"))
            await asyncio.sleep(0.1 + stage.chance.random() * 0.4)
            before = await stage.hosts.storage.chains.read(key_of(stage.turns.order[0]))
            try:
                await stage.post("second", conversation="conv_a")
                outcomes.add("steered" if before.active else "follows")
            except ConversationLocked:
                assert not steerable
                outcomes.add("locked")
            await stage.at_rest(await first)

    await every_round(play)
    assert outcomes == ({"steered", "follows"} if steerable else {"locked", "follows"}) | (outcomes & {"steered"})


async def race_with_cancels(seed: int, targets: Callable[[list[str]], list[str]], act: Act) -> None:
    """Four turns, some of which are cancelled at about the same time."""
    async with scene(seed, act) as stage:
        turns = [await stage.post("turn 0", conversation="conv_a", background=True)]
        for n in range(1, 4):
            turns.append(await stage.post(f"turn {n}", conversation="conv_a", background=True))
        cancels = [stage.soon(stage.any_host().cancel(turn)) for turn in targets(turns)]
        outcomes = await asyncio.gather(*cancels, return_exceptions=True)
        for n in range(4):
            stage.turns.gates[f"turn {n}"].set()
        await stage.at_rest(turns[0])
        for turn, outcome in zip(targets(turns), outcomes, strict=True):
            if isinstance(outcome, CannotCancel):
                continue
            assert not isinstance(outcome, BaseException), outcome
            await check_response(
                stage.hosts.storage, PRINCIPAL, turn, entries=stage.hosts.entered(turn), cancelled=True
            )


async def test_a_queued_turn_that_is_cancelled_never_runs_and_the_others_do() -> None:
    await every_round(lambda seed: race_with_cancels(seed, lambda turns: turns[2:3], lasting(0.5)))


async def test_the_active_turn_is_cancelled_and_those_behind_it_run() -> None:
    await every_round(lambda seed: race_with_cancels(seed, lambda turns: turns[:1], until_told))


async def test_all_turns_are_cancelled_at_once() -> None:
    await every_round(lambda seed: race_with_cancels(seed, lambda turns: turns, until_told))


async def test_the_first_turns_are_cancelled_and_the_last_runs_alone() -> None:
    """The handler of the first one takes its time to wind down: nobody starts another meanwhile."""
    await every_round(lambda seed: race_with_cancels(seed, lambda turns: turns[:3], lasting(3)), 60)


async def test_two_workers_that_drain_a_chain_run_each_turn_once_and_in_order() -> None:
    """Both receive start messages, and each of them once more."""

    async def play(seed: int) -> None:
        async with scene(seed, lasting(0.2)) as stage:
            turns = [await stage.post("turn 0", conversation="conv_a", background=True)]
            turns += await asyncio.gather(
                *(stage.soon(stage.post(f"turn {n}", conversation="conv_a", background=True)) for n in range(1, 4))
            )
            doubled = [stage.soon(stage.any_host().deliver(start_message(turn))) for turn in turns]
            await stage.at_rest(turns[0])
            await asyncio.gather(*doubled)
            await stage.at_rest(turns[0])
            assert sorted(stage.turns.order) == sorted(turns)

    await every_round(play)


async def test_a_middle_turn_is_deleted_while_others_join_and_end() -> None:
    async def play(seed: int) -> None:
        async with scene(seed, lasting(0.2)) as stage:
            turns = [await stage.post("turn 0", conversation="conv_a", background=True)]
            posts = [stage.soon(stage.post(f"turn {n}", conversation="conv_a", background=True)) for n in range(1, 4)]
            await until(lambda: len(stage.turns.order) == 3, "the third turn")
            deletes = [stage.soon(stage.any_host().delete(turn)) for turn in stage.turns.order[:2] * 2]
            await asyncio.gather(*deletes, return_exceptions=True)
            turns += await asyncio.gather(*posts)
            await stage.at_rest(turns[0])
            assert sorted(stage.turns.order) == sorted(turns)
            for turn in stage.turns.order[:2]:
                row = await stage.hosts.row(turn)
                assert row is not None
                assert row.deleted

    await every_round(play)
