"""Every mode C1 to C8 through the engine, over memory, in virtual time."""

import asyncio
from typing import Any

import pytest

from protocol import sse
from protocol.errors import (
    PreviousResponseNotFound,
    ResponseNotFound,
    StreamUnavailable,
    UnsupportedParameter,
)
from resilience.context import ResponseContext
from resilience.text_response import TextResponse
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, until
from tests.support.handlers import Teller, text_of
from tests.support.invariants import View, check_body, check_nothing_recorded, check_response, check_stream
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

EAGER = pytest.mark.parametrize("eager", [False, True], ids=["queued", "eager"])


async def checked(hosts: Fleet, response_id: str, *seen: View, **expected: Any) -> dict[str, Any]:
    """The response as every host answers it, after the invariants held."""
    await hosts.finished(response_id)
    await check_response(
        hosts.storage,
        PRINCIPAL,
        response_id,
        seen=seen,
        entries=hosts.entered(response_id),
        generation_of=hosts.generation_of(response_id),
        **expected,
    )
    answers = [await host.get(response_id) for host in hosts.hosts if not host.dead]
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


async def test_c1_blocks_until_the_end_and_is_readable_after() -> None:
    async with fleet(Teller(3)) as hosts:
        host, other = hosts.host(), hosts.host()
        response = await host.create({"model": "m", "input": "hi"})
        check_body(response)
        assert response["status"] == "completed"
        assert text_of(response) == "e1n0 e1n1 e1n2 "
        assert await other.get(response["id"]) == response
        await checked(hosts, response["id"])
        with pytest.raises(StreamUnavailable):
            await host.replay(response["id"])


async def test_c2_streams_to_the_end_and_is_readable_after_but_not_replayed() -> None:
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        reader = await host.stream({"input": "hi"})
        await reader.whole()
        response_id = await reader.response_id()
        response = await checked(hosts, response_id, reader.view)
        assert response == reader.events[-1]["response"]
        with pytest.raises(StreamUnavailable):
            await host.replay(response_id)


@EAGER
async def test_c3_answers_at_once_and_is_polled(eager: bool) -> None:
    done = asyncio.Event()
    async with fleet(Teller(3, hold=(2, done))) as hosts:
        host, other = hosts.host(eager_start=eager), hosts.host()
        accepted = await host.create(background())
        check_body(accepted)
        assert accepted["status"] in ("queued", "in_progress")
        await until(lambda: hosts.entries[accepted["id"]])
        assert (await other.get(accepted["id"]))["status"] == "in_progress"
        done.set()
        response = await checked(hosts, accepted["id"])
        assert text_of(response) == "e1n0 e1n1 e1n2 "
        for each in (host, other):
            with pytest.raises(StreamUnavailable):
                await each.replay(accepted["id"])
        await hosts.quiet()


async def test_c3_never_answers_with_an_outcome_even_if_it_is_decided() -> None:
    """B10: a handler that ends at once, an accepting process that is slow to answer."""
    async with fleet(Teller(0)) as hosts:
        host = hosts.host(eager_start=True)
        for _ in range(20):
            assert (await host.create(background()))["status"] in ("queued", "in_progress")


@EAGER
async def test_c4_streams_while_it_runs(eager: bool) -> None:
    async with fleet(Teller(5, pause=0.3)) as hosts:
        host = hosts.host(eager_start=eager)
        reader = await host.stream(background())
        await reader.until(3)
        assert not reader.ended
        await reader.whole()
        response = await checked(hosts, await reader.response_id(), reader.view)
        assert response == reader.events[-1]["response"]
        await hosts.quiet()


@EAGER
async def test_c4_survives_its_client(eager: bool) -> None:
    """B18."""
    async with fleet(Teller(5, pause=1.0)) as hosts:
        host = hosts.host(eager_start=eager)
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await reader.leave()
        response = await checked(hosts, response_id, reader.view)
        assert response["status"] == "completed"
        assert len(reader.frames) < 10


@pytest.mark.parametrize("stream", [False, True])
async def test_c5_and_c6_leave_no_trace(stream: bool) -> None:
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        if stream:
            reader = await host.stream({"input": "hi", "store": False})
            response = check_stream(await reader.whole())[-1]["response"]
        else:
            response = await host.create({"input": "hi", "store": False})
        check_body(response)
        assert (response["status"], response["store"]) == ("completed", False)
        assert host.calls == []
        await check_nothing_recorded(hosts.storage, PRINCIPAL)
        for call in (host.get, host.cancel, host.delete, host.input_items):
            with pytest.raises(ResponseNotFound):
                await call(response["id"])
        with pytest.raises(ResponseNotFound):
            await host.replay(response["id"])


@pytest.mark.parametrize("stream", [False, True])
async def test_c7_and_c8_are_refused(stream: bool) -> None:
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        with pytest.raises(UnsupportedParameter) as refused:
            await (host.stream if stream else host.create)(background(store=False))
        assert refused.value.param == "background"
        await check_nothing_recorded(hosts.storage, PRINCIPAL)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreground_response_in_flight_is_not_found(stream: bool) -> None:
    """B16."""
    done = asyncio.Event()
    async with fleet(Teller(3, hold=(1, done))) as hosts:
        host = hosts.host()
        if stream:
            reader = await host.stream({"input": "hi"})
            call = None
        else:
            call = host.spawn(host.create({"input": "hi"}), "call")
        await until(lambda: hosts.entries)
        response_id = next(iter(hosts.entries))
        for attempt in (host.get, host.cancel, host.delete, host.input_items):
            with pytest.raises(ResponseNotFound):
                await attempt(response_id)
        done.set()
        if call is not None:
            await call
        else:
            await reader.whole()
        assert (await host.get(response_id))["status"] == "completed"


