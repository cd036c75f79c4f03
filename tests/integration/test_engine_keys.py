"""A key always leads somewhere: whatever reply was lost, it stands for a response or is free again (I1)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from protocol.aio import ResponseEventStream
from protocol.errors import ApiError, ConversationLocked, ServiceUnavailable
from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions
from storage.driver import IDEMPOTENCY, Insert, StorageDriver
from storage.errors import StorageError, StorageUnavailable
from storage.seam import Fault
from tests.support.engines import Host, fleet, until
from tests.support.handlers import Teller
from tests.support.turns import Turns, until_opened
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LOCKING = ResponsesServerOptions(resilient_background=True)

LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""

TIME_LIMIT = 1_800.0
"""Seconds after which the platform would end the whole process."""

type Json = dict[str, Any]


async def ask(host: Host, body: Json, key: str = "k") -> Json:
    """The response; an answer that never comes is an error after a minute."""
    async with asyncio.timeout(60):
        return await host.create(body, idempotency_key=key)


class Refusing:
    """Refuses its first request, after a while, and answers those that follow."""

    def __init__(self) -> None:
        self.entries = 0

    async def __call__(self, request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        self.entries += 1
        if self.entries == 1:
            await asyncio.sleep(0.5)
            raise ValueError("not this one")
        async for event in Teller(1)(request, context, signal):
            yield event


class LateClaim:
    """A line on which the first claim of a key gets no answer; storage carries it out `seconds` later."""

    def __init__(self, inner: StorageDriver, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self.late: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def insert_entity(self, table: str, operation: Insert) -> str:
        if table != IDEMPOTENCY or self.late is not None:
            return await self._inner.insert_entity(table, operation)
        self.late = asyncio.get_running_loop().create_task(self._carry_out(table, operation))
        raise StorageUnavailable

    async def _carry_out(self, table: str, operation: Insert) -> None:
        await asyncio.sleep(self._seconds)
        with suppress(StorageError):
            await self._inner.insert_entity(table, operation)


@pytest.mark.parametrize("stays_busy", [False, True])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 60.0])
async def test_a_claim_that_is_carried_out_late_leaves_its_key_to_the_next_request(
    seconds: float, stays_busy: bool
) -> None:
    async with fleet(Teller(2, pause=100.0)) as hosts:
        slow = hosts.host(line=lambda driver: LateClaim(driver, seconds))
        other = hosts.host()
        if stays_busy:
            busy = asyncio.ensure_future(slow.create({"input": "another"}))
        with pytest.raises(StorageUnavailable):
            await slow.create({"input": "hi"}, idempotency_key="k")
        await asyncio.sleep(seconds + 2)
        assert len(await hosts.ids()) == 0
        async with asyncio.timeout(260):  # the run takes 200
            made = await other.create({"input": "hi"}, idempotency_key="k")
        assert made["status"] == "completed"
        assert (await ask(other, {"input": "hi"}))["id"] == made["id"]
        if stays_busy:
            await busy
        await hosts.quiet()


async def test_a_request_that_waits_for_its_key_asks_to_be_repeated_before_the_platform_ends_its_process() -> None:
    """The first one was refused, and its key cannot be given back: storage does not answer."""
    async with fleet(Refusing()) as hosts:
        host = hosts.host()
        fault = host.seam.inject(Fault(operation="key.release", kind="before"))
        with pytest.raises(ApiError):
            await host.create({"input": "hi"}, idempotency_key="k")
        with pytest.raises(ServiceUnavailable):
            async with asyncio.timeout(TIME_LIMIT):
                await host.create({"input": "hi"}, idempotency_key="k")
        fault.remove()
        assert (await ask(host, {"input": "hi"}))["status"] == "completed"


async def test_a_claim_whose_reply_was_lost_leaves_its_key_to_the_next_request() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        host.seam.inject(Fault(operation="key.claim", kind="after", times=1))
        with pytest.raises(StorageUnavailable):
            await host.create({"input": "hi"}, idempotency_key="k")
        made = await ask(host, {"input": "hi"})
        assert made["status"] == "completed"
        assert await hosts.ids() == [made["id"]]
        await hosts.quiet()


async def test_a_worker_that_died_behind_the_lost_reply_of_its_claim_leaves_a_failed_response() -> None:
    """The key could not be given back: the ledger still says what it stands for."""
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(), hosts.host()
        host.seam.inject(Fault(operation="key.claim", kind="after", times=1))
        host.seam.inject(Fault(operation="key.release", kind="before"))
        with pytest.raises(StorageUnavailable):
            await host.create({"input": "hi"}, idempotency_key="k")
        await host.crash()
        made = await ask(other, {"input": "hi"})
        assert made["status"] == "failed"
        assert made["error"]["additionalInfo"]["shutdown_reason"] == "crash_recovery"
        assert await ask(other, {"input": "hi"}) == made


async def test_a_refusal_gives_its_key_back_though_storage_hiccups() -> None:
    handler = Refusing()
    async with fleet(handler) as hosts:
        host = hosts.host()
        fault = host.seam.inject(Fault(operation="key.release", kind="before", times=1))
        with pytest.raises(ApiError) as refused:
            await host.create({"input": "hi"}, idempotency_key="k")
        assert refused.value.status == 400
        assert fault.hits == 1
        made = await ask(host, {"input": "hi"})
        assert (made["status"], handler.entries) == ("completed", 2)


async def test_a_refusal_is_told_while_its_key_cannot_be_given_back_and_the_key_is_free_later() -> None:
    handler = Refusing()
    async with fleet(handler) as hosts:
        host = hosts.host(finish_patience=5.0)
        fault = host.seam.inject(Fault(operation="key.release", kind="before"))
        began = asyncio.get_running_loop().time()
        with pytest.raises(ApiError):
            await host.create({"input": "hi"}, idempotency_key="k")
        assert asyncio.get_running_loop().time() - began < 7
        again = asyncio.ensure_future(ask(host, {"input": "hi"}))
        await asyncio.sleep(10)
        assert not again.done()
        fault.remove()
        assert (await again)["status"] == "completed"
        await hosts.quiet()


async def test_a_turn_that_found_its_conversation_locked_gives_its_key_back_though_storage_hiccups() -> None:
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        host = hosts.host(options=LOCKING)
        first = await host.create({"input": "first", "conversation": "c", "background": True})
        await until(lambda: turns.entered("first"))
        fault = host.seam.inject(Fault(operation="key.release", kind="before", times=1))
        with pytest.raises(ConversationLocked):
            await host.create({"input": "second", "conversation": "c"}, idempotency_key="k")
        assert fault.hits == 1
        for text in ("first", "second"):
            turns.gates[text].set()
        await hosts.finished(first["id"])
        made = await ask(host, {"input": "second", "conversation": "c"})
        assert made["status"] == "completed"


async def test_a_turn_that_could_not_be_recorded_gives_its_key_back() -> None:
    async with fleet(Turns()) as hosts:
        host = hosts.host(options=LOCKING)
        host.seam.inject(Fault(operation="row.insert", kind="before", times=2))
        with pytest.raises(StorageUnavailable):
            await host.create({"input": "hi", "conversation": "c"}, idempotency_key="k")
        made = await ask(host, {"input": "hi", "conversation": "c"})
        assert made["status"] == "completed"
        rows = [await hosts.row(response_id) for response_id in await hosts.ids()]
        assert [row.id for row in rows if row is not None and not row.deleted] == [made["id"]]
        await hosts.quiet()


async def test_a_refused_background_turn_keeps_its_key_so_that_all_who_try_make_one_response() -> None:
    """Who was refused is slow; meanwhile another makes the response, and a third asks for it."""
    turns = Turns(until_opened)
    async with fleet(turns) as hosts:
        slow, other, third = (hosts.host(options=LOCKING, queues=queues) for queues in (False, True, True))
        first = await other.create({"input": "first", "conversation": "c", "background": True})
        await until(lambda: turns.entered("first"))
        releasing = slow.pause_at("key.release")
        body = {"input": "second", "conversation": "c", "background": True}
        refused = asyncio.ensure_future(slow.create(body, idempotency_key="k"))
        await until(lambda: refused.done() or releasing.is_set())
        for text in ("first", "second"):
            turns.gates[text].set()
        await hosts.finished(first["id"])
        made = await ask(other, body)
        await hosts.finished(made["id"])
        slow.resume()
        with pytest.raises(ConversationLocked):
            await refused
        assert (await ask(third, body))["id"] == made["id"]
        assert sorted(await hosts.ids()) == sorted([first["id"], made["id"]])


async def test_a_repeated_request_leaves_nothing_of_its_own_behind() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        made = await host.create({"input": LARGE}, idempotency_key="k")
        await hosts.quiet()
        stored = await hosts.storage.driver.list_blobs("payloads", "")
        for _ in range(3):
            assert (await ask(host, {"input": LARGE}))["id"] == made["id"]
        await hosts.quiet()
        assert await hosts.storage.driver.list_blobs("payloads", "") == stored


async def test_a_run_that_waited_for_its_key_leaves_before_the_platform_ends_its_process() -> None:
    entries = 0

    async def refuse_late_once(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        nonlocal entries
        entries += 1
        if entries == 1:
            await asyncio.sleep(1_000)
            raise ValueError("no")
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        await asyncio.sleep(10_000)

    async with fleet(refuse_late_once) as hosts:
        host = hosts.host(queues=False)
        first = asyncio.ensure_future(host.create({"input": "hi"}, idempotency_key="k"))
        await until(lambda: entries == 1)
        began = asyncio.get_running_loop().time()
        second = await host.create({"input": "hi"}, idempotency_key="k")
        with pytest.raises(Exception, match="no"):
            await first
        assert (second["status"], entries) == ("failed", 2)
        assert asyncio.get_running_loop().time() - began < TIME_LIMIT
