"""The end of a response as its stream tells it: built from the stored snapshot alone.

So that whoever writes it writes the same bytes.
"""

from typing import Any

from protocol import sse
from protocol.response import strip_internal

GENERIC_FAILURE = "The server had an error while processing your request."
"""What a client is told of a failure whose details are for the log only."""

_EVENT_OF_STATUS = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.failed",  # B7: there is no cancelled event; the response inside says it
}


def terminal_frames(snapshot: dict[str, Any], last_sequence: int) -> list[tuple[int, bytes]]:
    """The numbered frames that end a stream whose last event has that number (B8, B26).

    A stream that ends before its handler said anything still begins with ``response.created``.
    """
    visible = strip_internal(snapshot)
    events: list[dict[str, Any]] = []
    if last_sequence < 0:
        events.append({"type": "response.created", "response": begun(visible)})
    events.append({"type": _EVENT_OF_STATUS[snapshot["status"]], "response": visible})
    first = last_sequence + 1
    return [
        (first + index, sse.encode({**event, "sequence_number": first + index})) for index, event in enumerate(events)
    ]


def begun(snapshot: dict[str, Any]) -> dict[str, Any]:
    """The snapshot as it stood before anything came of it."""
    return {
        **snapshot,
        "status": "in_progress",
        "output": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "completed_at": None,
    }
