"""Leaving a process in order: drain, time limit, `exit_for_recovery` (path B, B24, R13)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, Host, background, fleet, until
from tests.support.handlers import Teller, text_of
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STREAM = pytest.mark.parametrize("stream", [False, True])

GRACE = 2.0


def options(resilient: bool = True) -> ResponsesServerOptions:
    return ResponsesServerOptions(resilient_background=resilient, shutdown_grace_period_seconds=GRACE)


async def drain(host: Host) -> float:
    """Drain, then be gone; the seconds it took."""
    began = asyncio.get_running_loop().time()
    host.stop_serving()
    await asyncio.wait_for(host.inside(host.engine.drain()), 60)
    took = asyncio.get_running_loop().time() - began
    await host.crash()
    return took


async def started(host: Host, stream: bool) -> tuple[str, Any]:
    reader = await host.stream(background()) if stream else None
    response_id = await reader.response_id() if reader else (await host.create(background()))["id"]
    await until(lambda: host.fleet.entries[response_id])
    await asyncio.sleep(0.6)
    return response_id, reader


@STREAM
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("checkpoints", [False, True])
async def test_a_drained_resilient_run_goes_on_elsewhere_at_once(stream: bool, eager: bool, checkpoints: bool) -> None:
    """Row 1, path B."""
    teller = Teller(20, pause=0.5, checkpoints=checkpoints)
    async with fleet(teller) as hosts:
        first = hosts.host(options=options(), eager_start=eager)
        response_id, reader = await started(first, stream)
        second = hosts.host(options=options(), eager_start=eager)
        followed = await second.replay(response_id) if stream else None
        assert await drain(first) < GRACE + 1
        left = asyncio.get_running_loop().time()
        await until(lambda: len(hosts.entries[response_id]) == 2)
        assert asyncio.get_running_loop().time() - left < 2
        row = await hosts.finished(response_id)
        assert (row.status, row.attempt) == ("completed", 1)
        seen = [reader.view, await followed.whole_view()] if followed else []
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=2,
            lost_leases=1,
            seen=seen,
            generation_of=hosts.generation_of(response_id),
        )
        words = text_of(stored.snapshot or {}).split()
        assert [word.partition("n")[2] for word in words] == [str(number) for number in range(20)]
        assert hosts.entries[response_id][0].context.shutdown.is_set()
        assert not hosts.entries[response_id][0].signal.is_set()
        assert hosts.entries[response_id][1].context.is_recovery
        await hosts.quiet()


@STREAM
async def test_a_drained_run_that_ends_within_its_grace_is_just_finished(stream: bool) -> None:
    """Path A."""
    async with fleet(Teller(4, pause=0.5)) as hosts:
        for resilient in (True, False):
            host = hosts.host(options=options(resilient))
            response_id, _ = await started(host, stream)
            await drain(host)
            row = await hosts.row(response_id)
            assert row is not None
            assert row.status == "completed"
            await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
            hosts.hosts.remove(host)


@STREAM
async def test_a_drained_non_resilient_run_fails_before_the_exit(stream: bool) -> None:
    """Row 2, path B."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        host = hosts.host(options=options(False))
        response_id, _ = await started(host, stream)
        other = hosts.host(queues=False, resilient=False)
        followed = await other.replay(response_id) if stream else None
        await drain(host)
        row = await hosts.row(response_id)
        assert row is not None
        assert row.status == "failed"
        seen = [await followed.whole_view()] if followed else []
        stored = await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), seen=seen
        )
        assert (stored.snapshot or {})["error"]["additionalInfo"] == {"shutdown_reason": "grace_exhausted"}
        if stream:
            assert len((stored.snapshot or {})["output"]) == 1, "output from before stays"


