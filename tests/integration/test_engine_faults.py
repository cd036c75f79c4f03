"""Storage that does not answer: before it did what was asked, or after. Each call of a life in turn, once or twice.

A single fault never costs a response its outcome or a handler another entry: nobody died, no lease was lost (V7).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from protocol.errors import ApiError, ServerError, ServiceUnavailable
from storage.driver import StorageDriver
from storage.errors import StorageUnavailable
from storage.seam import Fault, FaultKind, InjectedFault, Moment
from tests.support.engines import PRINCIPAL, Doubling, Fleet, Host, TooLate, background, deltas, fleet, until
from tests.support.handlers import Teller, text_of, words_of
from tests.support.invariants import View, check_nothing_recorded, check_response, read_stored
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MOMENTS: tuple[Moment, ...] = ("before", "after")

LARGE = 40_000
"""Characters that are stored beside the row."""

MODES: dict[str, dict[str, Any]] = {
    "c1": {"background": False, "stream": False},
    "c2": {"background": False, "stream": True},
    "c3": {"background": True, "stream": False},
    "c4": {"background": True, "stream": True},
}

LIVES = [
    ("c1", False, True),
    ("c2", False, True),
    *((mode, eager, resilient) for mode in ("c3", "c4") for eager in (False, True) for resilient in (True, False)),
]
NAMES = [f"{mode}-{'eager' if eager else 'queued'}-{'row1' if row1 else 'row2'}" for mode, eager, row1 in LIVES]


async def life(hosts: Fleet, host: Host, mode: str) -> None:
    """Ask, wait for the end, check that nothing shows of what happened; or a refusal, and nothing is there."""
    flags = MODES[mode]
    body = {"model": "m", "input": "hello", "background": flags["background"]}
    seen: list[View] = []
    try:
        if flags["stream"]:
            reader = await host.stream(body)
            seen = [await reader.whole_view()]
            if reader.types == ["error"]:
                raise StorageUnavailable
            response_id = await reader.response_id()
        else:
            response_id = (await host.create(body))["id"]
    except (StorageUnavailable, ServerError, ServiceUnavailable):
        await asyncio.sleep(120)  # what was begun is undone, later
        await hosts.quiet()
        await check_nothing_recorded(hosts.storage, PRINCIPAL)
        for response_id, entries in hosts.entries.items():
            assert not flags["background"], f"{response_id} was refused and ran {len(entries)} times"
        return
    row = await hosts.finished(response_id, seconds=600)
    stored = await check_response(
        hosts.storage,
        PRINCIPAL,
        response_id,
        seen=seen,
        entries=hosts.entered(response_id),
        generation_of=hosts.generation_of(response_id),
    )
    assert row.status == "completed", f"{row.status}: {(stored.snapshot or {}).get('error')}"
    assert text_of(stored.snapshot or {}) == "e1n0 e1n1 e1n2 "
    assert await hosts.ids() == [response_id], "there is another record"
    await hosts.quiet()


async def calls_of(mode: str, **settings: Any) -> list[str]:
    async with fleet(Teller(3, pause=0.3)) as hosts:
        host = hosts.host(**settings)
        await life(hosts, host, mode)
        return list(host.calls)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("mode", "eager", "resilient"), LIVES, ids=NAMES)
async def test_a_fault_of_any_storage_call_does_not_show(
    mode: str, eager: bool, resilient: bool, times: int, moment: Moment
) -> None:
    settings: dict[str, Any] = {"eager_start": eager, "resilient": resilient}
    wrong = []
    for number, name in enumerate(await calls_of(mode, **settings), start=1):
        async with fleet(Teller(3, pause=0.3)) as hosts:
            host = hosts.host(**settings)
            hosts.host(queues=False).serve_timer().serve_queues("responses-watch")
            host.fail_at(number, moment, times)
            try:
                await life(hosts, host, mode)
            except Exception as error:
                wrong.append(f"{moment} call {number}, {name}: {type(error).__name__}: {error} ({host.calls})")
    assert not wrong, "\n".join(wrong)


async def give_back(
    disturb: Callable[[Host], InjectedFault | None], resilient: bool, stream: bool, patience: float
) -> bool:
    """A start message comes to a host that is `disturb`ed, and then to another; whether the first gave it back."""
    teller, busy = Teller(3, pause=0.3), Teller(4_000, pause=1.0)

    def handler(request: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        return (busy if request["input"] == "busy" else teller)(request, context, signal)

    async with fleet(handler) as hosts:
        api = hosts.host(queues=False, resilient=resilient)
        first = hosts.host(resilient=resilient)
        # It is busy with something else too, and so stays alive in its ledger.
        occupation = await first.stream({"input": "busy"})
        await occupation.until(3)
        fault = disturb(first)
        await (api.stream if stream else api.create)(background())
        try:
            await until(lambda: first.failures, seconds=patience)
        except TooLate:
            pass
        first.stop_serving()
        if fault is not None:
            fault.remove()
        second = hosts.host(resilient=resilient)
        (response_id,) = await hosts.ids()
        row = await hosts.finished(response_id, seconds=200)
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
        assert row.status == "completed"
        assert not second.poisoned
        return bool(first.failures)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("resilient", [True, False])
async def test_a_message_that_a_fault_gave_back_may_come_to_another_host(resilient: bool, stream: bool) -> None:
    """The function fails, the queue shows the message again, and who gets it finds a claim half made by a live host."""

    def fail_at(host: Host, number: int, moment: Moment) -> None:
        host.fail_at(len(host.calls) + number, moment)

    for number in range(1, 16):
        for moment in MOMENTS:
            try:
                await give_back(lambda host: fail_at(host, number, moment), resilient, stream, 5)  # noqa: B023
            except AssertionError as error:
                raise AssertionError(f"{moment} call {number}: {error}") from error


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("operation", ["row.read", "ledger.commit"])
async def test_a_message_that_an_outage_gave_back_comes_to_another_host(operation: str, kind: FaultKind) -> None:
    """As above, for as long as it takes until the function gives up."""

    def outage(host: Host) -> InjectedFault:
        return host.seam.inject(Fault(operation=operation, kind=kind))

    assert await give_back(outage, True, True, 600)


@pytest.mark.parametrize(("mode", "eager", "resilient"), LIVES, ids=NAMES)
async def test_a_write_that_the_client_repeated_counts_once(mode: str, eager: bool, resilient: bool) -> None:
    """The storage client retries by itself: its second try meets what the first one did."""
    settings: dict[str, Any] = {"eager_start": eager, "resilient": resilient}

    async def live(repeated: int) -> list[str]:
        async with fleet(Teller(3, pause=0.3)) as hosts:
            lines: list[Doubling] = []

            def line(driver: StorageDriver) -> StorageDriver:
                lines.append(Doubling(driver, repeated))
                return cast("StorageDriver", lines[0])

            host = hosts.host(line=line, **settings)
            hosts.host(queues=False).serve_timer().serve_queues("responses-watch")
            await life(hosts, host, mode)
            return lines[0].writes

    wrong = []
    writes = await live(0)
    assert len(writes) > 3
    for number, name in enumerate(writes, start=1):
        try:
            await live(number)
        except Exception as error:
            wrong.append(f"write {number}, {name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mode", ["c1", "c2", "c3", "c4"])
@pytest.mark.parametrize("eager", [False, True])
async def test_an_account_that_does_not_answer_refuses_and_records_nothing(mode: str, eager: bool) -> None:
    """R1: never just in memory instead."""
    async with fleet(Teller(3)) as hosts:
        host = hosts.host(eager_start=eager)
        outage = host.seam.inject(Fault(operation="*", kind="before"))
        body = {"input": "hi", "background": MODES[mode]["background"]}
        if mode == "c2":
            reader = await host.stream(body)
            await reader.whole()
            assert reader.types == ["error"]
            assert reader.events[0]["sequence_number"] == 0
        elif mode == "c1":
            with pytest.raises((StorageUnavailable, ApiError)) as refused:
                await host.create(body)
            assert getattr(refused.value, "status", 500) >= 500
        else:
            with pytest.raises(StorageUnavailable):
                await (host.stream if mode == "c4" else host.create)(body)
            assert not hosts.entries
        outage.remove()
        await hosts.quiet()
        await check_nothing_recorded(hosts.storage, PRINCIPAL)
        assert not host.engine.runtime.running
        response = await host.create({"input": "again"})
        assert response["status"] == "completed"


async def test_a_foreground_stream_that_cannot_be_recorded_is_one_error_event_numbered_zero() -> None:
    """W4: what the handler said meanwhile was never sent, so it takes no number."""
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        host.seam.inject(Fault(operation="ledger.begin", kind="delay", delay=2.0))
        host.seam.inject(Fault(operation="ledger.begin", kind="before"))
        reader = await host.stream({"input": "hi"})
        await reader.whole()
        assert reader.types == ["error"]
        assert reader.events[0]["sequence_number"] == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_an_outage_at_the_end_shorter_than_patience_is_only_a_delay(stream: bool, kind: Any) -> None:
    """R14."""
    async with fleet(Teller(3, pause=0.5)) as hosts:
        host = hosts.host()
        reader = await host.stream(background()) if stream else None
        response_id = await reader.response_id() if reader else (await host.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        await asyncio.sleep(0.7)
        outage = host.seam.inject(Fault(operation="row.*", kind=kind))
        await asyncio.sleep(15)
        outage.remove()
        assert (await hosts.finished(response_id)).status == "completed"
        seen = [await reader.whole_view()] if reader else []
        await check_response(hosts.storage, PRINCIPAL, response_id, seen=seen, entries=hosts.entered(response_id))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_an_outage_at_the_end_longer_than_patience_is_a_storage_error(stream: bool, kind: Any) -> None:
    """R14: never stuck in progress; the outcome that was stored first counts, if there was one."""
    async with fleet(Teller(3, pause=0.5)) as hosts:
        host = hosts.host()
        reader = await host.stream(background()) if stream else None
        response_id = await reader.response_id() if reader else (await host.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        await asyncio.sleep(0.7)
        outage = host.seam.inject(Fault(operation="row.*", kind=kind))
        await asyncio.sleep(60)
        outage.remove()
        row = await hosts.finished(response_id)
        seen = [await reader.whole_view()] if reader else []
        await check_response(hosts.storage, PRINCIPAL, response_id, seen=seen, entries=hosts.entered(response_id))
        if kind == "before":
            assert (row.status, row.error_code) == ("failed", "storage_error")
        await hosts.quiet()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_foreground_outage_longer_than_patience_tells_what_is_stored_later(stream: bool, kind: Any) -> None:
    """R14, W4: whatever the client was told in the end is what a GET says once storage is back."""
    async with fleet(Teller(3, pause=0.5)) as hosts:
        host = hosts.host()
        call = None
        reader = None
        if stream:
            reader = await host.stream({"input": "hi"})
        else:
            call = asyncio.create_task(host.create({"input": "hi"}))
        await until(lambda: hosts.entries)
        response_id = next(iter(hosts.entries))
        await asyncio.sleep(0.7)
        outage = host.seam.inject(Fault(operation="row.*", kind=kind))
        await asyncio.sleep(60)
        told: dict[str, Any] = {}
        if call is not None:
            told = await call
        elif reader is not None:
            await reader.whole()
            told = reader.events[-1]["response"]
        outage.remove()

        async def agrees() -> bool:
            return bool(await host.get(response_id) == told)

        await hosts.finished(response_id)
        await until(agrees, seconds=60)
        if kind == "before":
            assert (told["status"], told["error"]["code"]) == ("failed", "storage_error")


async def test_an_outage_of_the_log_is_waited_for_by_handler_and_reader() -> None:
    async with fleet(Teller(5, pause=0.5)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await reader.until(4)
        outage = host.seam.inject(Fault(operation="log.*", kind="after"))
        await asyncio.sleep(20)
        outage.remove()
        view = await reader.whole_view()
        assert (await hosts.finished(response_id)).status == "completed"
        await check_response(hosts.storage, PRINCIPAL, response_id, seen=[view], entries=hosts.entered(response_id))


async def test_an_endless_outage_of_the_log_ends_the_response_as_failed() -> None:
    """R14, R8: nothing is told that is not in the log."""
    async with fleet(Teller(500, pause=0.5)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await reader.until(4)
        outage = host.seam.inject(Fault(operation="log.append", kind="before"))
        await asyncio.sleep(100)
        outage.remove()
        view = await reader.whole_view()
        row = await hosts.finished(response_id)
        assert (row.status, row.error_code) == ("failed", "storage_error")
        await check_response(hosts.storage, PRINCIPAL, response_id, seen=[view], entries=hosts.entered(response_id))
        await hosts.quiet()


async def test_a_refused_acceptance_leaves_nothing_behind_whatever_was_stored() -> None:
    """Each operation of acceptance out for good, its effects stored or not."""
    for eager in (False, True):
        for kind in ("before", "after"):
            for operation in ("log.create", "log.acquire", "queue.send_start", "row.insert", "ledger.begin"):
                async with fleet(Teller(3)) as hosts:
                    host = hosts.host(eager_start=eager)
                    outage = host.seam.inject(Fault(operation=operation, kind=cast("Any", kind)))
                    case = f"{operation} {kind} {'eager' if eager else 'queued'}"
                    try:
                        reader = await host.stream(background("x" * 50_000))
                    except StorageUnavailable:
                        pass
                    else:
                        outage.remove()
                        view = await reader.whole_view()
                        response_id = await reader.response_id()
                        await check_response(
                            hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), seen=[view]
                        )
                        continue
                    await asyncio.sleep(20)
                    outage.remove()
                    await hosts.quiet()
                    try:
                        await check_nothing_recorded(hosts.storage, PRINCIPAL)
                    except AssertionError as error:
                        raise AssertionError(case) from error


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize(
    ("operation", "kind", "kept"),
    [
        ("payload.put", "before", 1),
        ("payload.put", "after", 1),
        ("row.replace", "before", 1),
        ("row.replace", "after", 2),  # the second try finds the first one's write
    ],
)
async def test_a_checkpoint_that_cannot_be_stored_is_lost_but_not_the_run(
    operation: str, kind: FaultKind, kept: int, crash: bool
) -> None:
    """R11: the run goes on; should it be recovered, then from the last checkpoint that is stored, never a mixture."""
    release = asyncio.Event()
    teller = Teller(
        4,
        pause=0.5,
        checkpoints=True,
        ballast=LARGE if operation == "payload.put" else 0,
        hold=(2, release),
        held=lambda entry: entry == 1,
    )
    async with fleet(teller) as hosts:
        host = hosts.host(finish_patience=3.0)
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await until(lambda: "e1n0 " in deltas(reader.events))
        await asyncio.sleep(0.2)
        fault = host.seam.inject(Fault(operation=operation, kind=kind))
        await asyncio.sleep(8)  # the handler waits behind its second checkpoint
        assert deltas(reader.events)[-1] == "e1n1 "
        assert fault.hits > 0
        stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
        persisted = (stored.snapshot or {})["output"]
        assert words_of({"output": persisted}) == ["e1n0", "e1n1"][:kept]
        if crash:
            await host.crash()
            hosts.host()
        else:
            fault.remove()
            release.set()
        await hosts.finished(response_id)
        final = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view],
            entries=teller.entries[response_id],
            crashes=int(crash),
            generation_of=hosts.generation_of(response_id),
        )
        output = (final.snapshot or {})["output"]
        numbers = range(4)
        if not crash:
            assert words_of({"output": output}) == [f"e1n{number}" for number in numbers]
            return
        assert (teller.contexts[1].persisted_response or {})["output"] == persisted
        assert output[:kept] == persisted
        assert words_of({"output": output[kept:]}) == [f"e2n{number}" for number in numbers[kept:]]


async def test_a_checkpoint_whose_fate_is_unknown_is_found_or_not_but_never_torn() -> None:
    """R11: no try of it was answered; the owner may have to claim its run again, and goes on from what is there."""
    teller = Teller(4, pause=0.5, checkpoints=True)
    async with fleet(teller) as hosts:
        host = hosts.host(finish_patience=3.0)
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await until(lambda: "e1n0 " in deltas(reader.events))
        await asyncio.sleep(0.2)
        fault = host.seam.inject(Fault(operation="row.*", kind="after"))
        await until(lambda: "e1n2 " in deltas(reader.events))
        fault.remove()
        assert fault.hits > 1
        await hosts.finished(response_id)
        final = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view],
            entries=teller.entries[response_id],
            lost_leases=1,
            generation_of=hosts.generation_of(response_id),
        )
        assert [word[-1] for word in words_of(final.snapshot or {})] == list("0123")


async def test_a_lost_reply_to_a_push_costs_one_attempt_at_most() -> None:
    """The receipt of the watch message went with the reply: its worker is suspected, and goes on under a new id."""
    teller = Teller(30, pause=0.5)
    async with fleet(teller) as hosts:
        host = hosts.host()
        hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        for owner in hosts.hosts:
            owner.seam.inject(Fault(operation="queue.push_watch", kind="after", times=1))
        await reader.whole()
        await hosts.finished(response_id)
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view],
            entries=teller.entries[response_id],
            lost_leases=1,
        )
