"""Hosts that do not agree on the time of day: whether a worker lives is judged by the storage service's clock alone."""

import asyncio

import pytest

from storage.driver import WATCH_QUEUE, WORK_QUEUE
from storage.memory import MemoryDriver
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

DAY = 86_400
SWEEPS = 90.0
"""Seconds of looking for dead workers, once a minute and oftener."""


def sweeper(hosts: Fleet, seconds_off: int) -> Host:
    """A host that receives no watch message, looks for dead workers, and whose own clock is off."""
    made = hosts.host(queues=False).serve_queues(WORK_QUEUE)
    made.engine.runtime.now = lambda: hosts.now() + seconds_off
    return made.serve_timer(10.0)


@pytest.mark.parametrize("seconds_off", [DAY, -DAY])
async def test_a_sweeper_whose_clock_is_off_takes_no_busy_worker_for_dead(seconds_off: int) -> None:
    """Fast by a day, each ledger would look a day old to it."""
    async with fleet(Teller(int(SWEEPS) + 30, pause=1.0)) as hosts:
        owner = hosts.host()
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        worker = owner.engine.runtime.worker.id
        wrong = sweeper(hosts, seconds_off)
        await asyncio.sleep(SWEEPS)
        assert wrong.calls.count("ledger.stale") >= 2
        assert "ledger.mark_dead" not in wrong.calls
        assert owner.engine.runtime.worker.id == worker is not None
        row = await hosts.finished(response_id)
        assert (row.status, row.generation) == ("completed", 1)
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[await reader.whole_view()],
            entries=hosts.entered(response_id),
            generation_of=hosts.generation_of(response_id),
        )
        assert hosts.entered(response_id) == 1


@pytest.mark.parametrize("seconds_off", [DAY, -DAY])
async def test_a_sweeper_whose_clock_is_off_finds_a_dead_worker_that_nothing_else_tells_of(seconds_off: int) -> None:
    """Slow by a day, no ledger would ever look old to it."""
    async with fleet(Teller(20, pause=1.0)) as hosts:
        owner = hosts.host()
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        await until(lambda: hosts.entries[response_id])
        await owner.crash()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        driver.queues[WATCH_QUEUE].clear()
        died = asyncio.get_running_loop().time()
        rescuer = sweeper(hosts, seconds_off)
        row = await hosts.finished(response_id, seconds=150)
        assert asyncio.get_running_loop().time() - died < 150
        assert row.status == "completed"
        assert "ledger.mark_dead" in rescuer.calls
        await check_response(
            hosts.storage,
            PRINCIPAL,
            response_id,
            seen=[reader.view],
            entries=hosts.entered(response_id),
            crashes=1,
            generation_of=hosts.generation_of(response_id),
        )
        assert hosts.entered(response_id) == 2
