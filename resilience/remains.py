"""What lies beside a response's row: its log and its payloads. They go when the row is gone, or marks a deletion."""

from resilience.response_row import read_row
from resilience.runtime import Runtime


async def remove_blobs(runtime: Runtime, key: str, response_id: str) -> bool:
    """Delete what lies beside a row that is not there or marks a deletion (V10); what is gone already is fine.

    False if there is a response after all. What is deleted was listed before the row was looked at: this process may
    be held up anywhere, and the response be made again meanwhile, under its key. The log goes first: its blobs bear
    the same names when they are made again, those of payloads never do.
    """
    log, payloads = runtime.storage.log, runtime.storage.payloads
    segments, stored = await log.names(key, response_id), await payloads.names(key, response_id)
    row = await read_row(runtime.storage, key, response_id)
    if row is not None and not row.deleted:
        return False
    await log.delete_named(segments)
    await payloads.delete_named(stored)
    return True
