"""An answer of storage that is neither silence nor a refusal: whoever owns the run goes on, or ends it (R5)."""

from collections.abc import Callable

import pytest

from storage.errors import MalformedRecord, StorageRejected
from storage.seam import Fault
from tests.support.engines import Host, background, fleet, until
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LARGE = "x" * 50_000
"""Enough for a request that is stored beside its row."""


def odd() -> Exception:
    return RuntimeError("Session is closed")


def rejected() -> Exception:
    return StorageRejected(409)


ERRORS = pytest.mark.parametrize("error", [odd, rejected, MalformedRecord])


@ERRORS
async def test_a_claim_that_breaks_off_behind_its_row_goes_on(error: Callable[[], Exception]) -> None:
    async with fleet(Teller(1)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host()
        fault = worker.seam.inject(Fault(operation="log.acquire", kind="before", error=error, times=1))
        await api.stream(background())
        (response_id,) = await hosts.ids()
        row = await hosts.finished(response_id)
        assert (row.status, fault.hits, worker.failures) == ("completed", 1, [])


@pytest.mark.parametrize("error", [rejected, MalformedRecord])
async def test_a_request_that_storage_does_not_give_to_its_owner_ends_the_response(
    error: Callable[[], Exception],
) -> None:
    async with fleet(Teller(1)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host()
        worker.seam.inject(Fault(operation="payload.get", kind="before", error=error))
        response_id = (await api.create(background(LARGE)))["id"]
        row = await hosts.finished(response_id)
        assert (row.status, row.error_code, worker.failures) == ("failed", "server_error", [])


@pytest.mark.parametrize("error", [rejected, MalformedRecord])
async def test_a_checkpoint_that_storage_does_not_give_ends_the_response(error: Callable[[], Exception]) -> None:
    async with fleet(Teller(6, pause=1, checkpoints=True, ballast=60_000)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host()
        response_id = (await api.create(background()))["id"]
        await until(lambda: _is_checkpointed(api, response_id))
        await worker.crash()
        hosts.host().seam.inject(Fault(operation="payload.get", kind="before", error=error))
        row = await hosts.finished(response_id)
        assert (row.status, row.error_code) == ("failed", "server_error")


async def test_a_chain_that_nobody_can_read_ends_a_response_of_its_own_with_the_attempts() -> None:
    async with fleet(Teller(6, pause=1)) as hosts:
        api, worker = hosts.host(queues=False), hosts.host()
        response_id = (await api.create(background()))["id"]
        await until(lambda: hosts.entries[response_id])
        await worker.crash()
        hosts.host().seam.inject(Fault(operation="chain.read", kind="before", error=MalformedRecord))
        row = await hosts.finished(response_id, seconds=300)
        assert (row.status, row.attempt) == ("failed", 6)


async def _is_checkpointed(host: Host, response_id: str) -> bool:
    row = await host.fleet.row(response_id)
    return row is not None and row.snapshot is not None
