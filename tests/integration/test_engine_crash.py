"""A process killed at each of its storage calls, right before it or right after storage did it, and what others make
of it. In virtual time over memory, with the intervals of production.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from protocol import jsonio
from protocol.errors import CannotCancel, ResponseDeleted, ResponseNotFound
from resilience.context import ResponseContext
from storage.driver import WORK_QUEUE
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, Fleet, Host, HostGone, Reader, background, deltas, fleet, until
from tests.support.handlers import Teller, entry_of, text_of, words_of
from tests.support.invariants import check_nothing_left, check_response, check_stream, read_stored
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MOMENTS: tuple[Moment, ...] = ("before", "after")


MESSAGE_SECONDS = 60.0
"""When the message of a process that died comes back; sooner than in production, for waiting costs polls."""

LARGE = 40_000
"""Characters of what is stored beside its row."""


@dataclass(frozen=True)
class Scenario:
    """A background response whose first worker dies.

    Attributes:
        large: its request and all its checkpoints are stored beside the row.
        segment_blocks: how soon its log rolls over; 0 for never.
    """

    stream: bool
    eager: bool
    resilient: bool
    checkpoints: bool
    large: bool = False
    segment_blocks: int = 0

    def __str__(self) -> str:
        words = [
            "c4" if self.stream else "c3",
            "eager" if self.eager else "queued",
            "row1" if self.resilient else "row2",
        ]
        words += [name for name in ("checkpoints", "large") if getattr(self, name)]
        return "-".join([*words, "rolling"] if self.segment_blocks else words)

    @property
    def request(self) -> dict[str, Any]:
        return background("x" * LARGE if self.large else "hello")

    def teller(self) -> Teller:
        return Teller(4, pause=0.5, checkpoints=self.checkpoints, ballast=LARGE if self.large else 0)

    def host(self, hosts: Fleet) -> Host:
        settings: dict[str, Any] = {"segment_blocks": self.segment_blocks} if self.segment_blocks else {}
        return hosts.host(resilient=self.resilient, eager_start=self.eager, **settings)


SCENARIOS = [
    Scenario(stream, eager, resilient, checkpoints)
    for stream in (False, True)
    for eager in (False, True)
    for resilient, checkpoints in ((True, False), (True, True), (False, False))
]
SCENARIOS += [
    Scenario(stream=True, eager=False, resilient=True, checkpoints=True, large=True),
    Scenario(stream=True, eager=False, resilient=True, checkpoints=True, segment_blocks=2),
]


async def ask(host: Host, scenario: Scenario) -> tuple[str, Reader | None]:
    if not scenario.stream:
        return (await host.create(scenario.request))["id"], None
    reader = await host.stream(scenario.request)
    return await reader.response_id(), reader


async def last_checkpoint(hosts: Fleet, response_id: str) -> list[dict[str, Any]]:
    """The output that a recovered handler is given, as it is stored now."""
    stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
    items: list[dict[str, Any]] = (stored.snapshot or {}).get("output") or []
    return items


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
        hosts.visibility = MESSAGE_SECONDS
        victim = scenario.host(hosts)
        victim.crash_at(call, moment)
        reader: Reader | None = None
        answered = ""
        try:
            answered, reader = await ask(victim, scenario)
        except (HostGone, AssertionError):
            pass
        await until(lambda: victim.dead, seconds=60)
        await asyncio.sleep(0.1)  # what it had in the air has arrived, or never will
        kept = await last_checkpoint(hosts, answered) if answered and scenario.checkpoints else []
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
        if resumed is not None:
            await resumed.whole()
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            answered,
            seen=[each.view for each in (reader, resumed) if each],
            entries=teller.entries[answered],
            crashes=1,
            generation_of=hosts.generation_of(answered),
        )
        if reader is not None and resumed is not None:
            assert reader.frames + resumed.frames == stored.frames, "V3"
        if scenario.resilient or crashed_after_end:
            assert row.status == "completed"
            told = words_of(stored.snapshot or {})
            assert [word[-1] for word in told] == list("0123"), told
            assert (stored.snapshot or {})["output"][: len(kept)] == kept, "R11: a checkpoint is lost"
            recovered = [context for context in teller.contexts if context.is_recovery]
            assert all((context.persisted_response or {})["output"] == kept for context in recovered), "R10"
            told_by_the_last = told[len(kept) :] if scenario.checkpoints else told
            last_entry = f"e{teller.entries[answered]}"
            assert all(word.startswith(last_entry) for word in told_by_the_last), told
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
    deaths: int, *, said: int = 1, checkpoints: bool = False, resilient: bool = True, **settings: Any
) -> tuple[Any, Choppy, str]:
    handler = Choppy(deaths, said, checkpoints)
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
            seen=[reader.view],
            entries=handler.teller.entries[response_id],
            crashes=deaths,
            generation_of=hosts.generation_of(response_id),
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
    # Each entry dies behind a checkpoint, in the next message.
    stored, handler, response_id = await with_deaths(3, said=2, checkpoints=True)
    assert handler.teller.entries[response_id] == 4
    assert words_of(stored.snapshot) == ["e1n0", "e2n1", "e3n2", "e4n3", "e4n4"]
    resets = [event["response"]["output"] for event in stored.events if event["type"] == "response.in_progress"]
    assert [len(output) for output in resets] == [0, 1, 2, 3]
    final = stored.snapshot["output"]
    assert len({item["id"] for item in final}) == 5
    for context, output in zip(handler.teller.contexts, resets, strict=True):
        persisted = context.persisted_response
        assert (persisted is None) == (output == [])
        assert (persisted or {"output": []})["output"] == output
        assert final[: len(output)] == output
    assert deltas(stored.events) == [
        f"{word} " for word in ["e1n0", "e1n1", "e2n1", "e2n2", "e3n2", "e3n3", "e4n3", "e4n4"]
    ]


REFERENCE = {"type": "agent_reference", "name": "a", "version": "1", "owner": "them"}
HEADERS = {"x-client-trace": "T1", "x-client-zone": "ü, 2", "x-client-empty": ""}
QUERY = {"api-version": "2025-01-01", "q": "a b&c", "empty": ""}
TWO_MEGABYTES = 2 << 20


def manifold_input(earlier: str) -> list[dict[str, Any]]:
    """Text, an image and a reference to an item, two megabytes together."""
    image = "data:image/png;base64," + "iVBORw0KGgo=" * (TWO_MEGABYTES // 24)
    return [
        {"role": "user", "content": "ü" * (TWO_MEGABYTES // 4)},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "what is this?"},
                {"type": "input_image", "image_url": image, "detail": "low"},
            ],
        },
        {"type": "item_reference", "id": earlier},
    ]


async def test_the_record_of_a_recovered_entry_equals_that_of_the_first() -> None:
    """R3, B21."""
    choppy = Choppy(1)
    seen: list[bytes] = []

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        names = "response_id client_headers query_parameters principal created_at previous_response_id conversation_id"
        facts = {name: getattr(context, name) for name in names.split()}
        for resolve in (False, True):
            facts[f"items {resolve}"] = await context.get_input_items(resolve_references=resolve)
        # As bytes: what a handler does with its input afterwards must not show.
        seen.append(jsonio.dumps({**facts, "request": request, "history": await context.get_history()}))
        async for event in choppy(request, context, signal):
            yield event

    async with fleet(handler) as hosts:
        choppy.fleet = hosts
        api = hosts.host(queues=False)
        hosts.host()
        hosts.host()
        previous = await api.create({"input": "before"})
        earlier = previous["output"][0]
        body = background(previous_response_id=previous["id"], agent_reference=REFERENCE, metadata={"k": "v"})
        body["input"] = manifold_input(earlier["id"])
        assert len(jsonio.dumps(body)) > TWO_MEGABYTES
        reader = await api.stream(body, headers=HEADERS, query=QUERY)
        response_id = await reader.response_id()
        await reader.whole()
        assert seen[1] == seen[2]
        first = jsonio.loads(seen[1])
        assert (first["client_headers"], first["query_parameters"]) == (HEADERS, QUERY)
        assert first["request"] == {**body, "stream": True}
        assert [item["type"] for item in first["items False"]] == ["message", "message", "item_reference"]
        assert first["items True"][:2] == first["items False"][:2]
        assert first["items True"][2] == earlier
        assert first["items False"][1]["content"][1]["image_url"] == body["input"][1]["content"][1]["image_url"]
        assert len(first["history"]) == 2
        assert [context.is_recovery for context in choppy.teller.contexts[1:]] == [False, True]
        stored = await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view],
            entries=hosts.entered(response_id),
            crashes=1,
            generation_of=hosts.generation_of(response_id),
        )
        for event in stored.events:
            bearers = [event.get("response"), event.get("item"), *(event.get("response") or {}).get("output", ())]
            assert all(bearer["agent_reference"] == REFERENCE for bearer in bearers if bearer), event
        answer = await api.get(response_id)
        assert answer["status"] == "completed"
        assert [bearer["agent_reference"] for bearer in (answer, *answer["output"])] == [REFERENCE, REFERENCE]


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


type Death = tuple[int, Moment]
"""At which call of a host; none leaves it undisturbed."""


def die_at(host: Host, death: Death | None) -> None:
    if death is not None:
        host.crash_at(*death)


async def each_death(play: Callable[[Death | None], Awaitable[Host]]) -> None:
    """`play` with a death at each call of a life in turn; which calls there are, an undisturbed one tells.

    A call that storage refused has no moment after it.
    """
    calls = list((await play(None)).calls)
    assert len(calls) > 1
    wrong = []
    for number, name in enumerate(calls, start=1):
        for moment in MOMENTS:
            try:
                victim = await play((number, moment))
                assert victim.dead or moment == "after", "it did not come so far"
            except AssertionError as error:
                wrong.append(f"{moment} call {number}, {name}: {error}")
    assert not wrong, "\n".join(wrong)


async def test_an_adopter_that_dies_is_adopted() -> None:
    """Killed at each of its own storage calls while it adopts."""

    async def adopt(death: Death | None) -> Host:
        handler = Choppy(1)
        async with fleet(handler) as hosts:
            handler.fleet = hosts
            first = hosts.host()
            response_id = (await first.create(background()))["id"]
            await until(lambda: first.dead)
            adopter = hosts.host(queues=False).serve_queues("responses-watch")
            die_at(adopter, death)
            await asyncio.sleep(20)
            hosts.host().serve_timer()
            row = await hosts.finished(response_id)
            assert row.status == "completed"
            assert len(hosts.entries[response_id]) == 2
            await hosts.quiet()
            return adopter

    await each_death(adopt)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreground_owner_killed_at_any_storage_call_leaves_a_failed_response(stream: bool) -> None:
    """Row 3, path C: what a client has an id of is readable; what nobody heard of may be gone."""

    async def live(death: Death | None) -> Host:
        async with fleet(Teller(3, pause=0.5)) as hosts:
            victim = hosts.host()
            die_at(victim, death)
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
            rescuer = hosts.host().serve_timer()
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
            return victim

    await each_death(live)


async def each_death_of_another(
    act: Callable[[Host, str], Any], check: Callable[[Fleet, str, bool], Any], *, finished: bool, hold: bool = False
) -> None:
    """`act` on a response by a host that dies at each of its calls in turn; then `check` what others find."""

    async def live(death: Death | None) -> Host:
        async with fleet(Teller(3, hold=(1, asyncio.Event()) if hold else None)) as hosts:
            owner = hosts.host()
            reader = await owner.stream(background())
            response_id = await reader.response_id()
            if finished:
                await hosts.finished(response_id)
                await hosts.quiet()
            victim = hosts.host(queues=False)
            die_at(victim, death)
            acknowledged = True
            try:
                await act(victim, response_id)
            except HostGone:
                acknowledged = False
            await check(hosts, response_id, acknowledged)
            return victim

    await each_death(live)


async def test_a_canceller_killed_at_any_storage_call_leaves_one_outcome() -> None:
    async def check(hosts: Fleet, response_id: str, acknowledged: bool) -> None:
        row = await hosts.row(response_id)
        assert row is not None
        if row.status != "cancelled":
            assert not acknowledged
            await hosts.hosts[0].cancel(response_id)
        await hosts.finished(response_id)
        await hosts.quiet()
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), cancelled=True)

    await each_death_of_another(lambda host, response_id: host.cancel(response_id), check, finished=False, hold=True)


async def test_a_canceller_of_what_nobody_owns_leaves_one_outcome_wherever_it_dies() -> None:
    """It claims the run and writes the terminal frame by itself."""

    async def live(death: Death | None) -> Host:
        async with fleet(Teller(3)) as hosts:
            api = hosts.host(queues=False)
            reader = await api.stream(background())
            (response_id,) = await hosts.ids()
            victim = hosts.host(queues=False)
            die_at(victim, death)
            try:
                await victim.cancel(response_id)
            except HostGone:
                row = await hosts.row(response_id)
                if row is None or row.status != "cancelled":
                    await api.cancel(response_id)
            hosts.host().serve_timer()
            await reader.whole()
            await hosts.finished(response_id)
            await hosts.quiet()
            await check_response(hosts.storage, PRINCIPAL, response_id, cancelled=True, seen=[reader.view])
            assert not hosts.entries[response_id]
            return victim

    await each_death(live)


async def test_a_deleter_killed_at_any_storage_call_leaves_nothing_or_everything() -> None:
    async def check(hosts: Fleet, response_id: str, acknowledged: bool) -> None:
        await hosts.quiet()
        try:
            await hosts.hosts[0].get(response_id)
        except ResponseDeleted:
            await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
        else:
            assert not acknowledged
            await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))

    await each_death_of_another(lambda host, response_id: host.delete(response_id), check, finished=True)


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
            hosts.storage,
            PRINCIPAL,
            response_id,
            entries=hosts.entered(response_id),
            cancelled=True,
            seen=[reader.view, resumed.view],
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
        await check_response(
            hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id), seen=[reader.view, resumed.view]
        )
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
        victims[4].serve_timer()  # some may die at rest: nobody else looks for those
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
                seen=[reader.view, follower.view],
                entries=teller.entries[response_id],
                crashes=4,
                generation_of=hosts.generation_of(response_id),
            )
        await hosts.quiet()
        assert not hosts.storage.driver.queues[WORK_QUEUE]  # type: ignore[attr-defined]
