"""Turns that came to nothing: their chain goes on from where its clients know it to be (S2 to S5, V9).

A turn is retracted when its client went away, refused when its handler said so, abandoned when it could not be
recorded. Storage may carry out a write of an abandoned one long after it was given up.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from protocol.errors import ApiError
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.driver import RESPONSES, StorageDriver
from storage.errors import StorageError, StorageUnavailable
from storage.seam import Fault, Moment
from tests.support.engines import PRINCIPAL, Fleet, Handler, Host, HostGone, background, fleet, key_of, until
from tests.support.invariants import assert_chain
from tests.support.turns import Turns, lasting, until_opened, until_told
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
LOCKING = ResponsesServerOptions(resilient_background=True)

LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""

LONG_AFTER = 300.0
"""Seconds after which nothing of an abandoned turn is still on its way."""

type Json = dict[str, Any]


def refusing(turns: Turns, *, steered: bool = False) -> Handler:
    """Refuses what begins with "bad" (with `steered`, once a newer turn waits); the rest are turns."""

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        if str(request["input"]).startswith("bad"):
            if steered:
                await signal.wait()
            raise ValueError("not this")
        async for event in turns(request, context, signal):
            yield event

    return handler


async def cut_off(hosts: Fleet, host: Host, text: str, previous: str) -> str:
    """A streamed turn whose client saw the id and went away."""
    reader = await host.stream({"input": text, "previous_response_id": previous})
    response_id = await reader.response_id()
    await reader.leave()
    assert (await hosts.finished(response_id)).status == "cancelled"
    return response_id


# -- retracted and refused turns --------------------------------------------------------------------------------------


async def test_a_turn_may_follow_a_retracted_one_whose_client_saw_it_though_an_earlier_try_was_retracted_too() -> None:
    turns = Turns(until_told)
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE)
        turns.gates["first"].set()
        first = await host.create({"input": "first"})
        seen = await cut_off(hosts, host, "seen", first["id"])
        gone = asyncio.Event()

        async def disconnected() -> bool:
            return gone.is_set()

        unseen = asyncio.ensure_future(
            host.create({"input": "again", "previous_response_id": seen}, disconnected=disconnected)
        )
        await until(lambda: turns.entered("again"))
        gone.set()
        assert (await unseen)["status"] == "cancelled"
        turns.gates["again"].set()
        assert (await host.create({"input": "again", "previous_response_id": seen}))["status"] == "completed"


async def test_a_turn_may_follow_a_retracted_one_after_another_was_refused_there() -> None:
    turns = Turns(until_told)
    async with fleet(refusing(turns)) as hosts:
        host = hosts.host(options=STEERABLE)
        for text in ("first", "good"):
            turns.gates[text].set()
        first = await host.create({"input": "first"})
        seen = await cut_off(hosts, host, "seen", first["id"])
        with pytest.raises(ApiError):
            await host.create({"input": "bad", "previous_response_id": seen})
        assert (await host.create({"input": "good", "previous_response_id": seen}))["status"] == "completed"


async def test_a_chain_whose_very_first_turn_was_retracted_goes_on_from_what_was_before_it() -> None:
    """What it continues was made before chains were steerable, and is no turn itself."""
    turns = Turns(until_told)
    turns.gates["first"].set()
    async with fleet(turns) as hosts:
        first = await hosts.host(options=LOCKING).create({"input": "first"})
        host = hosts.host(options=STEERABLE)
        await cut_off(hosts, host, "second", first["id"])
        turns.gates["second"].set()
        assert (await host.create({"input": "second", "previous_response_id": first["id"]}))["status"] == "completed"


async def test_a_chain_whose_very_first_turn_was_abandoned_goes_on_from_what_was_before_it() -> None:
    async with fleet(Turns()) as hosts:
        first = await hosts.host(options=LOCKING).create({"input": "first"})
        host = hosts.host(options=STEERABLE)
        host.seam.inject(Fault(operation="row.insert", kind="before", times=2))
        following = {"input": "second", "previous_response_id": first["id"]}
        with pytest.raises(StorageUnavailable):
            await host.create(following)
        await hosts.quiet()
        assert (await hosts.storage.chains.read(key_of(first["id"]))).turns == 0
        assert (await host.create(following))["status"] == "completed"


# -- abandoned turns --------------------------------------------------------------------------------------------------


class LateCommit:
    """A line on which the first transaction of a turn gets no answer, nor its repetition; it is stored much later."""

    def __init__(self, inner: StorageDriver, seconds: float) -> None:
        self.outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether storage took it in the end."""
        self._inner = inner
        self._seconds = seconds
        self._silent = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def transact(self, table: str, operations: Any) -> Any:
        if table != RESPONSES or not self._silent:
            return await self._inner.transact(table, operations)
        self._silent -= 1
        if self._silent:
            self._late = asyncio.ensure_future(self._commit(table, operations))
        raise StorageUnavailable

    async def _commit(self, table: str, operations: Any) -> None:
        await asyncio.sleep(self._seconds)
        try:
            await self._inner.transact(table, operations)
        except StorageError:
            self.outcome.set_result(False)
        else:
            self.outcome.set_result(True)