@STREAM
async def test_a_drained_foreground_run_fails_and_its_client_hears_of_it(stream: bool) -> None:
    """Row 3, path B."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        host = hosts.host(options=options())
        call = None
        if stream:
            reader = await host.stream({"input": "hi"})
            response_id = await reader.response_id()
        else:
            call = host.spawn(host.create({"input": "hi"}), "call")
            await until(lambda: hosts.entries)
            response_id = next(iter(hosts.entries))
        await asyncio.sleep(0.6)
        host.stop_serving()
        await asyncio.wait_for(host.inside(host.engine.drain()), 60)
        if call:
            told = await call
        else:
            await reader.whole()
            told = reader.events[-1]["response"]
        assert told["status"] == "failed"
        assert told["error"]["additionalInfo"] == {"shutdown_reason": "grace_exhausted"}
        assert await host.get(response_id) == told
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            seen=[reader.view] if stream else [],
        )


async def test_an_unstored_run_fails_on_the_wire() -> None:
    """Row 4, path B."""
    async with fleet(Teller(40, pause=0.5)) as hosts:
        host = hosts.host(options=options())
        reader = await host.stream({"input": "hi", "store": False})
        await reader.until(5)
        await asyncio.wait_for(host.inside(host.engine.drain()), 60)
        await reader.whole()
        assert reader.types[-1] == "response.failed"
        assert host.calls == []


def leaving(when: str) -> Any:
    """A handler that exits for recovery in its first entry, and completes in the next."""

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        events = ResponseEventStream(response_id=context.response_id, request=request)
        if when == "before created" and not context.is_recovery:
            await context.exit_for_recovery()
        yield events.emit_created()
        yield events.emit_in_progress()
        async for event in events.output_item_message("first" if not context.is_recovery else "second"):
            yield event
        if not context.is_recovery:
            if when == "on shutdown":
                await context.shutdown.wait()
            if when == "by an error on shutdown":
                await context.shutdown.wait()
                raise RuntimeError("interrupted")
            await context.exit_for_recovery()
        yield events.emit_completed()

    return handler


@STREAM
@pytest.mark.parametrize("when", ["at once", "before created"])
async def test_a_handler_may_leave_for_recovery_with_only_one_process_there(stream: bool, when: str) -> None:
    """The start message comes back to the same process, seconds before its ledger would close."""
    async with fleet(leaving(when)) as hosts:
        host = hosts.host()
        reader = await host.stream(background()) if stream else None
        if reader is None:
            await host.create(background())
        (response_id,) = await hosts.ids()
        row = await hosts.finished(response_id)
        assert row.status == "completed"
        assert not host.failures, host.failures
        seen = [await reader.whole_view()] if reader else []
        stored = await check_response(hosts.storage, PRINCIPAL, response_id, entries=2, lost_leases=1, seen=seen)
        assert text_of(stored.snapshot or {}) == "second"


@STREAM
@pytest.mark.parametrize("when", ["on shutdown", "by an error on shutdown"])
async def test_a_handler_that_leaves_on_shutdown_is_continued_elsewhere(stream: bool, when: str) -> None:
    """An exception thrown while shutdown is under way counts as shutdown, not as failure."""
    async with fleet(leaving(when)) as hosts:
        first = hosts.host(options=options())
        response_id, reader = await started(first, stream)
        hosts.host(options=options())
        await drain(first)
        row = await hosts.finished(response_id)
        assert (row.status, row.attempt) == ("completed", 1)
        seen = [reader.view] if reader else []
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=2, lost_leases=1, seen=seen)


async def test_a_handler_that_always_leaves_uses_up_its_attempts() -> None:
    """R5: an exit without a shutdown is an attempt."""

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        yield ResponseEventStream(response_id=context.response_id, request=request).emit_created()
        await context.exit_for_recovery()

    async with fleet(handler) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        row = await hosts.finished(response_id)
        assert row.status == "failed"
        assert len(hosts.entries[response_id]) == 5
        stored = await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=5, lost_leases=4, seen=[await reader.whole_view()]
        )
        assert (stored.snapshot or {})["error"]["additionalInfo"] == {"shutdown_reason": "attempts_exhausted"}


@pytest.mark.parametrize("mode", ["row 2", "foreground", "unstored"])
async def test_leaving_for_recovery_outside_row_1_is_a_mistake_of_the_handler(mode: str) -> None:
    raised: list[BaseException] = []

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        events = ResponseEventStream(response_id=context.response_id, request=request)
        yield events.emit_created()
        try:
            await context.exit_for_recovery()
        except RuntimeError as error:
            raised.append(error)
        yield events.emit_completed()

    async with fleet(handler) as hosts:
        host = hosts.host(resilient=mode != "row 2")
        if mode == "row 2":
            response_id = (await host.create(background()))["id"]
            assert (await hosts.finished(response_id)).status == "completed"
        else:
            response = await host.create({"input": "hi", "store": mode != "unstored"})
            assert response["status"] == "completed"
        assert len(raised) == 1


@STREAM
async def test_a_run_is_handed_over_before_the_platforms_time_limit(stream: bool) -> None:
    """R13."""
    teller = Teller(100, pause=1.0, checkpoints=True)
    async with fleet(teller) as hosts:
        hosts.host(options=options(), handover_after=30.0)
        hosts.host(options=options(), handover_after=30.0)
        reader = await hosts.hosts[0].stream(background()) if stream else None
        if reader is None:
            await hosts.hosts[0].create(background())
        (response_id,) = await hosts.ids()
        row = await hosts.finished(response_id, seconds=400)
        assert (row.status, row.attempt) == ("completed", 1)
        assert 4 <= teller.entries[response_id] <= 5
        stored = await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=teller.entries[response_id], lost_leases=4
        )
        words = text_of(stored.snapshot or {}).split()
        assert [word.partition("n")[2] for word in words] == [str(number) for number in range(100)]


@pytest.mark.parametrize("operation", ["queue.send_start", "row.replace", "log.release", "log.append"])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_fault_while_handing_over_neither_loses_the_run_nor_holds_up_the_drain(
    operation: str, kind: Any
) -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        first = hosts.host(options=options())
        response_id, reader = await started(first, True)
        hosts.host(options=options()).serve_timer()

        async def cut() -> None:
            await asyncio.sleep(GRACE - 0.1)
            first.seam.inject(Fault(operation=operation, kind=kind, times=1))

        cutting = asyncio.create_task(cut())
        took = await drain(first)
        await cutting
        assert took < GRACE + 5
        row = await hosts.finished(response_id, seconds=700)
        assert row.status == "completed"
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            lost_leases=1,
            seen=[reader.view],
            generation_of=hosts.generation_of(response_id),
        )


async def test_a_message_received_while_draining_is_passed_on() -> None:
    async with fleet(Teller(3)) as hosts:
        first = hosts.host(queues=False, options=options())
        api = hosts.host(queues=False)
        response_id = (await api.create(background()))["id"]
        await first.inside(first.engine.drain())
        first.serve_queues()
        await asyncio.sleep(3)
        assert not hosts.entries
        hosts.host()
        first.stop_serving()
        assert (await hosts.finished(response_id)).status == "completed"


async def test_a_cancel_while_a_run_is_shut_down_wins() -> None:
    async with fleet(Teller(60, pause=0.5)) as hosts:
        first = hosts.host(options=options())
        other = hosts.host(queues=False)
        response_id, reader = await started(first, True)
        draining = asyncio.create_task(drain(first))
        await asyncio.sleep(0.3)
        await other.cancel(response_id)
        await draining
        entry = hosts.entries[response_id][0]
        assert entry.signal.is_set()
        assert entry.context.shutdown.is_set()
        assert entry.context.client_cancelled
        followed = await other.replay(response_id)
        await followed.whole()
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            cancelled=True,
            seen=[reader.view, followed.view],
        )
