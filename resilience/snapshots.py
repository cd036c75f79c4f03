"""The response object of a row."""

from typing import Any

from protocol import jsonio
from resilience.record import RequestRecord
from resilience.runtime import Runtime
from storage.rows import ResponseRow


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
    snapshot: dict[str, Any] = jsonio.loads(await runtime.storage.payloads.get(row.snapshot))
    # A checkpoint was taken in progress; the row alone knows the status.
    return {**snapshot, "status": row.status}
