"""A client's cancel, decided by the row (B1, B3, B7, B11, B12).

The CAS that writes `cancelled` is the decision: against a terminal row it is not tried, against a concurrent one it
is refused and looked at again. The owner of the run learns of it within a second, or at once in the same process,
and writes the terminal frame; where nobody owns the run, the canceller completes the log itself.
"""

from dataclasses import replace
from typing import Any

from protocol import jsonio
from protocol.errors import CannotCancel, ResponseNotFound
from protocol.response import TERMINAL_STATUSES, cancelled, strip_internal
from resilience.log_repair import complete_log
from resilience.ownership import OwnershipLost, read_row, replace_row
from resilience.runtime import Runtime
from resilience.snapshots import snapshot_of
from storage.rows import ResponseRow


async def cancel(runtime: Runtime, key: str, response_id: str) -> dict[str, Any]:
    """The cancelled response.

    Raises:
        ResponseNotFound: There is none, it was deleted, or it is a foreground one in flight (B16).
        CannotCancel: It has another outcome already, or is no background response.
    """
    row = await read_row(runtime.storage, key, response_id)
    while True:
        if row is None or row.deleted:
            raise ResponseNotFound(response_id)
        if not row.background:
            raise CannotCancel
        if row.status == "cancelled":
            return strip_internal(await snapshot_of(runtime, row))
        if row.status in TERMINAL_STATUSES:
            raise CannotCancel(row.status)
        try:
            return await _decide(runtime, row)
        except OwnershipLost as lost:
            row = lost.row


async def _decide(runtime: Runtime, row: ResponseRow) -> dict[str, Any]:
    snapshot = cancelled(await snapshot_of(runtime, row))
    stored = await runtime.storage.payloads.put(row.partition_key, row.id, "snapshot", jsonio.dumps(snapshot))
    decided = await replace_row(
        runtime.storage, replace(row, status="cancelled", snapshot=stored), runtime.settings.finish_patience
    )
    running = runtime.running.get(row.id)
    if running is not None:
        running.cancelled(decided)
    elif not row.owner:
        await complete_log(runtime.storage, decided)
    return strip_internal(snapshot)
