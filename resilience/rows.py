"""The first row of a response, made from its record, and the last one, which says that it was deleted.

The first one is made by acceptance, by a foreground run at its end, or by whoever finds that run dead.
"""

from dataclasses import replace

from protocol.response import TERMINAL_STATUSES
from resilience.dispatch import Disposition
from resilience.record import RequestRecord
from storage.payloads import StoredPayload
from storage.rows import ResponseRow


def first_row(
    key: str, record: RequestRecord, disposition: Disposition, request: StoredPayload, *, status: str = "queued"
) -> ResponseRow:
    """The row of a response that nobody owns yet."""
    return ResponseRow(
        partition_key=key,
        id=record.response_id,
        status=status,
        disposition=disposition,
        background=disposition.runs_in_background,
        stream=bool(record.request.get("stream")),
        created_at=record.created_at,
        conversation=record.conversation,
        previous_response_id=record.previous_response_id,
        principal=record.principal,
        request_key=record.request_key,
        request=request,
    )


def deletion_marker(row: ResponseRow) -> ResponseRow:
    """The row that says that a response was deleted, and nothing of what was in it (V10)."""
    return replace(
        row,
        deleted=True,
        lease_id="",
        segments=(),
        error_code="",
        conversation="",
        principal="",
        request=StoredPayload(inline=b""),
        snapshot=None,
    )


def is_unseen(row: ResponseRow) -> bool:
    """True for a foreground response in flight, of which nobody is told (B16); only turns of a chain have a row."""
    return not row.background and row.status not in TERMINAL_STATUSES
