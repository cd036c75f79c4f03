"""What is adopted is noted for retention, however often the adoption is asked for (V10)."""

import asyncio

from storage.driver import EXPIRY
from storage.errors import NotFound
from storage.ledger import LedgerEntry
from tests.support.engines import Fleet, Host, fleet, until
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop


async def foreground_run(hosts: Fleet, host: Host) -> tuple[str, str]:
    """The ids of a run that lasts, and of the worker that answers for it."""
    call = host.spawn(host.create({"input": "hi"}), "asking")
    call.add_done_callback(lambda done: done.cancelled() or done.exception())
    await until(lambda: hosts.entries)
    await until(lambda: host.engine.runtime.worker.id)
    (response_id,) = hosts.entries
    await asyncio.sleep(1)
    return response_id, str(host.engine.runtime.worker.id)


async def is_noted(hosts: Fleet, response_id: str) -> bool:
    notes = await hosts.storage.driver.query_entities(EXPIRY)
    return any(response_id in str(note.properties["responses"]) for note in notes)


async def test_a_response_whose_adoption_is_asked_for_twice_is_noted() -> None:
    async with fleet(Teller(1, pause=30.0)) as hosts:
        victim = hosts.host(queues=False)
        response_id, worker = await foreground_run(hosts, victim)
        await victim.crash()
        await hosts.storage.watch.send(worker, delay=2, epoch=0)  # the double of its own
        hosts.host()
        assert (await hosts.finished(response_id)).status == "failed"
        await hosts.quiet()
        assert await is_noted(hosts, response_id)


async def test_a_response_is_noted_though_another_entry_of_the_ledger_is_not_understood() -> None:
    """The adoption fails for that one, and is asked for again at once."""
    async with fleet(Teller(1, pause=30.0)) as hosts:
        victim = hosts.host(queues=False)
        response_id, worker = await foreground_run(hosts, victim)
        await victim.inside(victim.engine.runtime.worker.open(LedgerEntry("later-x", "invented-later", {})))
        await victim.crash()
        hosts.host()
        assert (await hosts.finished(response_id)).status == "failed"
        await asyncio.sleep(60)
        await hosts.storage.ledger.wipe(worker)  # somebody who knows took it
        await hosts.quiet()
        assert await is_noted(hosts, response_id)


async def test_a_response_is_noted_though_its_adopter_dies_right_behind_the_adoption() -> None:
    async with fleet(Teller(1, pause=30.0)) as hosts:
        victim = hosts.host(queues=False)
        response_id, worker = await foreground_run(hosts, victim)
        await victim.crash()
        adopter = hosts.host()

        async def is_adopted() -> bool:
            try:
                await hosts.storage.ledger.read(worker)
            except NotFound:
                return True
            return False

        await until(is_adopted)
        await asyncio.sleep(1)
        await adopter.crash()
        hosts.host().serve_timer()
        assert (await hosts.finished(response_id)).status == "failed"
        await hosts.quiet()
        assert await is_noted(hosts, response_id)
