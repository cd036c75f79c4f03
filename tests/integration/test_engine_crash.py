"""A process killed at each of its storage calls, right before it or right after storage did it, and what others make
of it. In virtual time over memory, with the intervals of production.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from protocol.errors import CannotCancel, ResponseDeleted, ResponseNotFound
from resilience.context import ResponseContext
from storage.driver import WORK_QUEUE
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, Reader, background, fleet, until
from tests.support.handlers import Teller, entry_of, text_of
from tests.support.invariants import check_nothing_left, check_response, check_stream, read_stored
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MOMENTS: tuple[Moment, ...] = ("before", "after")


@dataclass(frozen=True)
class Scenario:
    """A background response whose first worker dies."""

    stream: bool
    eager: bool
    resilient: bool
    checkpoints: bool

    def __str__(self) -> str:
        words = [
            "c4" if self.stream else "c3",
            "eager" if self.eager else "queued",
            "row1" if self.resilient else "row2",
        ]
        return "-".join([*words, "checkpoints"] if self.checkpoints else words)

    def teller(self) -> Teller:
        return Teller(4, pause=0.5, checkpoints=self.checkpoints)

    def host(self, hosts: Fleet, **more: Any) -> Host:
        return hosts.host(resilient=self.resilient, eager_start=self.eager, **more)


SCENARIOS = [
    Scenario(stream, eager, resilient, checkpoints)
    for stream in (False, True)
    for eager in (False, True)
    for resilient, checkpoints in ((True, False), (True, True), (False, False))
]


async def ask(host: Host, scenario: Scenario) -> tuple[str, Reader | None]:
    if not scenario.stream:
        return (await host.create(background()))["id"], None
    reader = await host.stream(background())
    return await reader.response_id(), reader


async def storage_calls(scenario: Scenario) -> list[str]:
    async with fleet(scenario.teller()) as hosts:
        host = scenario.host(hosts)
        response_id, _ = await ask(host, scenario)
        await hosts.finished(response_id)
        await hosts.quiet()
        return list(host.calls)


async def survive(scenario: Scenario, call: int, moment: Moment) -> None:
    """One life: the first host dies at that call, another one finishes."""
    teller = scenario.teller()
    async with fleet(teller) as hosts:
        victim = scenario.host(hosts)
        victim.crash_at(call, moment)
        reader: Reader | None = None
        answered = ""
        try:
            answered, reader = await ask(victim, scenario)
        except (HostGone, AssertionError):
            pass
        await until(lambda: victim.dead, seconds=60)
        crashed_after_end = answered and (await hosts.row(answered) or pytest.fail("no row")).status == "completed"
        rescuer = scenario.host(hosts).serve_timer()
        resumed: Reader | None = None
        if reader is not None:
            resumed = await rescuer.replay(answered, len(reader.frames) - 1)
        if not answered:
            # Nobody was told an id: either it runs to its end, or nothing of it stays but an empty log.
            await hosts.quiet()
            ids = await hosts.ids()
            assert len(ids) <= 1
            if not ids:
                assert not sum(map(len, hosts.entries.values())), "it ran without a record"
                return
            answered = ids[0]
        # Between its reception and the ledger the message is all there is: its visibility bounds the delay.
        row = await hosts.finished(answered, seconds=hosts.visibility + 60)
        seen = [reader.frames] if reader else []
        if reader is not None and resumed is not None:
            seen.append(await resumed.whole())
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            answered,
            seen=seen,
            entries=teller.entries[answered],
            crashes=1,
            generation_of=entry_of,
        )
        if reader is not None and resumed is not None:
            assert reader.frames + resumed.frames == stored.frames, "V3"
        if scenario.resilient or crashed_after_end:
            assert row.status == "completed"
            told = text_of(stored.snapshot or {})
            assert [word[-1] for word in told.split()] == list("0123"), told
        elif row.status == "failed":
            assert stored.snapshot is not None
            assert stored.snapshot["error"]["additionalInfo"] == {"shutdown_reason": "crash_recovery"}
            assert teller.entries[answered] <= 1, "row 2 was entered again"
        await hosts.quiet()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_an_owner_killed_at_any_storage_call_is_survived(scenario: Scenario) -> None:
    calls = await storage_calls(scenario)
    wrong = []
    for number, name in enumerate(calls, start=1):
        for moment in MOMENTS:
            try:
                await survive(scenario, number, moment)
            except Exception as error:
                wrong.append(f"{moment} call {number}, {name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


class Choppy:
    """Dies (its host does) in each of the first `deaths` entries, after `said` deltas."""

    def __init__(self, deaths: int, said: int = 1, checkpoints: bool = False) -> None:
        self.deaths = deaths
        self.said = said
        self.teller = Teller(5, pause=0.5, checkpoints=checkpoints)
        self.fleet: Fleet | None = None

    async def __call__(self, request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        said = 0
        async for event in self.teller(request, context, signal):
            yield event
            said += event["type"] == "response.output_text.delta"
            if (
                said >= self.said
                and request.get("background")
                and self.teller.entries[context.response_id] <= self.deaths
            ):
                await asyncio.sleep(0.3)
                assert self.fleet is not None
                self.fleet.kill(self.fleet.entries[context.response_id][-1].host)
                await asyncio.Event().wait()


async def with_deaths(
    deaths: int, *, checkpoints: bool = False, resilient: bool = True, **settings: Any
) -> tuple[Any, Choppy, str]:
    handler = Choppy(deaths, checkpoints=checkpoints)
    async with fleet(handler) as hosts:
        handler.fleet = hosts
        api = hosts.host(queues=False, resilient=resilient, **settings)
        for _ in range(deaths + 1):
            hosts.host(resilient=resilient, **settings)
        reader = await api.stream(background())
        response_id = await reader.response_id()
        await reader.whole()
        row = await hosts.finished(response_id)
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.frames],
            entries=handler.teller.entries[response_id],
            crashes=deaths,
            generation_of=entry_of,
        )
        assert reader.frames == stored.frames
        assert row.status == stored.row.status
        return stored, handler, response_id


async def test_a_reader_elsewhere_sees_the_reset_of_a_recovered_run_on_the_same_stream() -> None:
    """R7."""
    stored, handler, _ = await with_deaths(1)
    types = [event["type"] for event in stored.events]
    resets = [index for index, name in enumerate(types) if name == "response.in_progress"]
    assert len(resets) == 2
    assert stored.events[resets[1]]["response"]["output"] == []
    first = next(index for index, event in enumerate(stored.events) if entry_of(event) == 2)
    assert resets[1] < first
    assert text_of(stored.snapshot) == "e2n0 e2n1 e2n2 e2n3 e2n4 "
    first_entry, second = handler.teller.contexts
    assert (first_entry.is_recovery, second.is_recovery) == (False, True)
    assert second.persisted_response is not None, "R10: the created snapshot"


async def test_a_checkpoint_is_where_a_recovered_run_goes_on() -> None:
    """Row 11, R10."""
    stored, handler, response_id = await with_deaths(3, checkpoints=True)
    assert text_of(stored.snapshot) == "e1n0 e2n1 e3n2 e4n3 e4n4 " or handler.teller.entries[response_id] == 4
    resets = [event for event in stored.events if event["type"] == "response.in_progress"]
    assert len(resets) == 4
    outputs = [len(reset["response"]["output"]) for reset in resets]
    assert outputs == sorted(outputs)
    for context, reset in zip(handler.teller.contexts[1:], resets[1:], strict=True):
        assert context.persisted_response is not None
        assert [item["id"] for item in context.persisted_response["output"]] == [
            item["id"] for item in reset["response"]["output"]
        ]


async def test_the_record_of_a_recovered_entry_equals_that_of_the_first() -> None:
    """R3."""
    choppy = Choppy(1)
    seen: list[dict[str, Any]] = []

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        names = "response_id client_headers query_parameters principal created_at previous_response_id conversation_id"
        facts = {name: getattr(context, name) for name in names.split()}
        for resolve in (False, True):
            facts[f"items {resolve}"] = await context.get_input_items(resolve_references=resolve)
        seen.append({**facts, "request": request, "history": await context.get_history()})
        async for event in choppy(request, context, signal):
            yield event

    async with fleet(handler) as hosts:
        choppy.fleet = hosts
        api = hosts.host(queues=False)
        hosts.host()
        hosts.host()
        previous = await api.create({"input": "before"})
        body = background(
            previous_response_id=previous["id"],
            agent_reference={"name": "a", "version": "1"},
            metadata={"k": "v"},
        )
        body["input"] = [
            {"role": "user", "content": "x"},
            {"type": "item_reference", "id": previous["output"][0]["id"]},
        ]
        accepted = await api.create(body, headers={"x-client-a": "1"}, query={"q": "2"})
        await hosts.finished(accepted["id"])
        _, first, second = seen
        assert first == second
        assert (first["client_headers"], first["query_parameters"]) == ({"x-client-a": "1"}, {"q": "2"})
        assert first["items False"][1]["type"] == "item_reference"
        assert first["items True"][1] == previous["output"][0]
        assert len(first["history"]) == 2
        assert choppy.teller.contexts[-1].is_recovery


async def test_attempts_are_bounded() -> None:
    """R5."""
    stored, handler, response_id = await with_deaths(5)
    assert handler.teller.entries[response_id] == 5
    assert stored.row.status == "failed"
    assert stored.snapshot["error"]["additionalInfo"] == {"shutdown_reason": "attempts_exhausted"}


async def test_attempts_may_be_used_up() -> None:
    stored, handler, response_id = await with_deaths(4)
    assert handler.teller.entries[response_id] == 5
    assert stored.row.status == "completed"


async def test_a_non_resilient_run_fails_and_keeps_what_was_said_before() -> None:
    """Row 2, path C."""
    stored, handler, response_id = await with_deaths(1, resilient=False)
    assert handler.teller.entries[response_id] == 1
    assert stored.row.status == "failed"
    assert stored.row.error_code == "server_error"
    assert stored.snapshot["error"]["additionalInfo"] == {"shutdown_reason": "crash_recovery"}
    assert stored.snapshot["model"] == "m"


async def test_a_run_goes_on_within_seconds_of_its_owners_death() -> None:
    handler = Choppy(1)
    async with fleet(handler) as hosts:
        handler.fleet = hosts
        first = hosts.host()
        response_id = (await first.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        hosts.host()
        await until(lambda: first.dead)
        died = asyncio.get_running_loop().time()
        await until(lambda: len(hosts.entries[response_id]) == 2)
        assert asyncio.get_running_loop().time() - died < 7


async def test_the_sweep_finds_a_dead_worker_whose_watch_message_is_lost() -> None:
    handler = Choppy(1)
    async with fleet(handler) as hosts:
        handler.fleet = hosts
        first = hosts.host()
        response_id = (await first.create(background()))["id"]
        await until(lambda: first.dead)
        hosts.storage.driver.queues["responses-watch"].clear()  # type: ignore[attr-defined]
        died = asyncio.get_running_loop().time()
        hosts.host().serve_timer()
        assert (await hosts.finished(response_id, seconds=400)).status == "completed"
        assert asyncio.get_running_loop().time() - died < 150
        await hosts.quiet()


async def test_an_adopter_that_dies_is_adopted() -> None:
    """Killed at each of its own storage calls while it adopts."""
    wrong = []
    number = 0
    reached = True
    while reached:
        number += 1
        for moment in MOMENTS:
            handler = Choppy(1)
            async with fleet(handler) as hosts:
                handler.fleet = hosts
                first = hosts.host()
                response_id = (await first.create(background()))["id"]
                await until(lambda first=first: first.dead)  # type: ignore[misc]
                adopter = hosts.host(queues=False).serve_queues("responses-watch")
                adopter.crash_at(number, moment)
                await asyncio.sleep(20)
                reached = adopter.dead
                hosts.host().serve_timer()
                try:
                    row = await hosts.finished(response_id)
                    assert row.status == "completed"
                    await hosts.quiet()
                except AssertionError as error:
                    wrong.append(f"{moment} call {number} of {adopter.calls}: {error}")
    assert number > 5
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreground_owner_killed_at_any_storage_call_leaves_a_failed_response(stream: bool) -> None:
    """Row 3, path C: what a client has an id of is readable; what nobody heard of may be gone."""
    wrong = []
    number = 0
    reached = True
    while reached:
        number += 1
        for moment in MOMENTS:
            async with fleet(Teller(3, pause=0.5)) as hosts:
                victim = hosts.host()
                victim.crash_at(number, moment)
                seen: list[bytes] = []
                try:
                    if stream:
                        reader = await victim.stream({"input": "hi"})
                        seen = reader.frames
                        await reader.whole()
                    else:
                        await victim.create({"input": "hi"})
                except HostGone:
                    pass
                await asyncio.sleep(30)
                reached = victim.dead
                rescuer = hosts.host().serve_timer()
                try:
                    await hosts.quiet()
                    ids = await hosts.ids()
                    assert seen == [] or len(ids) == 1, "R1: a client saw an id without a record"
                    for response_id in ids:
                        stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
                        assert stored.row.status in ("completed", "failed")
                        answer = await rescuer.get(response_id)
                        if answer["status"] == "failed":
                            assert answer["error"]["additionalInfo"] == {"shutdown_reason": "crash_recovery"}
                        await check_response(hosts.storage, PRINCIPAL, response_id)
                        if seen and b"response.completed" in seen[-1]:
                            assert answer == check_stream(seen)[-1]["response"]
                except AssertionError as error:
                    wrong.append(f"{moment} call {number} of {victim.calls}: {error}")
    assert number > 3
    assert not wrong, "\n".join(wrong)


async def each_death(
    act: Callable[[Host, str], Any], check: Callable[[Fleet, str, bool], Any], *, finished: bool, hold: bool = False
) -> None:
    """`act` on a response by a host that dies at each of its calls in turn; then `check` what others find."""
    wrong = []
    number = 0
    reached = True
    while reached:
        number += 1
        for moment in MOMENTS:
            release = asyncio.Event()
            async with fleet(Teller(3, hold=(1, release) if hold else None)) as hosts:
                owner = hosts.host()
                reader = await owner.stream(background())
                response_id = await reader.response_id()
                if finished:
                    await hosts.finished(response_id)
                    await hosts.quiet()
                victim = hosts.host(queues=False)
                victim.crash_at(number, moment)
                acknowledged = True
                try:
                    await act(victim, response_id)
                except HostGone:
                    acknowledged = False
                reached = victim.dead
                try:
                    await check(hosts, response_id, acknowledged)
                except AssertionError as error:
                    wrong.append(f"{moment} call {number} of {victim.calls}: {error}")
    assert number > 2
    assert not wrong, "\n".join(wrong)


async def test_a_canceller_killed_at_any_storage_call_leaves_one_outcome() -> None:
    async def check(hosts: Fleet, response_id: str, acknowledged: bool) -> None:
        row = await hosts.row(response_id)
        assert row is not None
        if row.status != "cancelled":
            assert not acknowledged
            await hosts.hosts[0].cancel(response_id)
        await hosts.finished(response_id)
        await hosts.quiet()
        await check_response(hosts.storage, PRINCIPAL, response_id, cancelled=True)

    await each_death(lambda host, response_id: host.cancel(response_id), check, finished=False, hold=True)


async def test_a_deleter_killed_at_any_storage_call_leaves_nothing_or_everything() -> None:
    async def check(hosts: Fleet, response_id: str, acknowledged: bool) -> None:
        await hosts.quiet()
        try:
            await hosts.hosts[0].get(response_id)
        except ResponseDeleted:
            await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
        else:
            assert not acknowledged
            await check_response(hosts.storage, PRINCIPAL, response_id)

    await each_death(lambda host, response_id: host.delete(response_id), check, finished=True)


async def test_a_cancel_of_a_dead_owners_run_ends_it_without_another_entry() -> None:
    handler = Choppy(1)
    async with fleet(handler) as hosts:
        handler.fleet = hosts
        first = hosts.host()
        reader = await first.stream(background())
        response_id = await reader.response_id()
        await until(lambda: first.dead)
        other = hosts.host()
        resumed = await other.replay(response_id)
        cancelled = await other.cancel(response_id)
        assert cancelled["status"] == "cancelled"
        await resumed.whole()
        await hosts.finished(response_id)
        await hosts.quiet()
        await check_response(
            hosts.storage, PRINCIPAL, response_id, cancelled=True, seen=[reader.frames, resumed.frames]
        )
        assert len(hosts.entries[response_id]) == 1
        with pytest.raises(ResponseNotFound):
            await other.cancel(response_id, principal="a stranger")
        assert await other.cancel(response_id) == cancelled


async def test_a_lost_terminal_frame_is_completed_for_a_reader_that_waits() -> None:
    """R6: the owner dies between its outcome and the frame; nobody but the reader is there."""
    async with fleet(Teller(2)) as hosts:
        owner = hosts.host()
        decisions = 0

        async def die_after_the_outcome(name: str, moment: Moment) -> None:
            nonlocal decisions
            if name == "row.replace" and moment == "after":
                decisions += 1
                if decisions == 2:  # the first one is the claim
                    hosts.kill(owner)
                    await asyncio.Event().wait()

        owner.seam.hooks.append(die_after_the_outcome)
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        await until(lambda: owner.dead)
        other = hosts.host(queues=False)
        resumed = await other.replay(response_id)
        await resumed.whole()
        await check_response(hosts.storage, PRINCIPAL, response_id, seen=[reader.frames, resumed.frames])
        assert (await other.get(response_id))["status"] == "completed"
        with pytest.raises(CannotCancel):
            await other.cancel(response_id)


async def test_many_workers_die_at_random_and_every_response_ends() -> None:
    """Twelve responses, four deaths among five workers, checkpoints and none."""
    teller = Teller(6, pause=0.8, checkpoints=True)
    async with fleet(teller) as hosts:
        api = hosts.host(queues=False)
        victims = [hosts.host(eager_start=index % 2 == 0) for index in range(5)]
        readers = [
            await (victims[index % 5] if index % 3 else api).stream(background(f"{index}")) for index in range(12)
        ]
        ids = [await reader.response_id() for reader in readers]
        for victim in victims[:4]:
            await asyncio.sleep(2.7)
            await victim.crash()
        for response_id in ids:
            row = await hosts.finished(response_id, seconds=600)
            assert row.status == "completed", row
        followers = [await victims[4].replay(response_id) for response_id in ids]
        for follower in followers:
            await follower.whole()
        for response_id, reader, follower in zip(ids, readers, followers, strict=True):
            await check_response(
                hosts.storage,
                PRINCIPAL,
                response_id,
                seen=[reader.frames, follower.frames],
                entries=teller.entries[response_id],
                crashes=4,
                generation_of=entry_of,
            )
        await hosts.quiet()
        assert not hosts.storage.driver.queues[WORK_QUEUE]  # type: ignore[attr-defined]
