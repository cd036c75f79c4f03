"""Chains: their ids, who may join, what a turn leaves behind when it ends, and what that costs (S1, S2, S4, S7)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from protocol.errors import (
    ConversationForkNotSupported,
    ConversationLocked,
    HandlerRefused,
    PreviousResponseNotFound,
    ResponseDeleted,
)
from resilience.chain_metadata import MAX_METADATA_BYTES, MetadataTooLarge
from resilience.context import ResponseContext
from resilience.creation import Call
from resilience.options import ResponsesServerOptions
from resilience.response_row import OwnershipLost
from storage.chains import ChainRow
from storage.driver import WORK_QUEUE
from storage.errors import StorageUnavailable
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, fleet, key_of, until
from tests.support.handlers import text_of
from tests.support.invariants import assert_chain, check_nothing_left
from tests.support.turns import Act, Turns, lasting, until_opened, until_told
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
LOCKING = ResponsesServerOptions(resilient_background=True)
MODES = pytest.mark.parametrize(
    "mode",
    [{}, {"stream": True}, {"background": True}, {"background": True, "stream": True}],
    ids=["C1", "C2", "C3", "C4"],
)
BOTH = pytest.mark.parametrize("options", [LOCKING, STEERABLE], ids=["locking", "steerable"])
BACKGROUND = {"background": True}

type Json = dict[str, Any]


async def ask(host: Host, text: str, *, principal: str = PRINCIPAL, **fields: Any) -> Json:
    """The response as its client has it in the end."""
    body = {"input": text, **fields}
    if body.get("stream"):
        reader = await host.stream(body, principal=principal)
        await reader.whole()
        return dict(reader.events[-1]["response"])
    answer = await host.create(body, principal=principal)
    if body.get("background"):
        await host.fleet.finished(answer["id"], principal)
        return await host.get(answer["id"], principal=principal)
    return answer


async def chain_of(hosts: Fleet, response_id: str) -> ChainRow:
    return await hosts.storage.chains.read(key_of(response_id))


async def idle(hosts: Fleet, response_id: str) -> bool:
    chain = await chain_of(hosts, response_id)
    return not (chain.unfinished or chain.ending) and not any(
        host.engine.runtime.running for host in hosts.hosts if not host.dead
    )


async def rest(hosts: Fleet, turns: Turns, response_id: str, *, crashes: int = 0, lost_leases: int = 0) -> ChainRow:
    await until(lambda: idle(hosts, response_id), "the end of the chain")
    return await assert_chain(
        hosts.storage, PRINCIPAL, response_id, turns.spans, crashes=crashes, lost_leases=lost_leases
    )


def ids_of(turns: Turns) -> dict[str, str]:
    """The chain id that each turn saw, by its input; the same in each of its entries."""
    for contexts in turns.contexts.values():
        assert len({context.conversation_chain_id for context in contexts}) == 1
    return {text: contexts[0].conversation_chain_id for text, contexts in turns.contexts.items()}


# -- S1 -------------------------------------------------------------------------------------------------------------


@MODES
@BOTH
async def test_the_turns_of_a_conversation_share_an_id_that_others_do_not(
    mode: Json, options: ResponsesServerOptions
) -> None:
    turns = Turns()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options)
        for text, conversation in (("a1", "conv_a"), ("a2", "conv_a"), ("b1", "conv_b")):
            await ask(host, text, conversation=conversation, **mode)
        await ask(host, "stranger", conversation="conv_a", principal="a stranger", **mode)
        await ask(host, "alone", **mode)
        seen = ids_of(turns)
        assert seen["a1"] == seen["a2"]
        assert len(set(seen.values())) == 4


@MODES
async def test_a_chain_over_predecessors_has_one_id_where_it_is_steerable(mode: Json) -> None:
    turns = Turns()
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        first = await ask(host, "first", **mode)
        second = await ask(host, "second", previous_response_id=first["id"], **mode)
        await ask(host, "third", previous_response_id=second["id"], **mode)
        await ask(host, "other", **mode)
        seen = ids_of(turns)
        assert seen["first"] == seen["second"] == seen["third"] != seen["other"]


@MODES
async def test_forks_have_ids_of_their_own_where_chains_are_not_steerable(mode: Json) -> None:
    """S2: they run at the same time, too."""
    turns = Turns(lasting(1))
    async with fleet(turns) as hosts:
        host = hosts.host(options=LOCKING)
        first = await ask(host, "first", **mode)
        forks = [ask(host, f"fork {n}", previous_response_id=first["id"], **mode) for n in range(3)]
        assert [each["status"] for each in await asyncio.gather(*forks)] == ["completed"] * 3
        assert len(set(ids_of(turns).values())) == 4
        assert not (await chain_of(hosts, first["id"])).etag


@BOTH
async def test_the_chain_id_is_stable_over_recovery_and_opaque(options: ResponsesServerOptions) -> None:
    turns = Turns(_first_time(until_opened))
    async with fleet(turns) as hosts:
        worker = hosts.host(options=options)
        answer = await worker.create({"input": "hi", "conversation": "conv_secret", **BACKGROUND})
        await until(lambda: turns.entered("hi"))
        hosts.host(options=options)
        await worker.crash()
        await hosts.finished(answer["id"])
        assert len(turns.contexts["hi"]) == 2
        chain_id = ids_of(turns)["hi"]
        partition = key_of(answer["id"]).partition("-")[2]
        for part in ("conv_secret", "secret", answer["id"], answer["id"].removeprefix("resp_"), partition):
            assert part not in chain_id


# -- S2, S4: who joins ----------------------------------------------------------------------------------------------


@MODES
async def test_an_overlapping_turn_of_a_conversation_is_refused_as_locked(mode: Json) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = hosts.host(options=LOCKING)
        first = await host.create({"input": "first", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.entered("first"))
        with pytest.raises(ConversationLocked) as refused:
            await ask(host, "second", conversation="conv_a", **mode)
        assert (refused.value.status, refused.value.code) == (409, "conversation_locked")
        assert not turns.signals["first"][0].is_set()
        turns.gates["first"].set()
        turns.gates["third"].set()
        await hosts.finished(first["id"])
        third = await ask(host, "third", conversation="conv_a", **mode)
        assert third["status"] == "completed"
        assert turns.order == [first["id"], third["id"]]
        await rest(hosts, turns, first["id"])


@BOTH
@MODES
async def test_an_unknown_predecessor_is_not_found_and_no_handler_is_entered(
    mode: Json, options: ResponsesServerOptions
) -> None:
    """S6."""
    turns = Turns()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options)
        known = await ask(host, "known")
        strange = await ask(host, "strange", principal="a stranger")
        unknown = known["id"][:-1] + ("y" if known["id"].endswith("x") else "x")
        for previous in (unknown, strange["id"]):
            with pytest.raises(PreviousResponseNotFound) as refused:
                await ask(host, "next", previous_response_id=previous, **mode)
            assert refused.value.status == 404
        assert not turns.entered("next")


async def test_a_chain_begins_with_what_was_made_before_chains_were_steerable() -> None:
    turns = Turns()
    async with fleet(turns) as hosts:
        old = hosts.host(options=LOCKING)
        first = await ask(old, "first")
        second = await ask(old, "second", previous_response_id=first["id"])
        new = hosts.host(options=STEERABLE)
        third = await ask(new, "third", previous_response_id=second["id"])
        with pytest.raises(ConversationForkNotSupported):
            await ask(new, "fork", previous_response_id=second["id"])
        assert (await rest(hosts, turns, first["id"])).last == third["id"]


# -- leaving: refused, deleted, gone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [None, "before", "after"])
async def test_a_turn_that_its_handler_refused_leaves_no_trace_in_its_chain(lost: Any) -> None:
    """Also where storage does not answer to its removal: the chain is free as soon as it does."""

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        if request["input"].startswith("bad"):
            raise ValueError("not this")
        async for event in turns(request, context, signal):
            yield event

    turns = Turns()
    async with fleet(handler) as hosts:
        host = hosts.host(options=STEERABLE)
        first = await ask(host, "first")
        if lost:
            host.seam.inject(Fault(operation="row.delete", kind=lost, times=2))
        with pytest.raises((HandlerRefused, StorageUnavailable)):
            await ask(host, "bad" * 20_000, previous_response_id=first["id"])
        await until(lambda: idle(hosts, first["id"]))
        second = await ask(host, "second", previous_response_id=first["id"])
        assert second["status"] == "completed"
        await hosts.quiet()
        assert await hosts.ids() == sorted([first["id"], second["id"]])
        assert not await hosts.storage.driver.list_blobs("payloads", "")


async def test_a_turn_behind_a_refused_one_runs_and_the_chain_goes_on_from_what_is_left() -> None:
    """Both may go without a trace: then the one before them is the last again."""

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        if request["input"].startswith("bad"):
            await signal.wait() if request["input"] == "bad 1" else None
            raise ValueError("not this")
        async for event in turns(request, context, signal):
            yield event

    turns = Turns()
    async with fleet(handler) as hosts:
        host = hosts.host(options=STEERABLE)
        first = await ask(host, "first", conversation="conv_a")
        bad = [asyncio.ensure_future(ask(host, "bad 1", conversation="conv_a"))]
        await until(lambda: len(hosts.entries) == 2)
        bad.append(asyncio.ensure_future(ask(host, "bad 2", conversation="conv_a")))
        outcomes = await asyncio.gather(*bad, return_exceptions=True)
        assert all(isinstance(each, HandlerRefused) for each in outcomes)
        await until(lambda: idle(hosts, first["id"]))
        assert (await chain_of(hosts, first["id"])).last == first["id"]


@BOTH
async def test_a_chain_goes_on_without_its_last_turn_after_that_was_deleted(options: ResponsesServerOptions) -> None:
    turns = Turns()
    async with fleet(turns) as hosts:
        host = hosts.host(options=options)
        first = await ask(host, "first")
        second = await ask(host, "second", previous_response_id=first["id"])
        third = await ask(host, "third", previous_response_id=second["id"])
        await host.delete(second["id"])
        await host.delete(third["id"])
        for gone in (second, third):
            with pytest.raises(PreviousResponseNotFound):
                await ask(host, "next", previous_response_id=gone["id"])
        fourth = await ask(host, "fourth", previous_response_id=first["id"])
        assert fourth["status"] == "completed"
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, third["id"])


async def test_a_chain_whose_last_two_turns_are_deleted_at_once_goes_on_from_the_one_before() -> None:
    for delay in range(0, 40, 3):
        turns = Turns()
        async with fleet(turns) as hosts:
            host = hosts.host(options=STEERABLE)
            other = hosts.host(options=STEERABLE, queues=False)
            first = await ask(host, "first")
            second = await ask(host, "second", previous_response_id=first["id"])
            third = await ask(host, "third", previous_response_id=second["id"])
            for n, each in enumerate((host, other)):
                each.seam.inject(Fault(operation="*", kind="delay", delay=0.01 * (1 + (delay * (n + 1)) % 7)))
            await asyncio.gather(host.delete(second["id"]), other.delete(third["id"]))
            assert (await chain_of(hosts, first["id"])).last == first["id"]


async def test_a_queued_turn_that_leaves_after_its_predecessor_was_deleted_leaves_a_chain_that_goes_on() -> None:
    turns = Turns(until_opened)
    for text in ("first", "second", "last"):
        turns.gates[text].set()
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        first = await ask(host, "first")
        second = await ask(host, "second", previous_response_id=first["id"])
        reader = await host.stream({"input": "third", "previous_response_id": second["id"]})
        await until(lambda: turns.entered("third"))
        await host.delete(second["id"])
        await reader.leave()
        await until(lambda: idle(hosts, first["id"]))
        last = await ask(host, "last", previous_response_id=first["id"])
        assert last["status"] == "completed"


async def test_a_middle_response_that_is_deleted_while_the_chain_drains_disturbs_nobody() -> None:
    turns = Turns(lasting(0.5))
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        other = hosts.host(options=STEERABLE)
        ids = [
            (await host.create({"input": f"turn {n}", "conversation": "conv_a", **BACKGROUND}))["id"] for n in range(6)
        ]
        await until(lambda: turns.entered("turn 3"))
        await other.delete(ids[1])
        await until(lambda: idle(hosts, ids[0]))
        await assert_chain(hosts.storage, PRINCIPAL, ids[0], turns.spans, accepted=ids)
        with pytest.raises(ResponseDeleted):
            await host.get(ids[1])


async def test_a_turn_that_is_deleted_before_its_owner_starts_the_next_does_not_strand_it() -> None:
    """Its log is gone when the owner wants to append the terminal event."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        owner = hosts.host(options=STEERABLE)
        other = hosts.host(options=STEERABLE, queues=False)
        reader = await other.stream({"input": "first", "conversation": "conv_a", **BACKGROUND})
        first = await reader.response_id()
        second = await other.create({"input": "second", "conversation": "conv_a", **BACKGROUND})
        owner.seam.inject(Fault(operation="log.append", kind="delay", delay=1))
        for text in ("first", "second"):
            turns.gates[text].set()
        await until(lambda: completed(hosts, first))
        await other.delete(first)
        await hosts.finished(second["id"])
        await rest(hosts, turns, second["id"])