async def test_a_foreground_client_that_leaves_its_stream_cancels() -> None:
    """B17."""
    done = asyncio.Event()
    async with fleet(Teller(3, hold=(1, done))) as hosts:
        host = hosts.host()
        reader = await host.stream({"input": "hi"})
        response_id = await reader.response_id()
        await reader.until(4)
        await reader.leave()
        await until(hosts.entries[response_id][0].signal.is_set)
        entry = hosts.entries[response_id][0]
        assert entry.context.client_cancelled
        assert not entry.context.shutdown.is_set()
        done.set()
        response = await checked(hosts, response_id)
        assert (response["status"], response["output"]) == ("cancelled", [])
        await hosts.quiet()


async def test_a_foreground_client_that_leaves_without_a_stream_cancels() -> None:
    """B17, and a handler that never ends is given up after its grace (B11)."""
    gone = asyncio.Event()

    async def disconnected() -> bool:
        return gone.is_set()

    async with fleet(Teller(3, hold=(1, asyncio.Event()))) as hosts:
        host = hosts.host()
        call = host.spawn(host.create({"input": "hi"}, disconnected=disconnected), "call")
        await until(lambda: hosts.entries)
        response_id = next(iter(hosts.entries))
        gone.set()
        await call
        response = await checked(hosts, response_id)
        assert (response["status"], response["output"]) == ("cancelled", [])


async def test_another_tenant_does_not_find_it() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        ids = [
            (await host.create({"input": "hi"}))["id"],
            (await host.create(background()))["id"],
        ]
        await hosts.finished(ids[1])
        for response_id in ids:
            for attempt in (host.get, host.cancel, host.delete, host.input_items):
                with pytest.raises(ResponseNotFound):
                    await attempt(response_id, principal="a stranger")
            with pytest.raises(ResponseNotFound):
                await host.replay(response_id, principal="a stranger")
            with pytest.raises(PreviousResponseNotFound):
                await host.create({"input": "hi", "previous_response_id": response_id}, principal="a stranger")
        await check_nothing_recorded(hosts.storage, "a stranger")


@EAGER
async def test_the_handler_sees_what_the_client_sent(eager: bool) -> None:
    """R3, first entry."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(eager_start=eager)
        body = background(
            "hi",
            metadata={"k": "v"},
            tools=[{"type": "namespace", "name": "x", "description": "d", "tools": []}],
            agent_reference={"name": "a"},
        )
        accepted = await host.create(body, headers={"x-client-a": "1"}, query={"q": "2"})
        response = await checked(hosts, accepted["id"])
        (entry,) = hosts.entries[accepted["id"]]
        assert entry.request["tools"] == body["tools"]
        assert entry.context.client_headers == {"x-client-a": "1"}
        assert entry.context.query_parameters == {"q": "2"}
        assert entry.context.principal == PRINCIPAL
        assert not entry.context.is_recovery
        assert entry.context.persisted_response is None
        assert await entry.context.get_input_text() == "hi"
        assert response["agent_reference"]["name"] == "a"
        assert all(item["agent_reference"]["name"] == "a" for item in response["output"])
        assert response["metadata"] == {"k": "v"}


async def test_what_a_handler_does_to_its_request_stays_with_it() -> None:
    async def handler(request: dict[str, Any], context: ResponseContext, signal: asyncio.Event) -> TextResponse:
        untouched = dict(request, metadata=dict(request["metadata"]))
        request["metadata"]["k"] = "changed"
        request["input"] = "changed"
        assert context.request["metadata"] == {"k": "v"}
        return TextResponse(context, untouched, text="x")

    async with fleet(handler) as hosts:
        host = hosts.host()
        response = await host.create({"input": "hi", "metadata": {"k": "v"}})
        assert response["metadata"] == {"k": "v"}
        items = await host.input_items(response["id"])
        assert items["data"][0]["content"][0]["text"] == "hi"


async def test_a_chain_gives_its_history_oldest_first() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        first = await host.create({"input": "one"})
        second = await host.create({"input": "two", "previous_response_id": first["id"]})
        third = await host.create(background("three", previous_response_id=second["id"]))
        await hosts.finished(third["id"])
        history = await hosts.entries[third["id"]][0].context.get_history()
        assert [item["role"] for item in history] == ["user", "assistant", "user", "assistant"]
        assert history[0]["content"][0]["text"] == "one"
        assert history[2]["content"][0]["text"] == "two"


async def test_an_unknown_predecessor_is_refused_before_the_handler() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        known = (await host.create({"input": "x"}))["id"]
        unknown = known[:-4] + ("aaaa" if known[-4:] != "aaaa" else "bbbb")
        for body in ({"input": "x"}, background("x")):
            with pytest.raises(PreviousResponseNotFound):
                await host.create({**body, "previous_response_id": unknown})
        with pytest.raises(PreviousResponseNotFound):
            await host.stream({**background("x"), "previous_response_id": unknown})
        assert sum(map(len, hosts.entries.values())) == 1


async def test_a_large_request_and_a_large_answer_pass_through_blobs() -> None:
    async with fleet(Teller(9_000)) as hosts:
        host: Host = hosts.host()
        text = "x" * 100_000
        foreground = await host.create({"input": text})
        assert len(text_of(foreground)) > 32 * 1024
        assert await host.get(foreground["id"]) == foreground
        reader = await host.stream(background(text))
        frames = await reader.whole()
        response = await checked(hosts, await reader.response_id(), reader.view)
        assert len(text_of(response)) > 32 * 1024
        items = await host.input_items(response["id"])
        assert items["data"][0]["content"][0]["text"] == text
        assert sse.is_terminal(frames[-1])
