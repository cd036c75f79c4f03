"""Taking back a response whose client was told that there is none; its id was never given out.

What there is of it goes. A try to insert its row that got no answer may still be carried out by storage, long after
everybody here gave it up: such a row would name a worker that knows nothing of it, and be in flight for ever. So the
place of a row that is there, or that may come, is taken by a deletion marker, which refuses that insert whenever it
comes; retention removes the marker. A turn needs none: its insert goes with the chain, which is not as it was.

Whoever has claimed it meanwhile runs it to its end, and what there is of it goes after its handler: one handler at a
time. A claim is told by its lease id, for every claim draws its own: a row that names this very worker may be as its
insert left it, or claimed here since, with the reply still on its way and the run not yet begun.

Until all is done the response stays open in the ledger of its worker: should this process die before, it is run, to
nobody's harm.
"""

import asyncio
import logging
from dataclasses import replace

from protocol.response import TERMINAL_STATUSES
from resilience import chain as chains
from resilience.idempotency import RequestKey
from resilience.predecessor import undeleted_before
from resilience.remains import remove_blobs
from resilience.response_row import read_row
from resilience.rows import deletion_marker
from resilience.run_entries import close_run
from resilience.runtime import Runtime
from storage.errors import AlreadyExists, ChainMoved, NotFound, PreconditionFailed, StorageError, StorageUnavailable
from storage.expiry import StoredResponse
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.abandonment")

_RETRY_SECONDS = 5.0


async def abandon(
    runtime: Runtime,
    wanted: ResponseRow,
    worker_id: str = "",
    *,
    request_key: RequestKey | None = None,
    unanswered: bool,
) -> None:
    """Undo what there is of a response.

    Args:
        wanted: Its row, as it would have been; with the lease id that it was to have, if it was to be claimed at once.
        worker_id: The worker whose ledger has it open; "" for none.
        request_key: The key that stands for it; it is released.
        unanswered: An insert of its row may still be carried out.
    """
    key, response_id = wanted.partition_key, wanted.id
    while True:
        try:
            if await _is_withdrawn(runtime, wanted, unanswered=unanswered):
                await remove_blobs(runtime, key, response_id)
                if request_key is not None:
                    await request_key.release(response_id)
                break
            await asyncio.sleep(_RETRY_SECONDS)
        except (AlreadyExists, NotFound):
            continue  # the row came, or went, at this moment
        except (StorageUnavailable, PreconditionFailed, ChainMoved):
            await asyncio.sleep(_RETRY_SECONDS)
        except StorageError:
            # A chain that cannot be read, say: another time, or by whoever looks after it when this process dies.
            _log.exception("response %s: it cannot be taken back now", response_id)
            await asyncio.sleep(_RETRY_SECONDS)
    # A write of ours, of which we heard nothing, may have made another turn the active one.
    await chains.revive_stubbornly(runtime, key, response_id)
    if worker_id:
        close_run(runtime, worker_id, response_id)


async def _is_withdrawn(runtime: Runtime, wanted: ResponseRow, *, unanswered: bool) -> bool:
    """Take its row away; false while somebody runs it: one handler at a time, its turn is over when that is."""
    row = await read_row(runtime.storage, wanted.partition_key, wanted.id)
    if row is not None and _runs(runtime, row, wanted):
        return False
    if row is not None and row.turn:
        return await _has_left_chain(runtime, row)
    if unanswered or row is not None:  # the latter: an earlier try may come still
        await _fence(runtime, wanted if row is None else row)
    return True


async def _fence(runtime: Runtime, row: ResponseRow) -> None:
    # First: nothing else leads to the marker if this process dies behind it (V10).
    await runtime.storage.expiry.note(runtime.now(), [StoredResponse(row.partition_key, row.id)])
    if not row.deleted:
        # Not under its key: who repeats the request is not told of a deletion, but makes it anew.
        marker = replace(deletion_marker(row), status="failed", request_key="")
        await (runtime.storage.rows.replace(marker) if row.etag else runtime.storage.rows.insert(marker))


def _runs(runtime: Runtime, row: ResponseRow, wanted: ResponseRow) -> bool:
    """True if somebody has claimed it already, or if this process is not done with it (its handler cleans up)."""
    claimed = bool(row.owner) and row.lease_id != wanted.lease_id
    return row.id in runtime.running or (claimed and row.status not in TERMINAL_STATUSES)


async def _has_left_chain(runtime: Runtime, row: ResponseRow) -> bool:
    """Delete a turn's row, and with it the turn; an insert that was made for the chain as it was is refused, too.

    False while its handler cleans up in another process behind its outcome: that one begins the next turn after it.
    """
    chain = await runtime.storage.chains.read(row.partition_key)
    named = chain.ending == row.id or chain.turn(row.id) is not None  # the latter: it was not told of the outcome
    if named and await chains.is_wound_down_elsewhere(runtime, row):
        return False
    if chain.turn(row.id) is None:  # somebody ran it to its end
        left = chain.continued_from(await undeleted_before(runtime, row), instead_of=row.id)
    else:
        left = chain.without_trace(row.id)
    await runtime.storage.chains.delete_row(row, left)
    return True
