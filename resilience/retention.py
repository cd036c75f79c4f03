"""Retention: what ended `retention_days` ago is deleted, response by response, with everything beside it (V10).

The index of what ended when is `storage.expiry`. One turn of the timer deletes a bounded batch, the oldest first. A
response goes row first, so that nobody is shown a half of it, and a line of the index goes last: a crash in between is
made good by the next turn. A response that is still in flight is noted anew. One that changed hands was noted as soon
as its first worker left it, a foreground one with a large request before it ran; it goes that much earlier.

A key goes with the row of its response. It is noted itself as well, before it is claimed: it may stand for a response
that was refused, or whose process died, and that has no row.
"""

import logging

from protocol.response import TERMINAL_STATUSES
from resilience.placement import tenant_in
from resilience.remains import remove_blobs
from resilience.response_row import read_row
from resilience.runtime import Runtime
from storage.chains import own_chain_key
from storage.errors import (
    ChainMoved,
    MalformedRecord,
    NotFound,
    PreconditionFailed,
    StorageError,
    StorageUnavailable,
)
from storage.expiry import Due, StoredResponse
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.retention")

_DAY = 86_400.0


async def expire(runtime: Runtime) -> int:
    """Delete a batch of what is due; how many responses were looked at.

    Raises:
        StorageUnavailable: It could not be completed; the next turn goes on.
    """
    days = runtime.settings.retention_days
    if not days:
        return 0
    looked_at = 0
    while looked_at < runtime.settings.retention_batch:
        found = await runtime.storage.expiry.due(runtime.now() - days * _DAY, limit=10)
        if not found:
            break
        for due in found:
            await _expire_all(runtime, due)
            looked_at += len(due.responses)
    if looked_at:
        _log.info("%d responses were due to be deleted", looked_at)
    return looked_at


async def _expire_all(runtime: Runtime, due: Due) -> None:
    kept = [response for response in due.responses if not await _expire(runtime, response)]
    if kept:
        await runtime.storage.expiry.note(runtime.now(), kept)
    await runtime.storage.expiry.done(due)


async def _expire(runtime: Runtime, response: StoredResponse) -> bool:
    """Delete a response; false if it stays."""
    try:
        if response.request_key:
            await _delete_unused_key(runtime, response)
            return True
        return await _delete_ended(runtime, response)
    except MalformedRecord:  # by a newer version, or damaged: the others must not wait for it
        _log.exception("response %s: its row, its chain or its key cannot be read", response.id)
        return False
    except StorageUnavailable:
        raise  # that is not about this response
    except StorageError:  # a blob that the account protects, say
        _log.exception("response %s: storage refuses to delete it", response.id)
        return False


async def _delete_unused_key(runtime: Runtime, claimed: StoredResponse) -> None:
    """Delete the key of a response that came to nothing: no row leads to it."""
    storage = runtime.storage
    row = await read_row(storage, claimed.partition_key, claimed.id)
    if row is None or row.request_key != claimed.request_key:
        await storage.keys.release(tenant_in(claimed.partition_key), claimed.request_key, claimed.id)


async def _delete_ended(runtime: Runtime, response: StoredResponse) -> bool:
    """Delete a response; false if it is in flight."""
    storage = runtime.storage
    row = await read_row(storage, response.partition_key, response.id)
    if row is not None:
        if row.status not in TERMINAL_STATUSES and not row.deleted:
            return False
        if row.request_key:
            await storage.keys.release(tenant_in(row.partition_key), row.request_key, row.id)
        await _delete_row(runtime, row)
    await remove_blobs(runtime, response.partition_key, response.id)
    return True


async def _delete_row(runtime: Runtime, row: ResponseRow) -> None:
    """The newest turn of a chain takes the chain with it: nothing is left that could be continued."""
    storage = runtime.storage
    while True:
        try:
            if not row.turn:
                await storage.chains.delete(row.partition_key, own_chain_key(row.id))
                await storage.rows.delete(row)
            else:
                await storage.chains.delete_turn(row, await storage.chains.read(row.partition_key))
        except (PreconditionFailed, ChainMoved):
            now = await read_row(storage, row.partition_key, row.id)
            if now is None:
                return
            row = now
        except NotFound:
            return
        else:
            return