@pytest.mark.parametrize("seconds", [0.0, 3.0])
@pytest.mark.parametrize("mode", ["foreground", "background", "eager"])
async def test_a_late_commit_of_an_abandoned_turn_does_not_lock_its_conversation(mode: str, seconds: float) -> None:
    async with fleet(Turns()) as hosts:
        worker = hosts.host(options=LOCKING)
        await worker.create({"input": "first", "conversation": "c"})
        lines: list[LateCommit] = []

        def line(driver: StorageDriver) -> Any:
            lines.append(LateCommit(driver, seconds))
            return lines[-1]

        api = hosts.host(options=LOCKING, queues=False, eager_start=mode == "eager", line=line)
        body = {"input": "second", "conversation": "c", "background": mode != "foreground"}
        with pytest.raises(StorageUnavailable):
            await api.create(body)
        await asyncio.sleep(LONG_AFTER)
        await lines[0].outcome
        third = await worker.create({"input": "third", "conversation": "c"})
        assert third["status"] == "completed"


@pytest.mark.parametrize("seconds", [0.0, 3.0])
@pytest.mark.parametrize("mode", ["foreground", "background", "eager"])
async def test_after_a_late_commit_of_an_abandoned_turn_the_one_before_it_is_continued(
    mode: str, seconds: float
) -> None:
    async with fleet(Turns()) as hosts:
        worker = hosts.host(options=STEERABLE)
        first = await worker.create({"input": "first"})
        lines: list[LateCommit] = []

        def line(driver: StorageDriver) -> Any:
            lines.append(LateCommit(driver, seconds))
            return lines[-1]

        api = hosts.host(options=STEERABLE, queues=False, eager_start=mode == "eager", line=line)
        body = {"input": "second", "previous_response_id": first["id"], "background": mode != "foreground"}
        with pytest.raises(StorageUnavailable):
            await api.create(body)
        await asyncio.sleep(LONG_AFTER)
        await lines[0].outcome
        again = await worker.create({"input": "second", "previous_response_id": first["id"]})
        assert again["status"] == "completed"


def lose_an_insert(host: Host, *, looks: int, refused: int = 0) -> None:
    """The insert of a turn is carried out, after so many that the chain refused, and nobody hears of it.

    So many looks at its row fail as well.
    """
    host.seam.inject(Fault(operation="row.insert", kind="after", times=2, after=refused))
    host.seam.inject(Fault(operation="row.confirm", kind="before", times=2, after=refused))
    host.seam.inject(Fault(operation="row.read", kind="before", times=looks))


async def test_an_abandoned_turn_that_another_runs_leaves_its_chain_after_its_handler() -> None:
    turns = Turns(lasting(20))
    async with fleet(turns) as hosts:
        worker = hosts.host(options=STEERABLE)
        api = hosts.host(options=STEERABLE, queues=False)
        lose_an_insert(api, looks=1)
        with pytest.raises(StorageError):
            await api.create(background("first", conversation="c"))
        await until(lambda: turns.entered("first"))
        second = await worker.create(background("second", conversation="c"))
        assert (await hosts.finished(second["id"])).status == "completed"
        (abandoned, _, ended), (following, began, _) = turns.spans
        assert abandoned != following == second["id"]
        assert ended is not None
        assert ended < began
        await assert_chain(hosts.storage, PRINCIPAL, second["id"], turns.spans)


