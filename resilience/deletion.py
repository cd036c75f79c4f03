"""Deleting a response: its row becomes a marker, everything beside it goes (V10).

A cleanup message is sent before: whoever receives it and meets the marker deletes what a crash in between left behind.
"""

from dataclasses import replace

from protocol.errors import CannotDeleteInFlight, ResponseNotFound
from protocol.response import TERMINAL_STATUSES
from resilience.acceptance import remove_blobs
from resilience.ownership import OwnershipLost, read_row, replace_row
from resilience.placement import tenant_in
from resilience.runtime import Runtime
from storage.payloads import StoredPayload
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
    if row is None or row.deleted:
        raise ResponseNotFound(response_id)
    if row.status not in TERMINAL_STATUSES:
        raise CannotDeleteInFlight
    await runtime.storage.work.send_cleanup(tenant_in(key), response_id, delay=_CLEAN_UP_DELAY)
    try:
        await replace_row(runtime.storage, _marker(row), runtime.settings.finish_patience)
    except OwnershipLost as lost:  # deleted by another at this moment
        raise ResponseNotFound(response_id) from lost
    await remove_blobs(runtime, key, response_id)


def _marker(row: ResponseRow) -> ResponseRow:
    return replace(
        row,
        deleted=True,
        owner="",
        lease_id="",
        segments=(),
        error_code="",
        conversation="",
        principal="",
        request=StoredPayload(inline=b""),
        snapshot=None,
    )
