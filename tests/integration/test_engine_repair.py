"""A lost terminal frame, and several processes that complete the log at once (R6)."""

import asyncio

import pytest

from storage.driver import PAYLOADS
from storage.seam import Moment
from tests.support.engines import PRINCIPAL, background, fleet, start_message, until
from tests.support.handlers import Teller
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MOST_CALLS = 60
"""Of each repairer: it breaks the others' leases, and they break its own."""


@pytest.mark.parametrize("repairers", [1, 2, 3, 8])
async def test_any_number_of_repairers_add_the_lost_frame_once_and_come_to_an_end(repairers: int) -> None:
    async with fleet(Teller(2)) as hosts:
        owner = hosts.host()
        rows_written = 0

        async def die_behind_the_outcome(name: str, moment: str) -> None:
            nonlocal rows_written
            rows_written += (name, moment) == ("row.replace", "after")
            if rows_written == 2:
                hosts.kill(owner)
                await asyncio.Event().wait()

        owner.seam.hooks.append(die_behind_the_outcome)
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        await until(lambda: owner.dead)
        others = [hosts.host(queues=False) for _ in range(repairers)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(other.deliver(start_message(response_id)) for other in others))
        assert max(len(other.calls) for other in others) < MOST_CALLS
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)


async def test_a_repairer_that_does_not_find_the_snapshot_does_not_look_for_it_for_ever() -> None:
    async with fleet(Teller(2, pause=0.5, ballast=60_000, checkpoints=True)) as hosts:
        owner = hosts.host()
        reader = await owner.stream(background())
        response_id = await reader.response_id()

        async def die_behind_the_outcome(name: str, moment: Moment) -> None:
            if (name, moment) == ("row.replace", "after"):
                row = await hosts.row(response_id)
                if row is not None and row.status == "completed":
                    hosts.kill(owner)
                    await owner.passage()

        owner.seam.hooks.append(die_behind_the_outcome)
        await until(lambda: owner.dead)
        row = await hosts.row(response_id)
        assert row is not None
        assert row.snapshot is not None
        assert row.snapshot.blob is not None
        await hosts.storage.driver.delete_blob(PAYLOADS, row.snapshot.blob)
        other = hosts.host(queues=False)

        async def bounded(name: str, moment: Moment) -> None:
            assert len(other.calls) < MOST_CALLS, "it goes on for ever"

        other.seam.hooks.append(bounded)
        await other.deliver(start_message(response_id))
