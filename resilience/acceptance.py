"""Accepting a background response: recorded before it is answered (R1).

The start message is sent and the log created first, the row is inserted last: the row is what makes the response
exist. So no row lacks a message, and no answered id lacks a row. A crash in between leaves a message without a row,
which its receiver drops, with the empty log.

*Eager start.* A process that serves the queue function too inserts the row as its own: claimed, at generation 1,
with the lease acquired and the run open in its ledger before. Its own start message attaches to the run when it
arrives; anybody else's reception of it leaves the run alone, because its owner lives.
"""

import asyncio
import logging
import uuid
from dataclasses import replace

from resilience.dispatch import Disposition
from resilience.log_end import EMPTY
from resilience.ownership import Ownership, read_row
from resilience.placement import tenant_in
from resilience.record import RequestRecord
from resilience.rows import first_row
from resilience.run_entries import background_entry, close_run
from resilience.runtime import Runtime
from storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageError, StorageUnavailable
from storage.log import segment_name
from storage.rows import ResponseRow, Segment

_log = logging.getLogger("resilience.acceptance")

ABANDON_RETRY_SECONDS = 5.0

SLOW_ACCEPTANCE = 10.0
"""Seconds after which the start message may have been given up for lack of a row, and is sent again."""


async def accept(runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition) -> ResponseRow:
    """Record a response for the queue function to run.

    Raises:
        StorageError: It is not recorded; nothing of it will run.
    """
    try:
        return await accept_again(runtime, key, record, disposition)
    except StorageError:
        runtime.spawn(_abandon(runtime, key, record.response_id), f"abandoning-{record.response_id}")
        raise


async def accept_again(runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition) -> ResponseRow:
    """Record a response that others may be recording under the same id: the insert of the row decides (I1).

    Raises:
        AlreadyExists: Another did.
        StorageUnavailable: It may be recorded or not; made again, it is.
    """
    began = asyncio.get_running_loop().time()
    prepared, sent = await asyncio.gather(
        _prepare(runtime, key, record, disposition), _send_start(runtime, key, record), return_exceptions=True
    )
    return await _insert(runtime, _first_good(prepared, sent), began)


async def accept_and_own(runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition) -> Ownership:
    """Record a response as this process's own run.

    Raises:
        StorageError: It is not recorded; nothing of it will run.
    """
    began = asyncio.get_running_loop().time()
    entry = background_entry(key, record.response_id)
    prepared, opened, sent = await asyncio.gather(
        _prepare(runtime, key, record, disposition, lease_id=str(uuid.uuid4())),
        runtime.worker.open(entry),
        _send_start(runtime, key, record),
        return_exceptions=True,
    )
    try:
        row = _first_good(prepared, opened, sent)
        row = await _insert(runtime, replace(row, owner=str(opened)), began)
    except StorageError:
        worker_id = opened if isinstance(opened, str) else ""
        runtime.spawn(_abandon(runtime, key, record.response_id, worker_id), f"abandoning-{record.response_id}")
        raise
    return Ownership(runtime.storage, runtime.settings, row, EMPTY, recovery=False)


def _first_good(row: ResponseRow | BaseException, *others: object) -> ResponseRow:
    for outcome in (row, *others):
        if isinstance(outcome, BaseException):
            raise outcome
    assert isinstance(row, ResponseRow)
    return row


async def _send_start(runtime: Runtime, key: str, record: RequestRecord) -> None:
    await runtime.storage.work.send_start(tenant_in(key), record.response_id)


async def _prepare(
    runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition, lease_id: str = ""
) -> ResponseRow:
    """The row to insert, with everything it points to in place; owned if there is a lease id."""
    storage = runtime.storage
    request = await storage.payloads.put(key, record.response_id, "request", record.to_bytes())
    row = first_row(key, record, disposition, request)
    if lease_id:
        row = replace(row, status="in_progress", generation=1, attempt=1, lease_id=lease_id)
    if not row.stream:
        return row
    name = segment_name(key, record.response_id, 0, row.generation)
    try:
        await storage.log.create(name)
    except AlreadyExists:  # a lost reply, or another that records the same response
        pass
    if lease_id:
        await storage.log.acquire(name, lease_id)
    return replace(row, segments=(Segment(name=name, first_sequence=0),))


async def _insert(runtime: Runtime, row: ResponseRow, began: float) -> ResponseRow:
    mark = uuid.uuid4().hex
    try:
        row = await runtime.storage.rows.insert(row, mark=mark)
    except StorageUnavailable:
        # The outcome is unknown: the same mark tells an insert that did happen from one that did not.
        row = await runtime.storage.rows.insert(row, mark=mark)
    if asyncio.get_running_loop().time() - began > SLOW_ACCEPTANCE:
        await _send_again(runtime, row)
    return row


async def _send_again(runtime: Runtime, row: ResponseRow) -> None:
    await runtime.storage.work.send_start(tenant_in(row.partition_key), row.id)


async def _abandon(runtime: Runtime, key: str, response_id: str, worker_id: str = "") -> None:
    """Undo what there is of a response whose client was told that there is none; its id was never given out.

    Until that is certain it stays open in the ledger: should this process die before, it is run, to nobody's harm.
    """
    while True:
        try:
            row = await read_row(runtime.storage, key, response_id)
            if row is not None:
                await runtime.storage.rows.delete(row)
            await remove_blobs(runtime, key, response_id)
            break
        except (StorageUnavailable, PreconditionFailed):
            await asyncio.sleep(ABANDON_RETRY_SECONDS)
        except NotFound:
            continue
    if worker_id:
        close_run(runtime, worker_id, response_id)


async def remove_blobs(runtime: Runtime, key: str, response_id: str) -> None:
    """Delete what lies beside a row that is not there or marks a deletion (V10); what is gone already is fine."""
    row = await read_row(runtime.storage, key, response_id)
    if row is not None and not row.deleted:
        return  # it was inserted after all
    await runtime.storage.log.delete_all(key, response_id)
    await runtime.storage.payloads.delete_all(key, response_id)
