"""What was never recorded leaves nothing, whoever failed or died before its row (R2, V10)."""

import asyncio
from typing import Any

import pytest

from protocol.errors import ConversationQueueFull
from resilience.chain import MAX_PENDING
from resilience.options import ResponsesServerOptions
from storage.driver import CONTAINERS
from storage.errors import StorageUnavailable
from storage.memory import MemoryDriver
from storage.seam import Fault, FaultKind, Moment
from tests.support.engines import Fleet, Host, HostGone, background, fleet, until
from tests.support.handlers import Teller
from tests.support.turns import Turns, lasting
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LARGE = "x" * 60_000
"""Enough for a request, or an acceptor's answer, that is stored beside its row."""

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("operation", ["queue.send_start", "payload.put", "log.create"])
async def test_a_keyed_request_that_could_not_be_recorded_and_is_not_repeated_leaves_no_blobs(
    operation: str, kind: FaultKind
) -> None:
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        hosts.host()
        api.seam.inject(Fault(operation=operation, kind=kind, times=1))
        with pytest.raises(StorageUnavailable):
            await api.create(background(LARGE, stream=True), idempotency_key="k")
        await hosts.quiet()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        assert not [name for container in CONTAINERS for name in driver.containers[container]]


async def test_a_keyed_request_that_failed_before_its_message_was_sent_makes_one_response_when_it_is_repeated() -> None:
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        hosts.host()
        api.seam.inject(Fault(operation="queue.send_start", kind="before", times=1))
        body = background(LARGE, stream=True)
        with pytest.raises(StorageUnavailable):
            await api.create(body, idempotency_key="k")
        made = await api.create(body, idempotency_key="k")
        assert (await hosts.finished(made["id"])).status == "completed"
        await hosts.quiet()
        assert (await hosts.ids(), hosts.entered(made["id"])) == ([made["id"]], 1)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("slow", ["queue.send_start", "log.create", "payload.put"])
async def test_an_acceptor_that_dies_while_it_stores_and_sends_leaves_nothing(slow: str, eager: bool) -> None:
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False, eager_start=eager)
        hosts.host()
        api.seam.inject(Fault(operation=slow, kind="delay", delay=2.0, times=1))
        done: list[str] = []

        async def die(name: str, moment: Moment) -> None:
            if moment == "after":
                done.append(name)
            if "log.create" in done or name == "row.insert":
                hosts.kill(api)
                await api.passage()

        api.seam.hooks.append(die)
        with pytest.raises(HostGone):
            await api.create(background(LARGE, stream=True))
        await hosts.quiet()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        assert not [name for container in CONTAINERS for name in driver.containers[container]]


# -- the acceptor's answer --------------------------------------------------------------------------------------------


def answering_at_length(hosts: Fleet, *, seconds: float = 0.0) -> Host:
    """A process without queue functions, whose acceptor takes its time for a large answer."""

    async def acceptor(request: Any, context: Any) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"instructions": LARGE}

    host = hosts.host(options=STEERABLE, queues=False)
    host.engine.runtime.app.response_acceptor(acceptor)
    return host


async def check_no_payloads(hosts: Fleet) -> None:
    """Nothing is left of the answer once nobody does anything any more."""
    await hosts.quiet(3_000)
    assert await hosts.storage.driver.list_blobs("payloads", "") == []


@pytest.mark.parametrize(
    ("body", "seconds", "key"),
    [
        pytest.param({}, 0.0, "", id="plain"),
        pytest.param({}, 0.0, "k", id="keyed"),
        pytest.param({"stream": True}, 400.0, "", id="slow stream"),
        pytest.param({"instructions": LARGE}, 400.0, "", id="slow large request"),
    ],
)
async def test_an_acceptor_that_dies_behind_its_large_answer_leaves_nothing(
    body: dict[str, Any], seconds: float, key: str
) -> None:
    """A slow one had its message before it was asked, and after minutes nobody waits for the row of that one."""
    turns = Turns(lasting(500))
    async with fleet(turns) as hosts:
        worker, api = hosts.host(options=STEERABLE), answering_at_length(hosts, seconds=seconds)
        first = await worker.create(background("first", conversation="c"))
        await until(lambda: turns.entered("first"))
        puts = 2 if "instructions" in body else 1

        async def die(name: str, moment: Moment) -> None:
            nonlocal puts
            if (name, moment) == ("payload.put", "after"):
                puts -= 1
            if not puts:
                hosts.kill(api)
                await api.passage()

        api.seam.hooks.append(die)
        request = background("second", conversation="c", **body)
        with pytest.raises(HostGone):
            await (api.stream if body.get("stream") else api.create)(request, idempotency_key=key)
        assert (await hosts.finished(first["id"], seconds=1_000)).status == "completed"
        assert await hosts.ids() == [first["id"]]
        await check_no_payloads(hosts)


async def test_a_keyed_turn_that_lost_the_last_place_behind_its_large_answer_leaves_nothing() -> None:
    """Nobody dies, and nothing fails: another turn was faster."""
    turns = Turns(lasting(30))
    async with fleet(turns) as hosts:
        worker, api = hosts.host(options=STEERABLE), answering_at_length(hosts)
        made = [await worker.create(background(str(number), conversation="c")) for number in range(MAX_PENDING)]

        async def be_faster(name: str, moment: Moment) -> None:
            if (name, moment) == ("row.insert", "before") and len(made) == MAX_PENDING:
                made.append(await worker.create(background("last", conversation="c")))

        api.seam.hooks.append(be_faster)
        with pytest.raises(ConversationQueueFull):
            await api.create(background("too late", conversation="c"), idempotency_key="k")
        assert len(made) == MAX_PENDING + 1
        await check_no_payloads(hosts)
        assert sorted(await hosts.ids()) == sorted(each["id"] for each in made)


async def test_a_turn_with_a_large_answer_runs_once_in_its_turn() -> None:
    """Though a start message is sent for it while it has to wait, and received."""
    turns = Turns(lasting(60))
    async with fleet(turns) as hosts:
        worker, api = hosts.host(options=STEERABLE), answering_at_length(hosts)
        first = await worker.create(background("first", conversation="c"))
        await until(lambda: turns.entered("first"))
        second = await api.create(background("second", conversation="c"))
        assert (second["status"], second["instructions"]) == ("queued", LARGE)
        assert api.calls.count("queue.send_start") == 1
        assert (await hosts.finished(second["id"], seconds=300)).status == "completed"
        assert turns.order == [first["id"], second["id"]]
