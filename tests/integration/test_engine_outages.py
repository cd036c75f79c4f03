"""Storage that is away for a while, or whose reply is lost, costs neither attempts nor responses (R2, R5, R11, R14).

And handlers that do not behave: whoever will not stop, or wants to end the process, ends only its own response.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError

from protocol.aio import ResponseEventStream
from protocol.errors import ApiError
from resilience.context import ResponseContext
from storage.azure_errors import translated
from storage.errors import StorageError, StorageRejected, StorageUnavailable
from storage.seam import Fault, FaultKind
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, background, fleet, start_message, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

OUTAGE = 28.0
"""Seconds: longer than a message's receptions take that fail at once, shorter than the patience with an outcome."""

LONG = 33.0
"""Seconds: longer than that patience."""

LARGE = 40_000
"""Characters that make a snapshot too large for its row."""

type Json = dict[str, Any]


class Outage:
    """All calls of these operations fail, on these hosts, until it is over."""

    def __init__(
        self,
        hosts: list[Host],
        *operations: str,
        kind: FaultKind = "before",
        error: Callable[[], StorageError] = StorageUnavailable,
    ) -> None:
        self._faults = [
            host.seam.inject(Fault(operation=each, kind=kind, error=error)) for host in hosts for each in operations
        ]

    @property
    def hits(self) -> int:
        """How many calls failed."""
        return sum(each.hits for each in self._faults)

    def end(self) -> None:
        """Storage answers again."""
        for fault in self._faults:
            fault.remove()


def forbidden() -> StorageError:
    """What nobody would repeat, though it is over in a moment: rights that were just given, or a clock that is off."""
    return StorageRejected(403)


def not_allowed() -> StorageError:
    """What the driver makes of that."""
    error = HttpResponseError("no")
    error.status_code = 403
    return translated(error, {})


def lost_writes(host: Host) -> list[Outage]:
    """Status writes are carried out, and nobody hears of it."""
    return [Outage([host], "row.replace", kind="after"), Outage([host], "row.confirm")]


def end(outages: list[Outage]) -> None:
    for each in outages:
        each.end()


async def check_ended(hosts: Fleet, response_id: str, *, entries: int, attempt: int = 1) -> None:
    row = await hosts.finished(response_id, seconds=600)
    assert (row.status, row.attempt, hosts.entered(response_id)) == ("completed", attempt, entries)
    await check_response(hosts.storage, PRINCIPAL, response_id, entries=entries, lost_leases=entries - 1)


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503])
def test_an_answer_about_the_moment_is_no_rejection(status: int) -> None:
    """Rights and keys reach the service minutes after they were changed."""
    error = HttpResponseError("no")
    error.status_code = status
    assert isinstance(translated(error, {}), StorageUnavailable)


def test_an_answer_about_the_request_is_a_rejection() -> None:
    error = HttpResponseError("no")
    error.status_code = 413
    assert isinstance(translated(error, {}), StorageRejected)


