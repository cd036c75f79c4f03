"""What storage has of a foreground run: an entry in the ledger, and at its end the row, which is inserted once.

If somebody who thought this worker dead was faster, his outcome is the outcome. A turn of a chain has more:
`resilience.turn_record`.
"""

import asyncio
import logging
import uuid
from dataclasses import replace
from typing import Any

from protocol import jsonio
from protocol.response import TERMINAL_STATUSES, failed
from resilience.dispatch import Disposition
from resilience.idempotency import RequestKey
from resilience.outcome import GENERIC_FAILURE
from resilience.record import RequestRecord
from resilience.remains import remove_blobs
from resilience.response_row import OwnershipLost, read_row, replace_row
from resilience.retry import STORAGE_RETRY_SECONDS, patiently
from resilience.rows import first_row
from resilience.run_entries import ForegroundEntry, close_run, open_foreground
from resilience.runtime import Runtime
from storage.errors import (
    AlreadyExists,
    StorageError,
    StorageUnavailable,
)
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.run")


class ForegroundRecord:
    """The stored side of a foreground run that is a chain of its own, or is not stored at all."""

    def __init__(
        self,
        runtime: Runtime,
        key: str,
        record: RequestRecord,
        disposition: Disposition,
        *,
        entry: ForegroundEntry | None = None,
        request_key: RequestKey | None = None,
    ) -> None:
        self._runtime = runtime
        self._key = key
        self._record = record
        self._disposition = disposition
        self._entry = entry
        self._request_key = request_key
        self._storing: asyncio.Task[None] | None = None
        self._is_settled = False
        """True once an outcome stands, or nothing is left of the run: nobody has to look after it any more."""
        self.is_stored = disposition is Disposition.FOREGROUND

    @property
    def worker_id(self) -> str:
        """The worker id that answers for the run, "" if nothing is recorded of it."""
        return self._entry.worker_id if self._entry else ""

    async def open(self) -> None:
        """Make the run durable in the ledger (R1).

        Raises:
            StorageUnavailable: It is not.
        """
        if self.is_stored and self._entry is None:
            self._entry = await open_foreground(self._runtime, self._key, self._record)

    async def finish(self, snapshot: dict[str, Any], last_sequence: int, *, seen: bool) -> dict[str, Any]:
        """Store the outcome; what counts is the row that stands in the end.

        `seen`: the client is there and learns of it. Else its chain can be continued without it as well.
        """
        if not self.is_stored:
            return snapshot
        patience = self._runtime.settings.finish_patience
        try:
            return await self._write(snapshot, last_sequence, uuid.uuid4().hex, patience, seen)
        except StorageUnavailable:
            _log.exception("response %s: the outcome could not be stored", self._record.response_id)
        snapshot = failed(snapshot, "storage_error", "The storage did not answer while the response was finished.")
        # R14: the client hears of it now, the record follows as soon as storage answers.
        stubborn = self._write_stubbornly(snapshot, last_sequence, seen)
        self._storing = self._runtime.spawn(stubborn, f"storing-{self._record.response_id}")
        return snapshot

    async def decided_elsewhere(self) -> ResponseRow | None:
        """Wait until another has decided the outcome of this recorded run; its row, None if that is gone already.

        Nobody does before this process learns that its worker was declared dead. Who adopts it may need a while then,
        or die over it and leave it to the next. And nobody may come at all, where a ledger was lost: then this never
        returns, and the run decides as ever.
        """
        await self._runtime.worker.until_over(self.worker_id)
        while True:
            try:
                row = await read_row(self._runtime.storage, self._key, self._record.response_id)
            except StorageError as error:
                _log.info("response %s: row not read: %s", self._record.response_id, error)
            else:
                if self._is_decided(row):
                    return row
            await asyncio.sleep(self._runtime.settings.cancel_poll_interval)

    def _is_decided(self, row: ResponseRow | None) -> bool:
        return row is not None and row.status in TERMINAL_STATUSES

    async def as_decided(self, row: ResponseRow | None) -> dict[str, Any]:
        """The response as another decided it: nothing of it is left to be stored, or to be looked after.

        Raises:
            StorageError: It is deleted already, or cannot be read.
        """
        self._is_settled = True
        if row is None:
            raise StorageError("The response is gone.")
        async for attempt in patiently(self._runtime.settings.finish_patience):
            with attempt:
                return await self._snapshot_in(row)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def drop(self) -> None:
        """It was refused before it began: nothing is recorded, and nothing a key could stand for (I1).

        Its client need not wait for that; the entry stays open until it is so.
        """
        self._storing = self._runtime.spawn(self._drop_stubbornly(), f"dropping-{self._record.response_id}")
        await asyncio.wait({self._storing}, timeout=self._runtime.settings.finish_patience)

    async def _drop_stubbornly(self) -> None:
        while True:
            try:
                await self._drop()
            except StorageError as error:  # also a chain that cannot be read, as long as this process lives
                _log.warning("response %s: it cannot be dropped now: %s", self._record.response_id, error)
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
            else:
                self._is_settled = True
                return

    async def _drop(self) -> None:
        if self._request_key is not None:
            await self._request_key.release(self._record.response_id)
        if self._entry is not None and self._entry.request.blob is not None:
            await self._runtime.storage.payloads.delete_all(self._key, self._record.response_id)

    async def leave(self) -> None:
        """The handler is gone: nothing is left to do for this run if this worker dies, once its outcome is stored.

        A run that broke off has none yet: it failed. Its id may have been told (V1), and a turn blocks its chain.
        """
        if self._storing is None and self._entry is not None and not self._is_settled:
            base = self._record.snapshot(self._runtime.app.options.default_model, "in_progress")
            stubborn = self._write_stubbornly(failed(base, "server_error", GENERIC_FAILURE), -1, seen=True)
            self._storing = self._runtime.spawn(stubborn, f"storing-{self._record.response_id}")
        if self._storing is None:
            await self._close()
        else:
            self._runtime.spawn(self._leave_later(self._storing), f"leaving-{self._record.response_id}")

    async def _leave_later(self, storing: asyncio.Task[None]) -> None:
        await asyncio.wait({storing})
        if self._is_settled:  # else the entry stays open: whoever adopts it makes the outcome
            await self._close()

    async def _close(self) -> None:
        if self._entry is not None:
            close_run(self._runtime, self._entry.worker_id, self._record.response_id)

    async def _write_stubbornly(self, snapshot: dict[str, Any], last_sequence: int, seen: bool) -> None:
        """The record of what the client was told already, even over a write of ours that nobody heard of (W4)."""
        patience = self._runtime.settings.finish_patience
        while True:
            try:
                stored = await self._write(snapshot, last_sequence, uuid.uuid4().hex, patience, seen)
                if stored["status"] != snapshot["status"]:
                    await self._overwrite(snapshot)
                return
            except (StorageUnavailable, OwnershipLost):
                await asyncio.sleep(STORAGE_RETRY_SECONDS)

    async def _overwrite(self, snapshot: dict[str, Any]) -> None:
        storage, settings = self._runtime.storage, self._runtime.settings
        row = await storage.rows.read(self._key, self._record.response_id)
        if row.deleted:
            return
        stored = await storage.payloads.put(self._key, row.id, "snapshot", jsonio.dumps(snapshot))
        told = replace(
            row,
            status=snapshot["status"],
            snapshot=stored,
            completed_at=None,
            error_code=str(snapshot["error"]["code"]),
        )
        await replace_row(storage, told, settings.finish_patience)

    async def _write(
        self, snapshot: dict[str, Any], last_sequence: int, mark: str, patience: float, seen: bool
    ) -> dict[str, Any]:
        assert self._entry is not None  # opened before anything could end
        row = first_row(self._key, self._record, self._disposition, self._entry.request)
        async for attempt in patiently(patience):
            with attempt:
                row = replace(row, **await self._outcome(snapshot, last_sequence))
                try:
                    await self._runtime.storage.rows.insert(row, mark=mark)
                    self._is_settled = True
                except AlreadyExists:
                    stands = await self._runtime.storage.rows.read(self._key, self._record.response_id)
                    self._is_settled = True
                    return await self._snapshot_in(stands)
        return snapshot

    async def _outcome(self, snapshot: dict[str, Any], last_sequence: int) -> dict[str, Any]:
        """The row's fields that say it, with the snapshot in place."""
        stored = await self._runtime.storage.payloads.put(
            self._key, self._record.response_id, "snapshot", jsonio.dumps(snapshot)
        )
        error = snapshot.get("error")
        return {
            "status": snapshot["status"],
            "snapshot": stored,
            "generation": 1,
            "attempt": 1,
            "completed_at": snapshot.get("completed_at"),
            "error_code": str(error["code"]) if isinstance(error, dict) else "",
            "last_sequence": last_sequence,
        }

    async def _snapshot_in(self, row: ResponseRow) -> dict[str, Any]:
        if row.deleted:
            await remove_blobs(self._runtime, self._key, row.id)  # a snapshot was stored for it too late
        if row.snapshot is None:
            raise StorageError("A finished response has no snapshot.")
        snapshot: dict[str, Any] = jsonio.loads(await self._runtime.storage.payloads.get(row.snapshot))
        return snapshot
