"""Deleting a response: its row becomes a marker, everything beside it goes (V10).

A cleanup message is sent before: whoever receives it and meets the marker deletes what a crash in between left behind.
"""

import asyncio
from functools import partial

from protocol.errors import CannotDeleteInFlight, ResponseNotFound
from protocol.response import TERMINAL_STATUSES
from resilience.placement import tenant_in
from resilience.predecessor import undeleted_before
from resilience.remains import remove_blobs
from resilience.response_row import OwnershipLost, read_row, replace_row, replace_with_chain
from resilience.rows import deletion_marker, is_unseen
from resilience.runtime import Runtime
from storage.chains import ChainRow, own_chain_key
from storage.rows import ResponseRow

_CLEAN_UP_DELAY = 5.0
"""Seconds until the message that completes an interrupted deletion is seen."""


async def delete(runtime: Runtime, key: str, response_id: str) -> None:
    """Delete a finished response.

    Raises:
        ResponseNotFound: There is none, it is gone already, or it is a foreground one in flight (B16).
        CannotDeleteInFlight: It has no outcome yet.
    """
    row = await read_row(runtime.storage, key, response_id)
    if row is None or row.deleted or is_unseen(row):
        raise ResponseNotFound(response_id)
    if row.status not in TERMINAL_STATUSES:
        raise CannotDeleteInFlight
    loop_time = asyncio.get_running_loop().time
    began = loop_time()
    await runtime.storage.work.send_cleanup(tenant_in(key), response_id, delay=_CLEAN_UP_DELAY)
    try:
        if row.turn:
            await _mark_in_chain(runtime, row)
        else:
            await replace_row(runtime.storage, deletion_marker(row), runtime.settings.finish_patience)
            await runtime.storage.chains.delete(key, own_chain_key(response_id))
    except OwnershipLost as lost:  # deleted by another at this moment
        raise ResponseNotFound(response_id) from lost
    if loop_time() - began > _CLEAN_UP_DELAY / 2:  # the message may have been received before there was a marker
        await runtime.storage.work.send_cleanup(tenant_in(key), response_id, delay=_CLEAN_UP_DELAY)
    await remove_blobs(runtime, key, response_id)


class _Outdated(Exception):
    """The chain was changed since it was found out which turn comes before."""


async def _mark_in_chain(runtime: Runtime, row: ResponseRow) -> None:
    """Where the last turn is deleted, the chain goes on from the one before it.

    That one may be deleted at the same time: it is looked for again whenever the chain was changed.
    """
    patience = runtime.settings.finish_patience
    while True:
        seen = await runtime.storage.chains.read(row.partition_key)
        before = await undeleted_before(runtime, row) if _is_continued(seen, row.id) else ""
        forget = partial(_forget, seen, row.id, before)
        try:
            await replace_with_chain(runtime.storage, deletion_marker(row), forget, patience, known=seen)
        except _Outdated:
            continue
        return


def _forget(seen: ChainRow, response_id: str, before: str, chain: ChainRow) -> ChainRow:
    if chain.etag != seen.etag:
        raise _Outdated
    return chain.continued_from(before, instead_of=response_id)


def _is_continued(chain: ChainRow, response_id: str) -> bool:
    """True if a turn that came, or may come, follows this one."""
    return response_id in (chain.last, *(turn.previous for turn in chain.unfinished))