@pytest.mark.parametrize("looks", [1, 2])
async def test_after_an_abandoned_turn_that_another_ran_to_its_end_the_one_before_it_is_continued(looks: int) -> None:
    """Its client was told that there is none, and tries again."""
    async with fleet(Turns(lasting(0.5))) as hosts:
        worker = hosts.host(options=STEERABLE)
        api = hosts.host(options=STEERABLE, queues=False)
        first = await worker.create({"input": "first"})
        lose_an_insert(api, looks=0)
        api.seam.inject(Fault(operation="row.read", kind="before", times=looks, after=1))
        with pytest.raises(StorageError):
            await api.create(background("second", previous_response_id=first["id"]))
        await asyncio.sleep(60)
        assert (await hosts.storage.chains.read(key_of(first["id"]))).last == first["id"]
        again = await worker.create({"input": "second", "previous_response_id": first["id"]})
        assert again["status"] == "completed"


# -- turns whose worker died ------------------------------------------------------------------------------------------


async def test_a_removed_large_turn_whose_worker_died_does_not_strand_the_next_one() -> None:
    """It was refused, its row and its record are gone; only its entry in the ledger knows that another waits."""
    turns = Turns()
    async with fleet(refusing(turns, steered=True)) as hosts:
        host, other = hosts.host(options=STEERABLE), hosts.host(options=STEERABLE)

        async def die(name: str, moment: Moment) -> None:
            if (name, moment) == ("payload.delete", "after"):
                hosts.kill(host)
                await host.passage()

        host.seam.hooks.append(die)
        refused = asyncio.ensure_future(host.create({"input": "bad" + LARGE, "conversation": "c"}))
        await until(lambda: hosts.entries)
        second = await other.create(background("second", conversation="c"))
        with pytest.raises(HostGone):
            await refused
        assert (await hosts.finished(second["id"])).status == "completed"
        await hosts.quiet()


async def test_a_deleted_large_turn_whose_handler_died_with_its_worker_does_not_strand_the_next_one() -> None:
    turns, held = Turns(), asyncio.Event()

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        async for event in turns(request, context, signal):
            yield event
        if request["input"].startswith("first"):
            with suppress(asyncio.CancelledError):
                await held.wait()
            await held.wait()

    async with fleet(handler) as hosts:
        host, other = hosts.host(options=STEERABLE), hosts.host(options=STEERABLE)
        first = await host.create({"input": "first" + LARGE, "conversation": "c"})
        assert (await hosts.storage.chains.read(key_of(first["id"]))).ending == first["id"]
        await other.delete(first["id"])
        await host.crash()
        second = await other.create(background("second", conversation="c"))
        assert (await hosts.finished(second["id"])).status == "completed"
        await hosts.quiet()


async def test_a_turn_behind_a_removed_one_is_started_by_a_worker_that_does_not_steer() -> None:
    """Half of the deployment is older: what was steered goes on all the same."""
    turns = Turns(until_opened)
    for text in ("first", "second"):
        turns.gates[text].set()
    async with fleet(refusing(turns, steered=True)) as hosts:
        host = hosts.host(options=STEERABLE)
        first = await host.create({"input": "first"})

        async def die(name: str, moment: Moment) -> None:
            if (name, moment) == ("row.delete", "after"):
                hosts.kill(host)
                await host.passage()

        host.seam.hooks.append(die)
        refused = asyncio.ensure_future(host.create({"input": "bad", "previous_response_id": first["id"]}))
        await until(lambda: len(hosts.entries) > 1)
        bad = next(each for each in hosts.entries if each != first["id"])
        api = hosts.host(options=STEERABLE, queues=False)
        second = await api.create(background("second", previous_response_id=bad))
        await api.crash()
        with pytest.raises(HostGone):
            await refused
        hosts.host(options=LOCKING)
        assert (await hosts.finished(second["id"])).status == "completed"
