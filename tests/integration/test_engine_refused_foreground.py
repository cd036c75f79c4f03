"""Foreground requests that could not be recorded: nothing of them is left, retention would never find it (R1, V10)."""

import asyncio
from typing import Any

import pytest

from resilience.options import ResponsesServerOptions
from storage.driver import CONTAINERS
from storage.errors import StorageError
from storage.memory import MemoryDriver
from storage.seam import Fault, FaultKind
from tests.support.engines import PRINCIPAL, Fleet, fleet
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_recorded
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LARGE = "x" * 40_000
"""Enough for a request that is stored beside its row."""

MODES: dict[str, dict[str, Any]] = {
    "c1": {},
    "c2": {"stream": True},
    "turn": {"conversation": "c"},
    "keyed": {"idempotency_key": "k"},
    "keyed turn": {"conversation": "c", "idempotency_key": "k"},
}


async def is_refused(hosts: Fleet, mode: str, outage: Fault) -> bool:
    """Ask while something of storage is out; true if the client was told that nothing came of it."""
    options = ResponsesServerOptions(steerable_conversations="turn" in mode)
    host = hosts.host(options=options, finish_patience=3.0)
    injected = host.seam.inject(outage)
    fields = dict(MODES[mode])
    key = fields.pop("idempotency_key", "")
    try:
        if fields.pop("stream", False):
            reader = await host.stream({"input": LARGE})
            await reader.whole()
            refused = reader.types == ["error"]
        else:
            await host.create({"input": LARGE, **fields}, idempotency_key=key)
            refused = False
    except StorageError:
        refused = True
    await asyncio.sleep(10)
    injected.remove()
    return refused


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("operation", ["payload.put", "ledger.begin", "key.claim", "chain.read", "row.insert"])
async def test_a_large_request_that_could_not_be_recorded_leaves_nothing(
    operation: str, kind: FaultKind, mode: str
) -> None:
    async with fleet(Teller(3)) as hosts:
        if not await is_refused(hosts, mode, Fault(operation=operation, kind=kind)):
            return
        await hosts.quiet()
        driver = hosts.storage.driver
        assert isinstance(driver, MemoryDriver)
        assert not [name for container in CONTAINERS for name in driver.containers[container]]
        await check_nothing_recorded(hosts.storage, PRINCIPAL)
        assert not driver.tables["idempotency"]
