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


async def record_of(runtime: Runtime, row: ResponseRow) -> RequestRecord:
    """The record that every handler entry of this response sees.

    Raises:
        MalformedRecord: It cannot be read.
    """
    return RequestRecord.from_bytes(await runtime.storage.payloads.get(row.request))


async def snapshot_of(runtime: Runtime, row: ResponseRow) -> dict[str, Any]:
    """The response as the row has it, internal parts included (B5, R12)."""
    if row.snapshot is None:
        record = await record_of(runtime, row)
        return record.snapshot(runtime.app.options.default_model, row.status)
    try:
        snapshot: dict[str, Any] = jsonio.loads(await runtime.storage.payloads.get(row.snapshot))
    except NotFound:
        now = await read_row(runtime.storage, row.partition_key, row.id)
        if now is None or now.snapshot == row.snapshot:
            raise
        return await snapshot_of(runtime, now)  # checkpoints went on since the row was read
    # A checkpoint was taken in progress; the row alone knows the status.
    return {**snapshot, "status": row.status}
