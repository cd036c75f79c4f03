"""What was never recorded leaves nothing, whoever failed or died before its row (R2, V10)."""

import pytest

from storage.driver import CONTAINERS
from storage.errors import StorageUnavailable
from storage.memory import MemoryDriver
from storage.seam import Fault, FaultKind, Moment
from tests.support.engines import HostGone, background, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LARGE = "x" * 60_000
"""Enough for a request that is stored beside its row."""


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
