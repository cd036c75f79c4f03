"""A request that is ended from outside while it is being accepted leaves nothing that goes on for ever."""

import asyncio

import pytest

from resilience.options import ResponsesServerOptions
from storage.driver import WORKERS
from storage.memory import MemoryDriver
from storage.seam import Fault, FaultKind
from tests.support.engines import Fleet, background, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
CALLS = ("ledger.begin", "queue.send_watch", "queue.send_start", "log.create", "log.acquire", "row.insert")


def rows(hosts: Fleet, table: str) -> list[str]:
    driver = hosts.storage.driver
    assert isinstance(driver, MemoryDriver)
    return [row for _, row in driver.tables[table]]


@pytest.mark.parametrize("kind", ["hang", "delay"])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("steerable", [True, False])
@pytest.mark.parametrize("name", CALLS)
async def test_an_acceptance_that_is_cut_off_at_any_call_leaves_nothing_open(
    name: str, steerable: bool, eager: bool, kind: FaultKind
) -> None:
    async with fleet(Teller(2)) as hosts:
        host = hosts.host(eager_start=eager, options=STEERABLE if steerable else None).serve_timer()
        fault = host.seam.inject(Fault(operation=name, kind=kind, delay=0.5, times=1))
        asking = asyncio.ensure_future(host.create(background(stream=True)))
        await asyncio.sleep(0.2)
        accepted = asking.done()  # where the call is the queue function's, not the acceptance's
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        fault.remove()
        await hosts.quiet()
        assert fault.hits == 1
        assert rows(hosts, WORKERS) == []
        made = [await hosts.row(response_id) for response_id in await hosts.ids()]
        assert sum(row is not None and not row.deleted for row in made) == accepted
        assert not host.engine.runtime.running


@pytest.mark.parametrize("name", ["ledger.begin", "queue.send_watch", "chain.read", "row.insert"])
async def test_a_foreground_turn_that_is_cut_off_while_it_joins_leaves_its_chain(name: str) -> None:
    async with fleet(Teller(2)) as hosts:
        host = hosts.host(options=STEERABLE).serve_timer()
        first = await host.create({"input": "hi"})
        await hosts.quiet()
        fault = host.seam.inject(Fault(operation=name, kind="hang", times=1))
        asking = asyncio.ensure_future(host.create({"input": "hi", "previous_response_id": first["id"]}))
        await asyncio.sleep(0.2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        fault.remove()
        await hosts.quiet()
        assert rows(hosts, WORKERS) == []
        again = await host.create({"input": "hi", "previous_response_id": first["id"]})
        assert again["status"] == "completed"
