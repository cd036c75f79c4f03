"""The row that a client may see, and the response object of a row."""

from typing import Any

from protocol import jsonio
from protocol.errors import ResponseDeleted, ResponseNotFound
from resilience.placement import partition_key, tenant_of
from resilience.record import RequestRecord
from resilience.response_row import read_row
from resilience.rows import is_unseen
from resilience.runtime import Runtime
from storage.errors import NotFound
from storage.rows import ResponseRow


async def shown_row(runtime: Runtime, principal: str, response_id: str) -> ResponseRow:
    """The row of a response that this principal may see.

    Raises:
        ResponseNotFound: There is none, or it is a foreground one in flight (B16).
        ResponseDeleted: It was deleted.
    """
    row = await read_row(runtime.storage, partition_key(tenant_of(principal), response_id), response_id)
    if row is None or is_unseen(row):
        raise ResponseNotFound(response_id)
    if row.deleted:
        raise ResponseDeleted(response_id)
    return row


async def shown_record(runtime: Runtime, row: ResponseRow) -> RequestRecord:
    """The record of a response that was shown, for a client.

    Raises:
        ResponseNotFound: It is gone meanwhile.
        ResponseDeleted: It was deleted meanwhile.
    """
    try:
        return await record_of(runtime, row)
    except NotFound:
        await _still_there(runtime, row)
        raise


async def _still_there(runtime: Runtime, row: ResponseRow) -> ResponseRow:
    now = await read_row(runtime.storage, row.partition_key, row.id)
    if now is None:
        raise ResponseNotFound(row.id)
    if now.deleted:
        raise ResponseDeleted(row.id)
    return now


async def record_of(runtime: Runtime, row: ResponseRow) -> RequestRecord:
    """The record that every handler entry of this response sees.

    Raises:
        MalformedRecord: It cannot be read.
    """
    return RequestRecord.from_bytes(await runtime.storage.payloads.get(row.request))


def stand_in_record(row: ResponseRow) -> RequestRecord:
    """What a response is ended with whose record cannot be read: no handler is entered for it (R3)."""
    return RequestRecord(
        response_id=row.id,
        created_at=row.created_at,
        principal=row.principal,
        request={"background": row.background, "stream": row.stream},
        client_headers={},
        query_parameters={},
        agent_reference=None,
    )


async def snapshot_of(runtime: Runtime, row: ResponseRow) -> dict[str, Any]:
    """The response as the row has it, internal parts included (B5, R12).

    Raises:
        ResponseNotFound: It is gone since the row was read.
        ResponseDeleted: It was deleted since.
    """
    if row.snapshot is None:
        record = await shown_record(runtime, row)
        return record.snapshot(runtime.app.options.default_model, row.status)
    try:
        snapshot: dict[str, Any] = jsonio.loads(await runtime.storage.payloads.get(row.snapshot))
    except NotFound:
        now = await _still_there(runtime, row)
        if now.snapshot == row.snapshot:
            raise
        return await snapshot_of(runtime, now)  # checkpoints went on since the row was read
    # A checkpoint was taken in progress; the row alone knows the status.
    return {**snapshot, "status": row.status}
