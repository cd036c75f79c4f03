"""What a worker's ledger says of a run: what to do with it if the worker dies.

kind ``background``: ``{key, id}``; a fresh start message.
kind ``foreground``: ``{key, id, record | record_blob}``; a ``failed`` row, made from the record, unless there is one.
"""

import asyncio
from dataclasses import dataclass

from resilience.record import RequestRecord
from resilience.retry import STORAGE_RETRY_SECONDS
from resilience.runtime import Runtime
from storage.errors import StorageError, StorageUnavailable
from storage.expiry import StoredResponse
from storage.ledger import LedgerEntry
from storage.payloads import INLINE_LIMIT, StoredPayload

BACKGROUND = "background"
FOREGROUND = "foreground"


def ledger_key(response_id: str) -> str:
    """The ledger row of a run."""
    return f"run-{response_id}"


def background_entry(key: str, response_id: str) -> LedgerEntry:
    """The entry of a background run."""
    return LedgerEntry(ledger_key(response_id), BACKGROUND, {"key": key, "id": response_id})


@dataclass(frozen=True, slots=True)
class ForegroundEntry:
    """An open foreground run: the worker id that answers for it, and where its request is stored."""

    worker_id: str
    request: StoredPayload


async def open_foreground(runtime: Runtime, key: str, record: RequestRecord) -> ForegroundEntry:
    """Make a foreground run durable in this worker's ledger (R1).

    Raises:
        StorageUnavailable: It is not.
    """
    data = record.to_bytes()
    if len(data) > INLINE_LIMIT:
        # First: nothing else leads to its blob if this process dies before the entry, or if the blob comes late (V10).
        await runtime.storage.expiry.note(runtime.now(), [StoredResponse(key, record.response_id)])
    try:
        request = await runtime.storage.payloads.put(key, record.response_id, "request", data)
        located = {"record": request.inline} if request.inline is not None else {"record_blob": request.blob or ""}
        entry = LedgerEntry(
            ledger_key(record.response_id), FOREGROUND, {"key": key, "id": record.response_id, **located}
        )
        return ForegroundEntry(await runtime.worker.open(entry), request)
    except (StorageError, asyncio.CancelledError):
        if len(data) > INLINE_LIMIT:
            runtime.spawn(_forget_request(runtime, key, record.response_id), f"forgetting-{record.response_id}")
        raise


async def _forget_request(runtime: Runtime, key: str, response_id: str) -> None:
    """Delete the request of a run that was never recorded, without waiting for retention."""
    while True:
        try:
            await runtime.storage.payloads.delete_all(key, response_id)
        except StorageUnavailable:
            await asyncio.sleep(STORAGE_RETRY_SECONDS)
        else:
            return


def close_run(runtime: Runtime, worker_id: str, response_id: str) -> None:
    """Nothing is left to do for that run if this worker dies."""
    runtime.worker.close(worker_id, ledger_key(response_id))
