"""Cancelling, in every state a response can be in (B1, B3, B7, B11, B12, V8)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from protocol.errors import CannotCancel, ResponseNotFound
from resilience.context import ResponseContext
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, Reader, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_body, check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STREAM = pytest.mark.parametrize("stream", [False, True])


async def ask(host: Host, hosts: Fleet, stream: bool, body: dict[str, Any] | None = None) -> tuple[str, Reader | None]:
    reader = None
    if stream:
        reader = await host.stream(body or background())
    else:
        await host.create(body or background())
    (response_id,) = await hosts.ids()
    return response_id, reader


async def after_cancel(hosts: Fleet, response_id: str, *readers: Reader | None, crashes: int = 0) -> None:
    """What must hold for ever after an acknowledged cancel."""
    seen = [await reader.whole_view() for reader in readers if reader is not None]
    await hosts.finished(response_id)
    await hosts.quiet()
    stored = await check_response(
        hosts.storage,
        PRINCIPAL,
        response_id,
        entries=hosts.entered(response_id),
        crashes=crashes,
        cancelled=True,
        seen=seen,
    )
    if seen:
        assert stored.events[-1]["type"] == "response.failed"
        assert stored.events[-1]["response"]["status"] == "cancelled"
        assert all(view.frames[-1] == stored.frames[-1] for view in seen)
    for host in hosts.hosts:
        again = await host.cancel(response_id)
        assert again == await host.get(response_id)
        assert (again["status"], again["output"]) == ("cancelled", [])


@STREAM
@pytest.mark.parametrize("resilient", [True, False])
async def test_a_queued_response_without_an_owner_ends_at_once(stream: bool, resilient: bool) -> None:
    async with fleet(Teller(3)) as hosts:
        api = hosts.host(queues=False, resilient=resilient)
        response_id, reader = await ask(api, hosts, stream)
        answer = await api.cancel(response_id)
        check_body(answer)
        assert answer["status"] == "cancelled"
        if reader:
            await reader.whole()
            assert reader.types == ["response.created", "response.failed"]
        hosts.host(resilient=resilient)
        await after_cancel(hosts, response_id, reader)
        assert not hosts.entries


@STREAM
@pytest.mark.parametrize("eager", [False, True])
async def test_a_run_of_this_process_is_told_at_once(stream: bool, eager: bool) -> None:
    async with fleet(Teller(30, pause=1.0)) as hosts:
        host = hosts.host(eager_start=eager)
        response_id, reader = await ask(host, hosts, stream)
        await until(lambda: hosts.entries[response_id])
        entry = hosts.entries[response_id][0]
        await asyncio.sleep(2.5)
        began = asyncio.get_running_loop().time()
        await host.cancel(response_id)
        await until(entry.signal.is_set)
        assert asyncio.get_running_loop().time() - began < 0.1
        assert (entry.context.client_cancelled, entry.context.shutdown.is_set()) == (True, False)
        if reader:
            await reader.whole()
            assert asyncio.get_running_loop().time() - began < 1.5, "B11: the stream waits for the handler"
        await after_cancel(hosts, response_id, reader)


@STREAM
async def test_a_run_of_another_process_is_told_within_a_second(stream: bool) -> None:
    async with fleet(Teller(30, pause=0.7)) as hosts:
        owner = hosts.host()
        other = hosts.host(queues=False)
        response_id, reader = await ask(owner, hosts, stream)
        await until(lambda: hosts.entries[response_id])
        entry = hosts.entries[response_id][0]
        elsewhere = await other.replay(response_id) if stream else None
        await asyncio.sleep(2.5)
        began = asyncio.get_running_loop().time()
        answer = await other.cancel(response_id)
        assert asyncio.get_running_loop().time() - began < 0.5, "B11: the answer waits for the handler"
        assert answer["status"] == "cancelled"
        await until(entry.signal.is_set)
        assert asyncio.get_running_loop().time() - began < 1.0
        await after_cancel(hosts, response_id, reader, elsewhere)


@STREAM
async def test_a_recovered_run_is_told_likewise(stream: bool) -> None:
    async with fleet(Teller(30, pause=0.7)) as hosts:
        api = hosts.host(queues=False)
        first = hosts.host()
        response_id, reader = await ask(api, hosts, stream)
        await until(lambda: hosts.entries[response_id])
        await asyncio.sleep(2)
        await first.crash()
        hosts.host()
        await until(lambda: len(hosts.entries[response_id]) == 2)
        await api.cancel(response_id)
        began = asyncio.get_running_loop().time()
        await until(hosts.entries[response_id][1].signal.is_set)
        assert asyncio.get_running_loop().time() - began < 1.0
        hosts.hosts.remove(first)
        await after_cancel(hosts, response_id, reader, crashes=1)


@STREAM
async def test_a_cancel_between_death_and_recovery_ends_it_without_another_entry(stream: bool) -> None:
    async with fleet(Teller(30, pause=0.7)) as hosts:
        api = hosts.host(queues=False)
        first = hosts.host()
        response_id, reader = await ask(api, hosts, stream)
        await until(lambda: hosts.entries[response_id])
        await asyncio.sleep(2)
        await first.crash()
        hosts.hosts.remove(first)
        await api.cancel(response_id)
        if reader:  # R6: nobody else is there to complete it
            await reader.whole(seconds=30)
        hosts.host()
        await after_cancel(hosts, response_id, reader)
        assert len(hosts.entries[response_id]) == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("completed", "Cannot cancel a completed response."),
        ("failed", "Cannot cancel a failed response."),
        ("incomplete", "Cannot cancel an incomplete response."),
    ],
)
@STREAM
async def test_a_finished_response_cannot_be_cancelled(stream: bool, status: str, text: str) -> None:
    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        events = ResponseEventStream(response_id=context.response_id, request=request)
        yield events.emit_created()
        yield events.emit_in_progress()
        if status == "completed":
            yield events.emit_completed()
        elif status == "failed":
            yield events.emit_failed(code="server_error", message="no")
        else:
            yield events.emit_incomplete(reason="max_output_tokens")

    async with fleet(handler) as hosts:
        host = hosts.host()
        response_id, _ = await ask(host, hosts, stream)
        row = await hosts.finished(response_id)
        before = await host.get(response_id)
        for _ in range(2):
            with pytest.raises(CannotCancel) as refused:
                await host.cancel(response_id)
            assert (refused.value.status, refused.value.message) == (400, text)
            assert refused.value.type == "invalid_request_error"
        assert await hosts.row(response_id) == row
        assert await host.get(response_id) == before
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))


async def test_a_synchronous_response_cannot_be_cancelled_whatever_its_status() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        response = await host.create({"input": "hi"})
        with pytest.raises(CannotCancel) as refused:
            await host.cancel(response["id"])
        assert refused.value.message == "Cannot cancel a synchronous response."


async def test_a_handler_that_ends_in_its_own_way_after_a_cancel_changes_nothing() -> None:
    """V8: it completes, it raises, it goes on for ever; all after the cancel."""

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        events = ResponseEventStream(response_id=context.response_id, request=request)
        yield events.emit_created()
        yield events.emit_in_progress()
        await signal.wait()
        async for event in events.output_item_message("too late"):
            yield event
        if request["input"] == "completes":
            yield events.emit_completed()
        elif request["input"] == "raises":
            raise RuntimeError("too late")
        elif request["input"] == "sleeps":
            await asyncio.sleep(3)
        else:
            await asyncio.Event().wait()

    for way in ("completes", "raises", "sleeps", "hangs"):
        async with fleet(handler) as hosts:
            host = hosts.host()
            reader = await host.stream(background(way))
            response_id = await reader.response_id()
            await reader.until(2)
            await host.cancel(response_id)
            await after_cancel(hosts, response_id, reader)
            assert len(reader.frames) == 3


async def test_the_handler_has_its_grace_to_wind_down() -> None:
    """B11."""
    wound_down: list[float] = []

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        events = ResponseEventStream(response_id=context.response_id, request=request)
        yield events.emit_created()
        await signal.wait()
        await asyncio.sleep(8)
        wound_down.append(asyncio.get_running_loop().time())

    async with fleet(handler) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        began = asyncio.get_running_loop().time()
        await host.cancel(response_id)
        await after_cancel(hosts, response_id, reader)
        assert wound_down[0] - began == pytest.approx(8, abs=1.1)


@STREAM
async def test_a_cancel_and_an_outcome_at_the_same_moment_leave_one_of_them(stream: bool) -> None:
    """Cancel always wins over a later outcome, an outcome already stored over the cancel."""
    outcomes = set()
    for delay in range(24):
        async with fleet(Teller(1, pause=0.5)) as hosts:
            owner = hosts.host()
            other = hosts.host(queues=False)
            response_id, reader = await ask(owner, hosts, stream)
            await until(lambda hosts=hosts, response_id=response_id: hosts.entries[response_id])  # type: ignore[misc]
            await asyncio.sleep(0.4)
            owner.seam.inject(Fault(operation="row.replace", kind="delay", delay=0.05))
            await asyncio.sleep(delay * 0.01)
            acknowledged = True
            try:
                await other.cancel(response_id)
            except CannotCancel:
                acknowledged = False
            row = await hosts.finished(response_id)
            outcomes.add(row.status)
            assert acknowledged == (row.status == "cancelled")
            seen = [await reader.whole_view()] if reader else []
            await check_response(
                hosts.storage,
                PRINCIPAL,
                response_id,
                entries=hosts.entered(response_id),
                cancelled=acknowledged,
                seen=seen,
            )
    assert outcomes == {"completed", "cancelled"}


async def calls_of_a_claim(stream: bool) -> list[str]:
    """What an owner does from the start message to the handler."""
    calls: list[str] = []
    teller = Teller(1)

    def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> Any:
        calls.extend(owner.calls)
        return teller(request, context, signal)

    async with fleet(handler) as hosts:
        api = hosts.host(queues=False)
        owner = hosts.host()
        response_id, _ = await ask(api, hosts, stream)
        await hosts.finished(response_id)
    return calls


@pytest.mark.parametrize("moment", ["before", "after"])
@STREAM
async def test_a_cancel_at_any_step_of_a_claim_ends_it(stream: bool, moment: Moment) -> None:
    """Up to the claim's own write the handler is not even entered; after it, it is told, if it is."""
    calls = await calls_of_a_claim(stream)
    claim = calls.index("row.replace") + 1
    for step in range(1, len(calls) + 1):
        async with fleet(Teller(40, pause=0.5)) as hosts:
            api = hosts.host(queues=False)
            owner = hosts.host()
            reached = asyncio.Event()

            async def stop(
                name: str, when: Moment, owner: Host = owner, step: int = step, reached: asyncio.Event = reached
            ) -> None:
                if len(owner.calls) == step and when == moment and not reached.is_set():
                    reached.set()
                    owner.pause()
                    await owner.passage()

            owner.seam.hooks.append(stop)
            response_id, reader = await ask(api, hosts, stream)
            await until(reached.is_set)
            assert not hosts.entries
            answer = await api.cancel(response_id)
            assert answer["status"] == "cancelled"
            await asyncio.sleep(0.5)
            owner.resume()
            await after_cancel(hosts, response_id, reader)
            entries = hosts.entries[response_id]
            case = f"{moment} call {step} of {calls}"
            claimed = step > claim or (step == claim and moment == "after")
            assert claimed or not entries, case
            assert all(entry.signal.is_set() and entry.context.client_cancelled for entry in entries), case


async def test_many_cancels_at_once_are_one() -> None:
    async with fleet(Teller(30, pause=1.0)) as hosts:
        owner = hosts.host()
        others = [hosts.host(queues=False) for _ in range(5)]
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        answers = await asyncio.gather(*(host.cancel(response_id) for host in [owner, *others] * 2))
        assert all(answer == answers[0] for answer in answers)
        await after_cancel(hosts, response_id, reader)


async def test_a_cancelled_response_that_was_deleted_is_not_found() -> None:
    async with fleet(Teller(30, pause=1.0)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await host.cancel(response_id)
        await hosts.finished(response_id)
        await host.delete(response_id)
        with pytest.raises(ResponseNotFound):
            await host.cancel(response_id)
