"""A client's cancel, decided by the row (B1, B3, B7, B11, B12).

The CAS that writes `cancelled` is the decision: against a terminal row it is not tried, against a concurrent one it
is refused and looked at again. The owner of the run learns of it within a second, or at once in the same process,
and writes the terminal frame; where nobody owns the run, the canceller completes the log itself.

A turn leaves its chain with the same write. The owner of a run starts the next one after its handler has wound down,
and nobody else does before (`ending` of the chain);
where nobody owns the turn the canceller does, and a delayed start message of the cancelled turn, sent before, makes
sure of it: whoever receives it finds the turn finished and starts the chain's active one.
"""

from dataclasses import replace
from typing import Any

from protocol import jsonio
from protocol.errors import CannotCancel, ResponseDeleted, ResponseNotFound
from protocol.response import TERMINAL_STATUSES, cancelled, strip_internal
from resilience.chain import INSURANCE_DELAY, start_active
from resilience.log_repair import complete_log
from resilience.placement import tenant_in
from resilience.remains import remove_blobs
from resilience.response_row import OwnershipLost, read_row, replace_row, replace_with_outcome
from resilience.rows import is_unseen
from resilience.runtime import Runtime
from resilience.snapshots import snapshot_of
from storage.chains import ChainRow
from storage.expiry import StoredResponse
from storage.rows import ResponseRow


async def cancel(runtime: Runtime, key: str, response_id: str) -> dict[str, Any]:
    """The cancelled response.

    Raises:
        ResponseNotFound: There is none, it was deleted, or it is a foreground one in flight (B16).
        CannotCancel: It has another outcome already, or is no background response.
    """
    row = await read_row(runtime.storage, key, response_id)
    while True:
        if row is None or row.deleted or is_unseen(row):
            raise ResponseNotFound(response_id)
        if not row.background:
            raise CannotCancel
        if row.status in TERMINAL_STATUSES and row.status != "cancelled":
            raise CannotCancel(row.status)
        try:
            if row.status == "cancelled":
                return strip_internal(await snapshot_of(runtime, row))
            return await _decide(runtime, row)
        except OwnershipLost as lost:
            row = lost.row
            if row is None or row.deleted:  # a snapshot was stored for it too late
                await remove_blobs(runtime, key, response_id)
        except ResponseDeleted as error:  # another cancelled and deleted it at this moment
            raise ResponseNotFound(response_id) from error


async def _decide(runtime: Runtime, row: ResponseRow) -> dict[str, Any]:
    snapshot = cancelled(await snapshot_of(runtime, row))
    stored = await runtime.storage.payloads.put(row.partition_key, row.id, "snapshot", jsonio.dumps(snapshot))
    wanted = replace(row, status="cancelled", snapshot=stored)
    left: ChainRow | None = None
    if not row.owner:  # it never was in a ledger that would note it
        await runtime.storage.expiry.note(runtime.now(), [StoredResponse(row.partition_key, row.id)])
    if row.turn:
        decided, left = await _decide_in_chain(runtime, wanted)
    else:
        decided = await replace_row(runtime.storage, wanted, runtime.settings.finish_patience)
    runtime.telemetry.count_outcome(snapshot, row.disposition)
    running = runtime.running.get(row.id)
    if running is not None:
        running.cancelled(decided)
    elif not row.owner:
        await complete_log(runtime.storage, decided)
        await start_active(runtime, left)
    return strip_internal(snapshot)


async def _decide_in_chain(runtime: Runtime, wanted: ResponseRow) -> tuple[ResponseRow, ChainRow | None]:
    """The decided row, and the chain if the turn was its active one."""
    if not wanted.owner:
        await runtime.storage.work.send_start(tenant_in(wanted.partition_key), wanted.id, delay=INSURANCE_DELAY)
    was_active = False

    def leave(chain: ChainRow) -> ChainRow:
        nonlocal was_active
        was_active = chain.active is not None and chain.active.id == wanted.id
        return chain.without_turn(wanted.id, runs_on=bool(wanted.owner))

    decided, left = await replace_with_outcome(runtime.storage, wanted, leave, runtime.settings.finish_patience)
    return decided, left if was_active else None
