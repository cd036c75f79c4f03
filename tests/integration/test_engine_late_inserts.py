"""The insert of a response's row whose reply comes too late, or that storage carries out after it was given up (R1)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from protocol.errors import ConversationNotFound
from resilience import conversations
from resilience.options import ResponsesServerOptions
from storage.driver import RESPONSES, StorageDriver
from storage.errors import StorageError, StorageUnavailable
from storage.seam import Fault
from tests.integration.test_engine_retention import HOUR, HOURS, expire_all
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet
from tests.support.handlers import Teller
from tests.support.turns import Turns
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LOCKING = ResponsesServerOptions(resilient_background=True)
STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)

type Write = Callable[[str, Any], Awaitable[Any]]


class _Line:
    """A line to storage on which inserts of responses go astray."""

    def __init__(self, inner: StorageDriver) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def insert_entity(self, table: str, operation: Any) -> Any:
        return await self._write(self._inner.insert_entity, table, operation)

    async def transact(self, table: str, operations: Any) -> Any:
        return await self._write(self._inner.transact, table, operations)

    async def _write(self, write: Write, table: str, what: Any) -> Any:
        raise NotImplementedError


class LostReply(_Line):
    """The first insert is carried out, and its client waits `seconds` for the reply, in vain."""

    def __init__(self, inner: StorageDriver, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._lost = False

    async def _write(self, write: Write, table: str, what: Any) -> Any:
        done = await write(table, what)
        if table == RESPONSES and not self._lost:
            self._lost = True
            await asyncio.sleep(self._seconds)
            raise StorageUnavailable
        return done


class LateInsert(_Line):
    """The first insert gets no answer, nor does its repetition; the first one is carried out `seconds` later."""

    def __init__(self, inner: StorageDriver, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._silent = 2
        self._late: asyncio.Task[None] | None = None

    async def _write(self, write: Write, table: str, what: Any) -> Any:
        if table != RESPONSES or not self._silent:
            return await write(table, what)
        self._silent -= 1
        if self._late is None:
            self._late = asyncio.get_running_loop().create_task(self._carry_out(write, table, what))
        raise StorageUnavailable

    async def _carry_out(self, write: Write, table: str, what: Any) -> None:
        await asyncio.sleep(self._seconds)
        try:
            await write(table, what)
        except StorageError:
            pass


def _losing_a_reply(driver: StorageDriver) -> StorageDriver:
    return cast("StorageDriver", LostReply(driver, 2.0))


async def expire_markers(hosts: Fleet, host: Host) -> None:
    """What is left are deletion markers, and retention removes them."""
    for response_id in await hosts.ids():
        row = await hosts.row(response_id)
        assert row is not None
        assert row.deleted
    await expire_all(host)
    assert await hosts.ids() == []


@pytest.mark.parametrize("fields", [{}, {"conversation": "c"}, {"stream": True}], ids=["alone", "turn", "stream"])
async def test_a_response_that_was_claimed_before_the_lost_reply_to_its_insert_was_missed_is_accepted(
    fields: dict[str, Any],
) -> None:
    handler = Teller(5, pause=4)
    async with fleet(handler) as hosts:
        hosts.host(options=LOCKING)
        api = hosts.host(options=LOCKING, queues=False, line=_losing_a_reply)
        if fields.get("stream"):
            response_id = await (await api.stream(background())).response_id()
        else:
            made = await api.create(background(**fields))
            assert made["status"] == "in_progress"  # B10
            response_id = made["id"]
        assert (await hosts.finished(response_id)).status == "completed"
        await hosts.quiet()
        assert (await hosts.ids(), hosts.entered(response_id)) == ([response_id], 1)


async def test_a_response_whose_acceptor_was_declared_dead_before_it_missed_the_reply_is_accepted() -> None:
    handler = Teller(5, pause=4)
    async with fleet(handler) as hosts:
        hosts.host(options=LOCKING)
        eager = hosts.host(
            options=LOCKING,
            queues=False,
            eager_start=True,
            line=lambda driver: cast("StorageDriver", LostReply(driver, 12.0)),
        )
        eager.seam.inject(Fault(operation="queue.push_watch", kind="before"))
        made = await eager.create(background())
        assert made["status"] == "in_progress"
        row = await hosts.finished(made["id"])
        assert (row.status, row.generation) == ("completed", 2)
        assert (await hosts.ids(), hosts.entered(made["id"])) == ([made["id"]], 1)


@pytest.mark.parametrize("seconds", [1.0, 3.0])
@pytest.mark.parametrize("mode", ["eager", "background", "foreground turn", "eager turn"])
async def test_a_row_that_is_inserted_after_its_acceptance_was_given_up_is_refused(mode: str, seconds: float) -> None:
    async with fleet(Teller(1)) as hosts:
        hosts.host(options=LOCKING)
        host = hosts.host(
            options=STEERABLE if "turn" in mode else LOCKING,
            retention_days=HOURS,
            eager_start="eager" in mode,
            line=lambda driver: cast("StorageDriver", LateInsert(driver, seconds)),
        )
        with pytest.raises(StorageUnavailable):
            await host.create({"input": "hi"} if "foreground" in mode else background())
        await asyncio.sleep(10 * HOUR)
        await expire_markers(hosts, host)
        assert not await hosts.storage.driver.query_entities(RESPONSES)


@pytest.mark.parametrize("in_background", [False, True])
async def test_a_conversation_whose_only_turn_was_never_recorded_does_not_exist(in_background: bool) -> None:
    async with fleet(Turns()) as hosts:
        host = hosts.host(options=LOCKING)
        host.seam.inject(Fault(operation="row.insert", kind="before", times=2))
        with pytest.raises(StorageUnavailable):
            await host.create({"input": "x", "conversation": "c", "background": in_background})
        await hosts.quiet()
        with pytest.raises(ConversationNotFound):
            await host.inside(conversations.get(host.engine.runtime, PRINCIPAL, "c"))


@pytest.mark.parametrize("eager", [False, True])
async def test_a_process_that_dies_right_behind_a_marker_leaves_it_to_retention(eager: bool) -> None:
    async with fleet(Teller(1)) as hosts:
        other = hosts.host(options=LOCKING, retention_days=HOURS)
        host = hosts.host(
            options=LOCKING,
            queues=False,
            eager_start=eager,
            line=lambda driver: cast("StorageDriver", LateInsert(driver, 1e9)),
        )

        async def die(name: str, moment: Any) -> None:
            if name == "expiry.note" and moment == "before":
                hosts.kill(host)
                await host.passage()

        host.seam.hooks.append(die)
        with pytest.raises(StorageUnavailable):
            await host.create(background())
        await asyncio.sleep(10 * HOUR)
        assert host.dead
        await expire_all(other)
        assert await hosts.ids() == []


class AnsweredSecond(_Line):
    """The first insert gets no answer for 11 s and is carried out a minute later; its repetition succeeds."""

    def __init__(self, inner: StorageDriver) -> None:
        super().__init__(inner)
        self.first = True
        self._late: asyncio.Task[None] | None = None

    async def _write(self, write: Write, table: str, what: Any) -> Any:
        if table != RESPONSES or not self.first:
            return await write(table, what)
        self.first = False

        async def later() -> None:
            await asyncio.sleep(60)
            try:
                await write(table, what)
            except StorageError:
                pass

        self._late = asyncio.get_running_loop().create_task(later())
        await asyncio.sleep(11)
        raise StorageUnavailable


@pytest.mark.parametrize("eager", [False, True])
async def test_a_late_first_insert_is_refused_though_its_repetition_was_answered(eager: bool) -> None:
    async with fleet(Teller(1)) as hosts:
        hosts.host(options=LOCKING)
        host = hosts.host(
            options=LOCKING,
            retention_days=HOURS,
            eager_start=eager,
            line=lambda driver: cast("StorageDriver", AnsweredSecond(driver)),
        )
        # The start message goes out; its repetition behind the slow insert does not.
        host.seam.inject(Fault(operation="queue.send_start", kind="before", after=1, times=1))
        with pytest.raises(StorageUnavailable):
            await host.create(background())
        await asyncio.sleep(10 * HOUR)
        await expire_markers(hosts, host)


async def test_a_late_first_insert_of_a_busy_worker_is_not_in_flight_for_ever() -> None:
    async with fleet(Teller(40, pause=10)) as hosts:
        hosts.host(options=LOCKING)
        lines: list[AnsweredSecond] = []

        def line(driver: StorageDriver) -> StorageDriver:
            lines.append(AnsweredSecond(driver))
            return cast("StorageDriver", lines[-1])

        host = hosts.host(options=LOCKING, retention_days=HOURS, eager_start=True, line=line)
        lines[0].first = False
        busy = await host.create(background("busy"))
        await asyncio.sleep(5)
        lines[0].first = True
        host.seam.inject(Fault(operation="queue.send_start", kind="before", after=1, times=1))
        with pytest.raises(StorageUnavailable):
            await host.create(background())
        await asyncio.sleep(10 * HOUR)
        await expire_all(host)
        assert set(await hosts.ids()) <= {busy["id"]}
