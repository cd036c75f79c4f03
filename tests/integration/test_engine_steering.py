"""Turns that arrive while another runs, where chains are steerable (S3, S4, S5)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.errors import (
    ApiError,
    CannotDeleteInFlight,
    ConversationForkNotSupported,
    ConversationQueueFull,
    ResponseNotFound,
)
from protocol.event_stream import ResponseEventStream
from resilience.chain import MAX_PENDING
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, key_of, until
from tests.support.handlers import text_of
from tests.support.invariants import assert_chain, check_nothing_recorded, check_response
from tests.support.turns import Act, Turns, until_opened, until_told
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
MODES = pytest.mark.parametrize(
    "mode",
    [{}, {"stream": True}, {"background": True}, {"background": True, "stream": True}],
    ids=["C1", "C2", "C3", "C4"],
)
BACKGROUND = {"background": True}

type Json = dict[str, Any]


def host_of(hosts: Fleet, **settings: Any) -> Host:
    return hosts.host(options=STEERABLE, **settings)


async def ask(host: Host, text: str, **fields: Any) -> Json:
    """The response as its client has it in the end."""
    body = {"input": text, **fields}
    if body.get("stream"):
        reader = await host.stream(body)
        await reader.whole()
        return dict(reader.events[-1]["response"])
    answer = await host.create(body)
    if body.get("background"):
        await host.fleet.finished(answer["id"])
        return await host.get(answer["id"])
    return answer


async def first_turn(host: Host, turns: Turns) -> str:
    """The id of a turn that runs until it is told."""
    answer = await host.create({"input": "first", "conversation": "conv_a", **BACKGROUND})
    await until(lambda: turns.entered("first"))
    return str(answer["id"])


async def rest(hosts: Fleet, turns: Turns, response_id: str) -> None:
    await until(lambda: idle(hosts, response_id), "the end of the chain")
    await assert_chain(hosts.storage, PRINCIPAL, response_id, turns.spans)


async def idle(hosts: Fleet, response_id: str) -> bool:
    chain = await hosts.storage.chains.read(key_of(response_id))
    return not (chain.unfinished or chain.ending) and not any(
        host.engine.runtime.running for host in hosts.hosts if not host.dead
    )


@MODES
@pytest.mark.parametrize("eager", [False, True], ids=["queue", "eager"])
async def test_a_steered_turn_runs_after_the_active_one_was_told(mode: Json, eager: bool) -> None:
    turns = Turns(until_told)
    turns.gates["second"].set()
    async with fleet(turns) as hosts:
        host = host_of(hosts, eager_start=eager)
        first = await first_turn(host, turns)
        second = await ask(host, "second", conversation="conv_a", **mode)
        assert (second["status"], text_of(second)) == ("completed", "answer to second")
        [told], [steered] = turns.contexts["first"], turns.contexts["second"]
        assert turns.signals["first"][0].is_set()
        assert not told.client_cancelled
        assert not told.is_steered_turn
        assert told.pending_input_count == 1
        assert steered.is_steered_turn
        assert steered.pending_input_count == 0
        assert not turns.signals["second"][0].is_set()
        assert turns.order == [first, second["id"]]
        await rest(hosts, turns, first)
        for response_id in turns.order:
            await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))


@MODES
async def test_the_active_turn_is_told_whatever_its_mode_and_its_terminal_event_is_honoured(mode: Json) -> None:
    turns = Turns(until_told)
    turns.gates["second"].set()
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        first = asyncio.ensure_future(ask(host, "first", conversation="conv_a", **mode))
        await until(lambda: turns.entered("first"))
        await ask(host, "second", conversation="conv_a")
        response = await first
        assert (response["status"], text_of(response)) == ("completed", "answer to first")
        assert not turns.contexts["first"][0].client_cancelled
        await rest(hosts, turns, response["id"])


@MODES
async def test_a_turn_in_another_process_hears_of_the_next_within_a_second(mode: Json) -> None:
    turns = Turns(until_told)
    turns.gates["second"].set()
    async with fleet(turns) as hosts:
        worker = host_of(hosts)
        api = host_of(hosts, queues=False)
        first = asyncio.ensure_future(ask(worker, "first", conversation="conv_a", **mode))
        await until(lambda: turns.entered("first"))
        began = asyncio.get_running_loop().time()
        second = asyncio.ensure_future(ask(api, "second", conversation="conv_a"))
        await until(turns.signals["first"][0].is_set)
        assert asyncio.get_running_loop().time() - began <= 1
        assert turns.contexts["first"][0].pending_input_count == 1
        await rest(hosts, turns, (await first)["id"])
        assert (await second)["status"] == "completed"


@MODES
async def test_a_steered_turn_without_a_terminal_event_is_failed(mode: Json) -> None:
    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        if request["input"] == "first":
            await signal.wait()
            return
        yield stream.emit_completed()

    async with fleet(handler) as hosts:
        host = host_of(hosts)
        first = asyncio.ensure_future(ask(host, "first", conversation="conv_a", **mode))
        await until(lambda: len(hosts.entries) == 1)
        second = await ask(host, "second", conversation="conv_a")
        assert (await first)["status"] == "failed"
        assert second["status"] == "completed"


async def test_queued_turns_count_those_behind_them_and_are_told_at_their_start() -> None:
    turns = Turns(until_told)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        await first_turn(host, turns)
        ids = [
            (await host.create({"input": f"next {n}", "conversation": "conv_a", **BACKGROUND}))["id"] for n in range(3)
        ]
        await until(lambda: turns.entered("next 2"))
        assert [turns.contexts[f"next {n}"][0].pending_input_count for n in range(3)] == [2, 1, 0]
        assert [turns.signals[f"next {n}"][0].is_set() for n in range(3)] == [True, True, False]
        turns.gates["next 2"].set()
        await rest(hosts, turns, ids[-1])


async def test_a_turn_that_is_cancelled_behind_the_active_one_counts_no_more() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        first = await first_turn(host, turns)
        queued = await host.create({"input": "queued", "conversation": "conv_a", **BACKGROUND})
        await until(lambda: turns.contexts["first"][0].pending_input_count == 1)
        await host.cancel(queued["id"])
        await until(lambda: turns.contexts["first"][0].pending_input_count == 0)
        turns.gates["first"].set()
        await rest(hosts, turns, first)
        assert turns.order == [first]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("eager", [False, True], ids=["queue", "eager"])
async def test_a_queued_background_turn_is_answered_at_once_as_queued(stream: bool, eager: bool) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts, eager_start=eager)
        first = await first_turn(host, turns)
        body = {"input": "second", "conversation": "conv_a", **BACKGROUND}
        if stream:
            reader = await host.stream(body)
            chain = await hosts.storage.chains.read(key_of(first))
            queued = chain.pending[0].id
        else:
            answer = await host.create(body)
            assert (answer["status"], answer["output"]) == ("queued", [])
            queued = answer["id"]
        assert (await host.get(queued))["status"] == "queued"
        with pytest.raises(CannotDeleteInFlight):
            await host.delete(queued)
        turns.gates["first"].set()
        turns.gates["second"].set()
        await rest(hosts, turns, first)
        seen = [await reader.whole_view()] if stream else []
        await check_response(hosts.storage, PRINCIPAL, queued, entries=hosts.entered(queued), seen=seen)


@MODES
async def test_the_tenth_turn_that_would_wait_finds_the_queue_full(mode: Json) -> None:
    """S5."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        first = await first_turn(host, turns)
        for n in range(MAX_PENDING):
            turns.gates[f"next {n}"].set()
            await host.create({"input": f"next {n}", "conversation": "conv_a", **BACKGROUND})
        with pytest.raises(ConversationQueueFull) as refused:
            await ask(host, "too many", conversation="conv_a", **mode)
        assert (refused.value.status, refused.value.code) == (409, "conversation_queue_full")
        turns.gates["first"].set()
        await rest(hosts, turns, first)
        assert len(turns.order) == 1 + MAX_PENDING


