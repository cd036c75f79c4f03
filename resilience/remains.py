"""What lies beside a response's row: its log and its payloads. They go when the row is gone, or marks a deletion."""

from resilience.response_row import read_row
from resilience.runtime import Runtime


async def remove_blobs(runtime: Runtime, key: str, response_id: str) -> bool:
    """Delete what lies beside a row that is not there or marks a deletion (V10); what is gone already is fine.

    False if there is a response after all.
    """
    row = await read_row(runtime.storage, key, response_id)
    if row is not None and not row.deleted:
        return False
    await runtime.storage.log.delete_all(key, response_id)
    await runtime.storage.payloads.delete_all(key, response_id)
    return True