# -- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StorageUnavailable, forbidden])
async def test_a_table_outage_while_a_message_is_received_does_not_exhaust_its_attempts(
    error: Callable[[], StorageError],
) -> None:
    async with fleet(Teller(2)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host()
        tables = Outage([worker], "row.*", "ledger.*", "chain.*", error=error)
        response_id = (await api.create(background()))["id"]
        await asyncio.sleep(OUTAGE)
        assert tables.hits
        tables.end()
        await check_ended(hosts, response_id, entries=1)
        assert worker.poisoned == []


async def test_one_reception_of_a_message_outlasts_a_table_outage() -> None:
    async with fleet(Teller(2)) as hosts:
        worker = hosts.host(queues=False)
        response_id = (await worker.create(background()))["id"]
        tables = Outage([worker], "row.read")
        delivery = asyncio.ensure_future(worker.deliver(start_message(response_id)))
        await asyncio.sleep(OUTAGE)
        tables.end()
        await delivery
        await check_ended(hosts, response_id, entries=1)


@pytest.mark.parametrize("resilient", [True, False])
async def test_a_claim_whose_reply_was_lost_is_no_recovery(resilient: bool) -> None:
    """Nobody entered the handler before: a response that must not be entered twice is not failed for it."""
    async with fleet(Teller(2)) as hosts:
        api, worker = hosts.host(queues=False, resilient=resilient), hosts.host(resilient=resilient)
        lost = lost_writes(worker)
        response_id = (await api.create(background()))["id"]
        await asyncio.sleep(LONG + 3)
        assert all(each.hits for each in lost)
        end(lost)
        await check_ended(hosts, response_id, entries=1)
        assert [entry.context.is_recovery for entry in hosts.entries[response_id]] == [False]


@pytest.mark.parametrize(
    "operations",
    [("*",), ("log.*",), ("row.*", "log.*", "ledger.*", "chain.*", "payload.*")],
    ids=["everything", "the log", "all but the queues"],
)
async def test_a_run_outlives_seconds_in_which_storage_forbids_everything(operations: tuple[str, ...]) -> None:
    """Messages may be spent meanwhile: the timer is the last net."""
    async with fleet(Teller(20, pause=2.0)) as hosts:
        running = [hosts.host(), hosts.host().serve_timer()]
        reader = await running[0].stream(background())
        response_id = await reader.response_id()
        await asyncio.sleep(5)
        forbidding = Outage(running, *operations, error=not_allowed)
        await asyncio.sleep(10)
        assert forbidding.hits
        forbidding.end()
        row = await hosts.finished(response_id, seconds=600)
        assert row.status == "completed"
        entries = hosts.entered(response_id)
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=entries, lost_leases=entries - 1)


async def test_a_run_that_broke_off_is_claimed_again_after_minutes_in_which_storage_forbids_it() -> None:
    async with fleet(Teller(20, pause=2.0)) as hosts:
        host = hosts.host()
        response_id = (await host.create(background(stream=True)))["id"]
        await asyncio.sleep(5)
        forbidding = Outage([host], "row.*", "log.*", error=forbidden)
        await asyncio.sleep(150)
        assert response_id in host.engine.runtime.running
        forbidding.end()
        await check_ended(hosts, response_id, entries=2, attempt=2)


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hiccup_while_a_large_snapshot_is_read_costs_no_attempts(stream: bool) -> None:
    held = asyncio.Event()
    handler = Teller(3, checkpoints=True, ballast=LARGE, hold=(1, held), held=lambda entry: entry == 1)
    async with fleet(handler) as hosts:
        first = hosts.host()
        response_id = (await first.create(background(stream=stream)))["id"]

        async def checkpointed() -> bool:
            row = await hosts.row(response_id)
            return row is not None and row.snapshot is not None and row.snapshot.blob is not None

        await until(checkpointed)
        other = hosts.host()
        hiccup = other.seam.inject(Fault(operation="payload.get", kind="before", times=6))
        await first.crash()
        await check_ended(hosts, response_id, entries=2, attempt=2)
        assert hiccup.hits == 6


async def test_seconds_in_which_a_snapshot_must_not_be_read_do_not_exhaust_the_attempts() -> None:
    held = asyncio.Event()
    handler = Teller(3, checkpoints=True, ballast=LARGE, hold=(1, held), held=lambda entry: entry == 1)
    async with fleet(handler) as hosts:
        first = hosts.host()
        response_id = (await first.create(background()))["id"]
        await until(lambda: "payload.put" in first.calls)
        await asyncio.sleep(1)
        other = hosts.host()
        forbidding = Outage([other], "payload.get", error=forbidden)
        await first.crash()
        await until(lambda: forbidding.hits)
        await asyncio.sleep(3)
        forbidding.end()
        row = await hosts.finished(response_id)
        assert (row.status, hosts.entered(response_id)) == ("completed", 2)


