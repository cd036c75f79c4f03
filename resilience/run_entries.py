"""What a worker's ledger says of a run: what to do with it if the worker dies.

kind ``background``: ``{key, id}``; a fresh start message.
kind ``foreground``: ``{key, id, record | record_blob}``; a ``failed`` row, made from the record, unless there is one.
"""

from dataclasses import dataclass

from resilience.record import RequestRecord
from resilience.runtime import Runtime
from storage.ledger import LedgerEntry
from storage.payloads import StoredPayload

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
    request = await runtime.storage.payloads.put(key, record.response_id, "request", record.to_bytes())
    located = {"record": request.inline} if request.inline is not None else {"record_blob": request.blob or ""}
    entry = LedgerEntry(ledger_key(record.response_id), FOREGROUND, {"key": key, "id": record.response_id, **located})
    return ForegroundEntry(await runtime.worker.open(entry), request)


def close_run(runtime: Runtime, worker_id: str, response_id: str) -> None:
    """Nothing is left to do for that run if this worker dies."""
    runtime.worker.close(worker_id, ledger_key(response_id))