@MODES
async def test_a_turn_that_continues_another_than_the_last_is_refused(mode: Json) -> None:
    """S4."""
    turns = Turns()
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        first = await ask(host, "first")
        second = await ask(host, "second", previous_response_id=first["id"], **mode)
        with pytest.raises(ConversationForkNotSupported) as refused:
            await ask(host, "fork", previous_response_id=first["id"], **mode)
        assert (refused.value.status, refused.value.code) == (409, "conversation_fork_not_supported")
        assert refused.value.param == "previous_response_id"
        third = await ask(host, "third", previous_response_id=second["id"], **mode)
        assert turns.order == [first["id"], second["id"], third["id"]]
        await rest(hosts, turns, first["id"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreground_client_that_leaves_the_queue_takes_its_turn_with_it(stream: bool) -> None:
    """The chain goes on from the turn before, and the process can end."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        first = (await host.create({"input": "first", **BACKGROUND}))["id"]
        await until(lambda: turns.entered("first"))
        body = {"input": "second", "previous_response_id": first}
        gone = asyncio.Event()
        if stream:
            reader = await host.stream(body)
        else:
            call = asyncio.ensure_future(host.create(body, disconnected=lambda: _is(gone)))
        await until(lambda: waiting(hosts, first))
        if stream:
            await reader.leave()
        else:
            gone.set()
            assert (await call)["status"] == "cancelled"
        await until(lambda: nobody_waits(hosts, first))
        turns.gates["first"].set()
        turns.gates["third"].set()
        third = await ask(host, "third", previous_response_id=first)
        assert turns.order == [first, third["id"]]
        await rest(hosts, turns, first)
        await hosts.quiet()


async def _is(event: asyncio.Event) -> bool:
    return event.is_set()


async def waiting(hosts: Fleet, response_id: str) -> bool:
    return bool((await hosts.storage.chains.read(key_of(response_id))).pending)


async def nobody_waits(hosts: Fleet, response_id: str) -> bool:
    return not await waiting(hosts, response_id)


@pytest.mark.parametrize("mode", [{}, BACKGROUND], ids=["C1", "C3"])
async def test_a_process_that_leaves_lets_queued_turns_run_elsewhere_or_tells_their_clients(mode: Json) -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        first = await first_turn(host, turns)
        queued = asyncio.ensure_future(ask(host, "queued", conversation="conv_a", **mode))
        await until(lambda: waiting(hosts, first))
        turns.gates["queued"].set()
        other = host_of(hosts)
        host.stop_serving()
        draining = asyncio.ensure_future(host.inside(host.engine.drain()))
        await until(lambda: len(turns.contexts["first"]) == 2)
        turns.gates["first"].set()
        await draining
        response = await queued
        if mode:
            assert response["status"] == "completed"
        else:
            assert response["error"]["additionalInfo"] == {"shutdown_reason": "grace_exhausted"}
        await until(lambda: idle(hosts, first))
        await assert_chain(hosts.storage, PRINCIPAL, first, turns.spans, lost_leases=1)
        assert not other.failures


# -- the acceptor -------------------------------------------------------------------------------------------------


def accept_with(host: Host, acceptor: Any) -> None:
    host.engine.runtime.app.response_acceptor(acceptor)


@pytest.mark.parametrize("eager", [False, True], ids=["queue", "eager"])
async def test_the_acceptor_makes_the_answer_of_a_queued_turn(eager: bool) -> None:
    seen: list[ResponseContext] = []

    async def acceptor(request: Json, context: ResponseContext) -> Json:
        seen.append(context)
        return {"metadata": {"place": "next"}, "status": "completed", "output": [{"type": "message"}], "id": "resp_x"}

    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts, eager_start=eager)
        accept_with(host, acceptor)
        first = await first_turn(host, turns)
        answer = await host.create({"input": "second", "conversation": "conv_a", **BACKGROUND})
        assert answer["metadata"] == {"place": "next"}
        assert (answer["status"], answer["output"]) == ("queued", [])
        assert await host.get(answer["id"]) == answer
        [context] = seen
        assert (context.response_id, context.is_steered_turn) == (answer["id"], True)
        assert context.conversation_chain_id == turns.contexts["first"][0].conversation_chain_id
        for text in ("first", "second"):
            turns.gates[text].set()
        await rest(hosts, turns, first)
        await check_response(hosts.storage, PRINCIPAL, answer["id"], entries=hosts.entered(answer["id"]))


@pytest.mark.parametrize("answer", [None, {}])
async def test_an_acceptor_that_has_nothing_to_say_leaves_the_usual_answer(answer: Json | None) -> None:
    async def acceptor(request: Json, context: ResponseContext) -> Json | None:
        return answer

    turns = Turns(until_told)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        accept_with(host, acceptor)
        await first_turn(host, turns)
        queued = await host.create({"input": "second", "conversation": "conv_a", **BACKGROUND})
        assert (queued["status"], queued["output"], queued["error"]) == ("queued", [], None)
        turns.gates["second"].set()
        await rest(hosts, turns, queued["id"])


async def test_an_acceptor_that_takes_its_time_loses_no_large_request() -> None:
    """Whoever received the turn's first message found no row for three minutes, and removed what lay beside it."""
    turns = Turns(until_opened)

    async def acceptor(request: Json, context: ResponseContext) -> None:
        await asyncio.sleep(220)

    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        accept_with(host, acceptor)
        await host.create(background("first", conversation="talk"))
        large = "x" * 40_000
        turns.gates[large].set()
        second = await host.create(background(large, conversation="talk"))
        turns.gates["first"].set()
        assert (await hosts.finished(second["id"])).status == "completed"
        await hosts.quiet()
        assert len(await hosts.storage.payloads.names(key_of(second["id"]), second["id"])) <= 2


async def test_an_acceptor_is_not_asked_for_a_turn_that_runs_at_once() -> None:
    async def acceptor(request: Json, context: ResponseContext) -> Json:
        raise AssertionError

    turns = Turns()
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        accept_with(host, acceptor)
        assert (await ask(host, "first", **BACKGROUND))["status"] == "completed"
        assert (await ask(host, "first"))["status"] == "completed"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [ValueError("not now"), RuntimeError("secret")], ids=["refuses", "fails"])
async def test_a_turn_that_the_acceptor_refuses_leaves_nothing(stream: bool, error: Exception) -> None:
    async def acceptor(request: Json, context: ResponseContext) -> Json:
        raise error

    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        accept_with(host, acceptor)
        first = await first_turn(host, turns)
        before = await traces(hosts)
        body = {"input": "x" * 40_000, "conversation": "conv_a", **BACKGROUND}
        with pytest.raises(ApiError) as refused:
            await (host.stream(body) if stream else host.create(body))
        if isinstance(error, ValueError):
            assert (refused.value.status, refused.value.message) == (400, "not now")
        else:
            assert refused.value.status == 500
            assert "secret" not in refused.value.message
        await until(lambda: _unchanged(hosts, before), "the removal of all traces")
        turns.gates["first"].set()
        await rest(hosts, turns, first)
        assert turns.order == [first]


async def traces(hosts: Fleet) -> list[str]:
    driver = hosts.storage.driver
    rows = [entity.row_key for entity in await driver.query_entities("responses")]
    return sorted([*rows, *await driver.list_blobs("events", ""), *await driver.list_blobs("payloads", "")])


async def _unchanged(hosts: Fleet, before: list[str]) -> bool:
    return await traces(hosts) == before


# -- crashes ------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("whose", ["first", "queued", "both"])
async def test_a_queued_turn_outlives_the_processes(mode: Json, whose: str) -> None:
    """S5: the process of the active turn dies, that of the queued one, or both."""
    act = _first_time(until_opened)
    turns = Turns(act)
    turns.gates["queued"].set()
    async with fleet(turns) as hosts:
        worker = host_of(hosts)
        first = await first_turn(worker, turns)
        worker.stop_serving()
        api = host_of(hosts, queues=False)
        queued = asyncio.ensure_future(ask(api, "queued", conversation="conv_a", **mode))
        await until(lambda: waiting(hosts, first))
        spare = host_of(hosts)
        dead = {"first": [worker], "queued": [api], "both": [worker, api]}[whose]
        for host in dead:
            await host.crash()
        if worker not in dead:
            turns.gates["first"].set()
        await until(lambda: idle(hosts, first), "the end of the chain", 300)
        if api in dead:
            queued.cancel()
        await asyncio.wait({queued})
        assert queued.cancelled() or queued.exception() is None or api in dead
        chain = await assert_chain(hosts.storage, PRINCIPAL, first, turns.spans, crashes=len(dead))
        assert chain.turns == 2
        if api in dead and not mode.get("background"):
            follower = await ask(spare, "queued", conversation="conv_a")
            assert follower["status"] == "completed"
            assert turns.order.count(follower["id"]) == 1
        else:
            assert text_of(await spare.get(turns.order[-1])) == "answer to queued"


def _first_time(act: Act) -> Act:
    async def once(turns: Turns, request: Json, context: ResponseContext, signal: asyncio.Event) -> None:
        if not context.is_recovery:
            await act(turns, request, context, signal)

    return once


async def test_a_foreground_turn_in_flight_is_shown_to_nobody() -> None:
    """B16: neither while it waits, nor while it runs."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = host_of(hosts)
        active = asyncio.ensure_future(host.create({"input": "active", "conversation": "conv_a"}))
        await until(lambda: turns.entered("active"))
        queued = asyncio.ensure_future(host.create({"input": "queued", "conversation": "conv_a"}))
        await until(lambda: waiting(hosts, turns.order[0]))
        chain = await hosts.storage.chains.read(key_of(turns.order[0]))
        for turn in chain.unfinished:
            for call in (host.get, host.cancel, host.delete, host.input_items):
                with pytest.raises(ResponseNotFound):
                    await call(turn.id)
        for text in ("active", "queued"):
            turns.gates[text].set()
        for response in (await active, await queued):
            assert await host.get(response["id"]) == response
        await check_nothing_recorded(hosts.storage, "a stranger")