async def test_a_checkpoint_whose_reply_was_lost_does_not_run_the_handler_again() -> None:
    async with fleet(Teller(3, pause=1.0, checkpoints=True)) as hosts:
        host = hosts.host()
        response_id = (await host.create(background()))["id"]
        await until(lambda: hosts.entered(response_id))
        lost = lost_writes(host)
        await asyncio.sleep(LONG)
        assert all(each.hits for each in lost)
        end(lost)
        await check_ended(hosts, response_id, entries=1)


async def test_kept_metadata_whose_reply_was_lost_does_not_fail_a_response_that_must_run_once() -> None:
    """Row 2: the run goes on from its own write, of which it did not hear."""
    flushing, lost = asyncio.Event(), asyncio.Event()

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        flushing.set()
        await lost.wait()
        context.conversation_chain_metadata["a"] = 1
        with suppress(StorageError):
            await context.conversation_chain_metadata.flush()
        yield stream.emit_completed()

    async with fleet(handler) as hosts:
        host = hosts.host(resilient=False)
        response_id = (await host.create(background()))["id"]
        await flushing.wait()
        writes = lost_writes(host)
        lost.set()
        await asyncio.sleep(LONG)
        assert all(each.hits for each in writes)
        end(writes)
        await check_ended(hosts, response_id, entries=1)


@pytest.mark.parametrize(("write", "resilient"), [("checkpoint", True), ("metadata", True), ("metadata", False)])
async def test_a_write_of_a_turn_whose_reply_was_lost_does_not_run_the_handler_again(
    write: str, resilient: bool
) -> None:
    """The outcome of a turn is written over it, with the chain; in row 2 the response would even fail."""
    writing, lost = asyncio.Event(), asyncio.Event()

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        writing.set()
        await lost.wait()
        if write == "metadata":
            context.conversation_chain_metadata["a"] = 1
            with suppress(StorageError):
                await context.conversation_chain_metadata.flush()
        else:
            async for event in stream.output_item_message("hi"):
                yield event
            yield stream.checkpoint()
        yield stream.emit_completed()

    async with fleet(handler) as hosts:
        host = hosts.host(resilient=resilient)
        response_id = (await host.create(background(conversation="talk")))["id"]
        await writing.wait()
        writes = lost_writes(host)
        lost.set()
        await asyncio.sleep(LONG)
        assert all(each.hits for each in writes)
        end(writes)
        await check_ended(hosts, response_id, entries=1)


async def test_a_chain_that_cannot_be_read_for_a_while_costs_a_recovery_no_attempts() -> None:
    async with fleet(Teller(4, pause=1.0)) as hosts:
        first = hosts.host()
        response_id = (await first.create(background()))["id"]
        await until(lambda: hosts.entered(response_id))
        other = hosts.host()
        outage = Outage([other], "chain.read")
        await first.crash()
        await until(lambda: outage.hits)
        await asyncio.sleep(OUTAGE - 5)
        outage.end()
        await check_ended(hosts, response_id, entries=2, attempt=2)


async def test_a_rejected_note_of_ended_responses_leaves_those_that_run_alone() -> None:
    slow, short = Teller(60, pause=2.0), Teller(1)
    async with fleet(slow) as hosts:
        host = hosts.host(resilient=False)
        hosts.host(resilient=False)
        running = asyncio.ensure_future(host.create({"input": "hi"}))
        await until(lambda: slow.contexts)
        rejected = host.seam.inject(Fault(operation="expiry.note", kind="before", error=forbidden, times=1))
        hosts.handler = short
        await host.create({"input": "short"})
        assert (await running)["status"] == "completed"
        assert rejected.hits == 1
        await hosts.quiet()
        noted = [each.id for due in await hosts.storage.expiry.due(hosts.now() + 7_200, 10) for each in due.responses]
        assert sorted(noted) == sorted(await hosts.ids())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreground_response_whose_outcome_was_rejected_has_failed(stream: bool) -> None:
    """V1: its id was streamed. Its client heard of an error, not of an outcome."""
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        host.seam.inject(Fault(operation="row.insert", kind="before", error=lambda: StorageRejected(413), times=1))
        if stream:
            reader = await host.stream({"input": "hi"})
            await reader.whole()
            assert reader.types[-1] == "error"
            response_id = await reader.response_id()
        else:
            with pytest.raises(StorageRejected):
                await host.create({"input": "hi"})
            (response_id,) = await until(hosts.ids)
        assert (await host.get(response_id))["error"]["code"] == "server_error"
        assert (await hosts.finished(response_id)).status == "failed"
        await hosts.quiet()


