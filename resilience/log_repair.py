"""Completing the log of a response whose outcome is decided but whose terminal frame was lost (R6).

The frame is built from the stored snapshot, so it does not matter who writes it: the runner that meets the finished
row, the canceller of a run that nobody owns, or the process of a reader that waits for the end. Lease and append
position let one of them through. Several at once break one another's leases; each waits longer after every time, and
not as long as the others.
"""

import asyncio
import logging
import random
import uuid

from protocol import jsonio
from resilience.log_end import read_log_end
from resilience.outcome import terminal_frames
from resilience.response_row import has_log, read_row
from storage.connection import Storage
from storage.errors import LeaseHeld, NotFound, PreconditionFailed, StorageRejected
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.log")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0


class _NoSnapshot(Exception):
    """What the terminal frame is made from was deleted."""


async def complete_log(storage: Storage, row: ResponseRow) -> bool:
    """Make the log of a terminal row end with its terminal frame; a log that does is left alone.

    False if it cannot end so, now or later: nobody needs to wait for that.
    """
    if not has_log(row) or row.snapshot is None:
        return False
    while True:
        try:
            await _complete(storage, row)
            return True
        except _NoSnapshot:
            if not await _is_gone(storage, row):
                _log.error("response %s: its log cannot be completed, the snapshot is not there", row.id)
            return False
        except StorageRejected:  # and would be again, however often it is tried
            _log.exception("response %s: storage does not take the end of its log", row.id)
            return False
        except NotFound:
            if not await _make_anew(storage, row):
                return False


async def _make_anew(storage: Storage, row: ResponseRow) -> bool:
    """Create a log that was cleaned up before its row was inserted (R2); false if the response was deleted.

    Its marker comes before its blobs go: who sees none here leaves what it created to the deletion.
    """
    if await _is_gone(storage, row):
        return False
    await storage.log.ensure(row.segments[-1].name)
    if await _is_gone(storage, row):
        await storage.log.delete_all(row.partition_key, row.id)
        return False
    return True


async def _is_gone(storage: Storage, row: ResponseRow) -> bool:
    now = await read_row(storage, row.partition_key, row.id)
    return now is None or now.deleted


async def _complete(storage: Storage, row: ResponseRow) -> None:
    name = row.segments[-1].name
    lease_id = str(uuid.uuid4())
    pause = _FIRST_PAUSE
    while not (await read_log_end(storage.log, row)).closed:
        try:
            await storage.log.break_lease(name)
            await storage.log.acquire(name, lease_id)
            await _append_terminal(storage, row, lease_id)
        except (LeaseHeld, PreconditionFailed):
            # Another repairs it at this moment: look again, when it is likely to be done.
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(pause * 2, _LONGEST_PAUSE)


async def _append_terminal(storage: Storage, row: ResponseRow, lease_id: str) -> None:
    # Read under the lease: from here nobody else can append.
    end = await read_log_end(storage.log, row)
    if end.closed:
        return
    assert row.snapshot is not None
    try:
        snapshot = jsonio.loads(await storage.payloads.get(row.snapshot))
    except NotFound as error:
        raise _NoSnapshot from error
    data = b"".join(frame for _, frame in terminal_frames(snapshot, end.last_sequence))
    await storage.log.append(row.segments[-1].name, data, position=end.position, lease_id=lease_id)
