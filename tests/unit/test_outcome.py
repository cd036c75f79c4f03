"""The end of a stream, from the stored snapshot alone."""

from typing import Any

import pytest

from protocol import sse
from protocol.response import cancelled, completed, failed, new_response
from resilience.outcome import terminal_frames
from tests.support.invariants import check_frames

BASE = new_response({"model": "m"}, response_id="resp_" + "a" * 50, created_at=7)

ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "completed": (completed(BASE, 9), "response.completed"),
    "failed": (failed(BASE), "response.failed"),
    "cancelled": (cancelled(BASE), "response.failed"),
    "incomplete": (
        {**BASE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
        "response.incomplete",
    ),
}


@pytest.mark.parametrize("status", ENDS)
def test_a_begun_stream_gets_one_frame_with_the_next_number(status: str) -> None:
    snapshot, name = ENDS[status]
    ((number, frame),) = terminal_frames(snapshot, 4)
    (event,) = check_frames([frame])
    assert (number, event["sequence_number"], event["type"]) == (5, 5, name)
    assert event["response"] == snapshot
    assert event["response"]["status"] == status


@pytest.mark.parametrize("status", ENDS)
def test_a_stream_that_never_began_gets_created_before(status: str) -> None:
    snapshot, name = ENDS[status]
    frames = terminal_frames(snapshot, -1)
    assert [number for number, _ in frames] == [0, 1]
    created, end = check_frames([frame for _, frame in frames])
    assert (created["type"], end["type"]) == ("response.created", name)
    assert created["response"]["status"] == "in_progress"
    assert created["response"]["output"] == []


def test_whoever_writes_it_writes_the_same_bytes() -> None:
    snapshot = ENDS["failed"][0]
    assert terminal_frames(dict(snapshot), 3) == terminal_frames(snapshot, 3)


def test_nothing_internal_is_in_it() -> None:
    snapshot = {**ENDS["completed"][0], "internal_metadata": {"k": "canary"}}
    frames = b"".join(frame for _, frame in terminal_frames(snapshot, -1))
    assert b"canary" not in frames
    assert sse.is_terminal(terminal_frames(snapshot, 0)[-1][1])