async def test_a_foreground_response_of_which_nothing_can_be_stored_fails_with_its_worker() -> None:
    """Its entry in the ledger stays open for as long as no outcome stands."""
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(), hosts.host()
        rejecting = Outage([host], "row.insert", error=lambda: StorageRejected(413))
        reader = await host.stream({"input": "hi"})
        await reader.whole()
        response_id = await reader.response_id()
        await asyncio.sleep(60)
        assert rejecting.hits >= 2
        assert await hosts.row(response_id) is None
        await host.crash()
        row = await hosts.finished(response_id)
        assert (row.status, hosts.entered(response_id)) == ("failed", 1)
        assert (await other.get(response_id))["error"]["additionalInfo"]["shutdown_reason"] == "crash_recovery"
        await hosts.quiet()


# -- handlers ---------------------------------------------------------------------------------------------------------


async def test_a_handler_that_swallows_its_cancellation_does_not_hold_up_the_hand_over() -> None:
    released = asyncio.Event()

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        while not context.is_recovery and not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        yield stream.emit_completed()

    async with fleet(handler) as hosts:
        leaving = hosts.host()
        response_id = (await leaving.create(background()))["id"]
        await until(lambda: hosts.entered(response_id))
        other = hosts.host()
        leaving.stop_serving()
        draining = asyncio.ensure_future(leaving.inside(leaving.engine.drain()))
        try:
            await asyncio.wait_for(draining, 30)
            await check_ended(hosts, response_id, entries=2)
            assert hosts.entries[response_id][1].host is other
        finally:
            released.set()
            await asyncio.sleep(1)


async def _exit(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
    if request["input"] == "first":
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
    if request["input"] in ("first", "at once"):
        raise SystemExit(3)
    async for event in Teller(1)(request, context, signal):
        yield event


@pytest.mark.parametrize("text", ["first", "at once"])
@pytest.mark.parametrize("in_background", [True, False])
async def test_a_handler_that_exits_ends_only_its_own_response(in_background: bool, text: str) -> None:
    """As the parser of a command line does, for one."""
    async with fleet(_exit) as hosts:
        host = hosts.host()
        body = {"background": in_background}
        if text == "at once" and not in_background:
            with pytest.raises(ApiError) as error:
                await host.create({"input": text, **body})
            assert error.value.status == 500
        else:
            made = await host.create({"input": text, **body})
            assert (await hosts.finished(made["id"])).status == "failed"
        after = await host.create({"input": "after", **body})
        assert (await hosts.finished(after["id"])).status == "completed"
        await hosts.quiet()


async def test_an_outage_does_not_make_a_process_ask_for_ever_more_often() -> None:
    async with fleet(Teller(2)) as hosts:
        host = hosts.host(queues=False)
        outage = host.seam.inject(Fault(operation="ledger.*", kind="before"))

        async def ask() -> None:
            while True:
                with suppress(StorageError, ApiError, HostGone):
                    await host.create({"input": "hi"})
                await asyncio.sleep(1)

        asking = host.spawn(ask(), "asking")
        rates = []
        for _ in range(5):
            await asyncio.sleep(60)
            before = host.seam.counts["ledger.entries"]
            await asyncio.sleep(10)
            rates.append((host.seam.counts["ledger.entries"] - before) / 10)
        asking.cancel()
        outage.remove()
        assert rates[-1] < 10