async def completed(hosts: Fleet, response_id: str) -> bool:
    row = await hosts.row(response_id)
    return row is not None and row.status == "completed"


async def test_a_next_turn_begins_only_after_the_cancelled_handler_has_wound_down() -> None:
    """Whoever cancels those in between."""
    turns = Turns(lasting(4))
    async with fleet(turns) as hosts:
        owner = hosts.host(options=STEERABLE)
        other = hosts.host(options=STEERABLE)
        ids = [
            (await owner.create({"input": f"turn {n}", "conversation": "conv_a", **BACKGROUND}))["id"] for n in range(3)
        ]
        await until(lambda: turns.entered("turn 0"))
        await other.cancel(ids[0])
        assert (await chain_of(hosts, ids[0])).ending == ids[0]
        await other.cancel(ids[1])
        late = await other.create({"input": "late", "conversation": "conv_a", **BACKGROUND})
        await rest(hosts, turns, late["id"])
        assert turns.order == [ids[0], ids[2], late["id"]]


@MODES
async def test_a_turn_after_a_cancel_waits_for_the_cancelled_handler(mode: Json) -> None:
    """It is accepted at once: the cancel was acknowledged, the chain is nobody's."""
    turns = Turns(until_opened)
    turns.gates["second"].set()
    async with fleet(turns) as hosts:
        owner = hosts.host(options=LOCKING)
        other = hosts.host(options=LOCKING, eager_start=True)
        first = await owner.create({"input": "first", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.entered("first"))
        await other.cancel(first["id"])
        second = await ask(other, "second", conversation="conv_a", **mode)
        assert second["status"] == "completed"
        assert not turns.contexts["second"][0].is_steered_turn
        await rest(hosts, turns, first["id"])


async def test_a_turn_behind_a_cancelled_one_begins_when_its_owner_died_before_it_could_say_so() -> None:
    turns = Turns(until_opened)
    turns.gates["second"].set()
    async with fleet(turns) as hosts:
        owner = hosts.host(options=STEERABLE)
        other = hosts.host(options=STEERABLE)
        owner_only = await owner.create({"input": "first", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.entered("first"))
        holder = hosts.entries[owner_only["id"]][0].host
        rest_of_them = other if holder is owner else owner
        holder.pause()
        await rest_of_them.cancel(owner_only["id"])
        second = await rest_of_them.create({"input": "second", "conversation": "conv_a", **BACKGROUND})
        await holder.crash()
        await hosts.finished(second["id"])
        await rest(hosts, turns, second["id"], crashes=1)


def dies_after(host: Host, operation: str) -> None:
    """Kill the host when that operation was carried out."""

    async def die(name: str, moment: Moment) -> None:
        if (name, moment) == (operation, "after"):
            host.fleet.kill(host)
            await host.passage()

    host.seam.hooks.append(die)


async def test_a_turn_behind_a_refused_one_begins_when_the_worker_died_after_the_removal() -> None:
    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        if request["input"] == "bad":
            await signal.wait()
            raise ValueError("not this")
        async for event in turns(request, context, signal):
            yield event

    turns = Turns()
    async with fleet(handler) as hosts:
        host = hosts.host(options=STEERABLE)
        other = hosts.host(options=STEERABLE)
        dies_after(host, "row.delete")
        call = asyncio.ensure_future(host.create({"input": "bad", "conversation": "conv_a"}))
        await until(lambda: bool(hosts.entries))
        second = await other.create({"input": "second", "conversation": "conv_a", **BACKGROUND})
        with pytest.raises(HostGone):
            await call
        await hosts.finished(second["id"])
        await rest(hosts, turns, second["id"])


async def test_a_turn_behind_a_cancelled_and_deleted_one_begins_when_the_canceller_died() -> None:
    turns = Turns()
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=False)
        canceller = hosts.host(options=STEERABLE, queues=False)
        first, second = [
            await api.create({"input": text, "conversation": "conv_a", **BACKGROUND}) for text in ("first", "second")
        ]
        dies_after(canceller, "row.replace")
        with pytest.raises(HostGone):
            await canceller.cancel(first["id"])
        await api.delete(first["id"])
        hosts.host(options=STEERABLE)
        await hosts.finished(second["id"])
        await rest(hosts, turns, second["id"])
        assert turns.order == [second["id"]]


# -- lost replies ---------------------------------------------------------------------------------------------------


def _first_time(act: Act) -> Act:
    async def once(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        if not context.is_recovery:
            await act(turns, request, context, signal)

    return once


@pytest.mark.parametrize("eager", [False, True], ids=["queue", "eager"])
async def test_a_turn_whose_insertion_was_answered_late_waits_as_it_was_stored(eager: bool) -> None:
    """It meant to run at once, found the chain busy, was stored as one that waits, and the reply was lost."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        late = hosts.host(options=STEERABLE, eager_start=eager)
        other = hosts.host(options=STEERABLE)
        stopped = late.pause_at("row.insert")
        second = asyncio.ensure_future(late.create({"input": "second", "conversation": "conv_a", **BACKGROUND}))
        await stopped.wait()
        first = await other.create({"input": "first", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.entered("first"))
        late.seam.inject(Fault(operation="row.insert", kind="after", after=0, times=1))
        late.resume()
        answer = await second
        assert answer["status"] == "queued"
        await asyncio.sleep(20)
        assert turns.order == [first["id"]]
        for text in ("first", "second"):
            turns.gates[text].set()
        await rest(hosts, turns, first["id"])
        assert turns.order == [first["id"], answer["id"]]


@pytest.mark.parametrize("mode", [{"stream": True}, BACKGROUND], ids=["C2", "C3"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_storage_that_fails_for_a_while_at_any_step_leaves_no_chain_stuck(mode: Json, moment: Any) -> None:
    """Each storage call of a turn, and of the one behind it, once."""
    call = 0
    while True:
        call += 1
        turns = Turns(until_told)
        turns.gates["second"].set()
        async with fleet(turns) as hosts:
            host = hosts.host(options=STEERABLE).serve_timer()
            host.fail_at(call, moment)
            outcomes = await asyncio.gather(
                *(ask_anyway(host, text, turns, mode) for text in ("first", "second")), return_exceptions=True
            )
            strange = [each for each in outcomes if isinstance(each, BaseException)]
            assert not strange, (call, strange)
            turns.gates["first"].set()
            for row in await hosts.ids():
                await rest(hosts, turns, row, lost_leases=1)
            await hosts.quiet()
            if len(host.calls) < call:
                return


async def ask_anyway(host: Host, text: str, turns: Turns, mode: Json) -> None:
    if text == "second":
        await asyncio.sleep(5)
    try:
        await asyncio.wait_for(ask(host, text, conversation="conv_a", **mode), 100)
    except (StorageUnavailable, AssertionError, TimeoutError):
        turns.gates["first"].set()


# -- S7: the metadata -----------------------------------------------------------------------------------------------


def counting(*, flush: bool) -> Act:
    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        metadata = context.conversation_chain_metadata
        metadata["seen"] = [*metadata.get("seen", []), request["input"]]
        metadata("library")["turns"] = metadata("library").get("turns", 0) + 1
        if flush:
            await metadata.flush()

    return act


async def metadata_of(hosts: Fleet, response_id: str) -> Any:
    return orjson.loads((await chain_of(hosts, response_id)).metadata)


@MODES
@pytest.mark.parametrize("flush", [False, True], ids=["at the end", "by the handler"])
async def test_what_a_turn_keeps_is_there_in_the_next_one(mode: Json, flush: bool) -> None:
    turns = Turns(counting(flush=flush))
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        for text in ("first", "second", "third"):
            last = await ask(host, text, conversation="conv_a", **mode)
        expected = {"": {"seen": ["first", "second", "third"]}, "library": {"turns": 3}}
        assert await metadata_of(hosts, last["id"]) == expected


@pytest.mark.parametrize("conversation", [None, "conv_a"], ids=["own chain", "conversation"])
@BOTH
async def test_what_was_flushed_before_a_crash_is_there_after_it(
    conversation: str | None, options: ResponsesServerOptions
) -> None:
    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        metadata = context.conversation_chain_metadata
        if context.is_recovery:
            found.append(dict(metadata))
            return
        metadata["step"] = 1
        await metadata.flush()
        metadata["step"] = 2
        await asyncio.Event().wait()

    found: list[Json] = []
    turns = Turns(act)
    async with fleet(turns) as hosts:
        worker = hosts.host(options=options)
        answer = await worker.create({"input": "hi", "conversation": conversation, **BACKGROUND})
        await until(
            lambda: turns.contexts["hi"] and turns.contexts["hi"][0].conversation_chain_metadata.get("step") == 2
        )
        hosts.host(options=options)
        await worker.crash()
        await hosts.finished(answer["id"])
        assert found == [{"step": 1}]


async def test_what_a_turn_keeps_goes_along_when_it_is_handed_over() -> None:
    """S7: flushed at suspend."""

    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        if not context.is_recovery:
            context.conversation_chain_metadata["step"] = 1
            await context.shutdown.wait()
            await context.exit_for_recovery()
        found.append(dict(context.conversation_chain_metadata))

    found: list[Json] = []
    turns = Turns(act)
    async with fleet(turns) as hosts:
        worker = hosts.host(options=STEERABLE)
        answer = await worker.create({"input": "hi", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.entered("hi"))
        hosts.host(options=STEERABLE)
        worker.stop_serving()
        await worker.inside(worker.engine.drain())
        await hosts.finished(answer["id"])
        assert found == [{"step": 1}]


async def test_the_flush_of_a_worker_that_lost_its_run_is_refused() -> None:
    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        metadata = context.conversation_chain_metadata
        metadata["who"] = "recovered" if context.is_recovery else "zombie"
        if not context.is_recovery:
            await turns.gates["hi"].wait()
        await metadata.flush()

    flushes: list[Moment] = []

    async def note(name: str, moment: Moment) -> None:
        if name == "row.replace":
            flushes.append(moment)

    turns = Turns(act)
    async with fleet(turns) as hosts:
        zombie = hosts.host(options=STEERABLE)
        answer = await zombie.create({"input": "hi", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.entered("hi"))
        flushing = zombie.pause_at("row.replace")
        turns.gates["hi"].set()
        await until(flushing.is_set)
        zombie.seam.hooks.append(note)
        hosts.host(options=STEERABLE)
        await until(lambda: len(turns.contexts["hi"]) == 2)
        zombie.resume()
        await hosts.finished(answer["id"])
        await until(lambda: idle(hosts, answer["id"]))
        assert await metadata_of(hosts, answer["id"]) == {"": {"who": "recovered"}}
        assert flushes == ["before"], "a refused call has no `after`"


async def test_the_flush_of_a_foreground_turn_whose_worker_was_declared_dead_is_refused() -> None:
    """It comes before the process hears of that, which would stop the handler."""
    refused: list[BaseException] = []

    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        context.conversation_chain_metadata["who"] = "zombie"
        await turns.gates["hi"].wait()
        try:
            await context.conversation_chain_metadata.flush()
        except OwnershipLost as error:
            refused.append(error)

    turns = Turns(act)
    async with fleet(turns) as hosts:
        zombie = hosts.host(options=STEERABLE, heartbeat_interval=1_000.0)
        call = asyncio.ensure_future(zombie.create({"input": "hi", "conversation": "conv_a"}))
        await until(lambda: turns.entered("hi"))
        zombie.pause()
        hosts.host(options=STEERABLE)
        await until(lambda: failed(hosts, turns.order[0]))
        zombie.seam.inject(Fault(operation="queue.push_watch", kind="before"))
        turns.gates["hi"].set()
        zombie.resume()
        response = await call
        assert response["error"]["additionalInfo"] == {"shutdown_reason": "crash_recovery"}
        assert refused
        assert not (await chain_of(hosts, response["id"])).metadata


async def failed(hosts: Fleet, response_id: str) -> bool:
    row = await hosts.row(response_id)
    return row is not None and row.status == "failed"


@pytest.mark.parametrize("moment", ["before", "after"])
@MODES
async def test_a_flush_that_storage_did_not_answer_does_not_cost_the_outcome(mode: Json, moment: Any) -> None:
    """Its reply was lost for good, or the handler gave up to wait for it."""

    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        if context.is_recovery:  # its own write refused it, as nobody had told it of that one
            return
        context.conversation_chain_metadata["step"] = 1
        host.seam.inject(Fault(operation="row.replace", kind="delay", delay=1, times=1))
        try:
            await asyncio.wait_for(context.conversation_chain_metadata.flush(), 0.5)
        except TimeoutError:
            pass
        context.conversation_chain_metadata["step"] = 2
        fault = host.seam.inject(Fault(operation="row.*", kind=moment))
        with pytest.raises(StorageUnavailable):
            await context.conversation_chain_metadata.flush()
        fault.remove()

    turns = Turns(act)
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        response = await ask(host, "hi", conversation="conv_a", **mode)
        assert response["status"] == "completed"
        assert await metadata_of(hosts, response["id"]) == {"": {"step": 2}}
        await rest(hosts, turns, response["id"], lost_leases=1)


@MODES
async def test_metadata_that_is_too_large_is_refused_and_costs_nothing_else(mode: Json) -> None:
    async def act(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        metadata = context.conversation_chain_metadata
        metadata["kept"] = []
        await metadata.flush()
        with pytest.raises(MetadataTooLarge) as refused:
            metadata["large"] = "x" * MAX_METADATA_BYTES
        assert refused.value.size > MAX_METADATA_BYTES
        metadata["kept"].append("x" * MAX_METADATA_BYTES)
        with pytest.raises(MetadataTooLarge):
            await metadata.flush()

    turns = Turns(act)
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        response = await ask(host, "hi", conversation="conv_a", **mode)
        assert text_of(response) == "answer to hi"
        assert await metadata_of(hosts, response["id"]) == {"": {"kept": []}}


# -- I1 -------------------------------------------------------------------------------------------------------------


def keyed(body: Json, key: str = "key") -> Call:
    return Call(request=body, principal=PRINCIPAL, client_headers={}, query_parameters={}, idempotency_key=key)


async def _stays() -> bool:
    return False


@pytest.mark.parametrize("mode", [{}, BACKGROUND], ids=["C1", "C3"])
@BOTH
async def test_one_key_sent_twice_at_once_is_one_turn(mode: Json, options: ResponsesServerOptions) -> None:
    for delay in range(12):
        turns = Turns(lasting(0.2))
        async with fleet(turns) as hosts:
            pair = [hosts.host(options=options), hosts.host(options=options)]
            pair[0].seam.inject(Fault(operation="row.insert", kind="delay", delay=delay * 0.4))
            call = keyed({"input": "hi", "conversation": "conv_a", **mode})
            answers = await asyncio.gather(*(each.inside(each.engine.create(call, _stays)) for each in pair))
            assert answers[0]["id"] == answers[1]["id"]
            await rest(hosts, turns, answers[0]["id"])
            assert turns.order == [answers[0]["id"]]


@pytest.mark.parametrize("mode", [{}, BACKGROUND], ids=["C1", "C3"])
async def test_a_turn_that_was_refused_gives_its_key_back(mode: Json) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = hosts.host(options=LOCKING)
        first = await host.create({"input": "first", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.entered("first"))
        call = keyed({"input": "second", "conversation": "conv_a", **mode})
        with pytest.raises(ConversationLocked):
            await host.inside(host.engine.create(call, _stays))
        for text in ("first", "second"):
            turns.gates[text].set()
        await hosts.finished(first["id"])
        answer = await host.inside(host.engine.create(call, _stays))
        await hosts.finished(answer["id"])
        assert turns.order == [first["id"], answer["id"]]


# -- costs ----------------------------------------------------------------------------------------------------------


async def cost(hosts: Fleet, *counted: Host) -> Counter[str]:
    await hosts.quiet()
    total = Counter(name for host in counted for name in host.calls if name != "queue.push_watch")
    total["host"] = 2 * sum(host.received[WORK_QUEUE] for host in counted)
    return total


async def cost_of(mode: Json, *, conversation: str | None, eager: bool = False) -> Counter[str]:
    """Of one response on a worker that is idle; in a conversation, of its second turn."""
    async with fleet(Turns()) as hosts:
        first = hosts.host(options=LOCKING)
        if conversation:
            await ask(first, "first", conversation=conversation, **mode)
        await hosts.quiet()
        first.stop_serving()
        host = hosts.host(options=LOCKING, eager_start=eager)
        body = {"input": "hi", "conversation": conversation, **mode}
        if mode.get("stream"):
            await (await host.stream(body)).whole()
        else:
            await host.create(body)
        return await cost(hosts, host)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreground_turn_costs_two_operations_more_than_a_response_alone(stream: bool) -> None:
    alone = await cost_of({"stream": stream}, conversation=None)
    turn = await cost_of({"stream": stream}, conversation="conv_a")
    assert turn.total() == alone.total() + 2, (alone, turn)


@pytest.mark.parametrize("eager", [False, True], ids=["queue", "eager"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_background_turn_costs_one_read_at_its_acceptance_and_one_at_its_claim(
    stream: bool, eager: bool
) -> None:
    mode = {"stream": stream, **BACKGROUND}
    alone = await cost_of(mode, conversation=None, eager=eager)
    turn = await cost_of(mode, conversation="conv_a", eager=eager)
    assert turn["chain.read"] == (1 if eager else 2)
    turn.subtract({"chain.read": turn["chain.read"]})
    assert +turn == +alone
