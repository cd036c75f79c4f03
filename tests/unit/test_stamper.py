"""Events become frames: numbered without a gap, checked, filled, folded (B9, B23, B30, R7, R12, W4)."""

from typing import Any, cast

import pytest

from protocol import sse
from protocol.events import InvalidEvent
from protocol.response import failed, new_response
from resilience.outcome import terminal_frames
from resilience.stamper import Ending, Stamped, Stamper, check_size

RESPONSE_ID = "resp_" + "a" * 50

BASE = new_response({"model": "m"}, response_id=RESPONSE_ID, created_at=7)


def stamper(last: int = -1, *, recovery: bool = False, base: dict[str, Any] | None = None) -> Stamper:
    return Stamper(base or BASE, last_sequence=last, recovery=recovery, now=lambda: 99)


def lifecycle(name: str, **response: Any) -> dict[str, Any]:
    return {"type": f"response.{name}", "response": {**BASE, **response}}


def item(name: str = "added", index: int = 0, **fields: Any) -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": [], **fields}
    return {"type": f"response.output_item.{name}", "output_index": index, "item": message}


def decoded(result: list[Stamped] | Ending) -> list[dict[str, Any]]:
    assert isinstance(result, list)
    return [sse.decode(each.frame) for each in result]


def test_numbers_go_on_from_the_last_one_without_a_gap() -> None:
    stamp = stamper(last=41, recovery=True)
    assert stamp.begun
    frames = stamp.stamp(lifecycle("in_progress"))
    assert [event["sequence_number"] for event in decoded(frames)] == [42]
    assert stamp.last_sequence == 42


def test_a_suppressed_event_takes_no_number() -> None:
    """R7: created stands once."""
    stamp = stamper(last=4, recovery=True)
    assert stamp.stamp(lifecycle("created")) == []
    assert stamp.last_sequence == 4
    assert decoded(stamp.stamp(lifecycle("in_progress")))[0]["sequence_number"] == 5


def test_what_a_suppressed_event_says_counts_but_for_output_and_status() -> None:
    """R9; its reset would be one that readers do not see (R7)."""
    kept = {"type": "message", "role": "assistant", "content": []}
    stamp = stamper(last=4, recovery=True, base={**BASE, "status": "in_progress", "output": [kept]})
    begun = {"status": "queued", "model": "other", "output": []}
    assert stamp.stamp({"type": "response.created", "response": begun}) == []
    assert stamp.stamp({"type": "response.queued", "response": {"metadata": {"k": "v"}}}) == []
    snapshot = stamp.snapshot()
    assert (snapshot["status"], snapshot["output"]) == ("in_progress", [kept])
    told = decoded(stamp.stamp({"type": "response.in_progress", "response": {}}))[0]["response"]
    assert (told["model"], told["metadata"]) == ("other", {"k": "v"})


@pytest.mark.parametrize("last", [-1, 3], ids=["new", "suppressed"])
@pytest.mark.parametrize("name", ["created", "queued"])
def test_an_invalid_beginning_is_an_error_whether_it_is_shown_or_not(name: str, last: int) -> None:
    for broken in ({"metadata": "none"}, {"output": [{"type": "function_call"}]}, {"status": "asleep"}):
        stamp = stamper(last=last, recovery=True)
        before = stamp.snapshot()
        with pytest.raises(InvalidEvent):
            stamp.stamp(lifecycle(name, **broken))
        assert stamp.snapshot()["output"] == before["output"]


def test_a_recovered_entry_waits_visibly_only_where_nothing_is_in_the_stream_yet() -> None:
    stamp = stamper(recovery=True)
    events = [*decoded(stamp.stamp(lifecycle("queued"))), *decoded(stamp.stamp(lifecycle("in_progress")))]
    assert [event["type"] for event in events] == ["response.created", "response.queued", "response.in_progress"]
    stamp = stamper(last=0, recovery=True)
    assert stamp.stamp(lifecycle("queued")) == []
    assert [event["sequence_number"] for event in decoded(stamp.stamp(lifecycle("in_progress")))] == [1]


@pytest.mark.parametrize("last", [-1, 3], ids=["new", "suppressed"])
def test_queued_behind_anything_but_created_is_an_error(last: int) -> None:
    """B6: no way back."""
    for name in ("in_progress", "queued"):
        stamp = stamper(last=last, recovery=last >= 0)
        stamp.stamp(lifecycle("created"))
        stamp.stamp(lifecycle(name))
        with pytest.raises(InvalidEvent):
            stamp.stamp(lifecycle("queued"))


def test_an_invalid_event_takes_no_number() -> None:
    stamp = stamper()
    stamp.stamp(lifecycle("created"))
    with pytest.raises(InvalidEvent):
        stamp.stamp({"type": "response.output_text.delta"})
    with pytest.raises(InvalidEvent):
        stamp.stamp(item("done", 3))
    assert stamp.last_sequence == 0
    assert decoded(stamp.stamp(lifecycle("in_progress")))[0]["sequence_number"] == 1


def test_what_was_numbered_before_an_invalid_event_is_not_lost() -> None:
    """W4, W6: an open item is closed on account of a terminal event that cannot be used itself."""
    stamp = stamper()
    stamp.stamp(lifecycle("created"))
    stamp.stamp(item())
    with pytest.raises(InvalidEvent):
        stamp.stamp(lifecycle("completed", output=[{"type": "function_call"}]))
    closed = decoded(stamp.close_items())
    assert [(event["type"], event["sequence_number"]) for event in closed] == [("response.output_item.done", 2)]
    assert (stamp.last_sequence, stamp.close_items()) == (2, [])


def test_a_created_that_was_made_up_for_an_invalid_event_is_not_lost() -> None:
    stamp = stamper(recovery=True)
    with pytest.raises(InvalidEvent):
        stamp.stamp(item("done", 3))
    assert [event["type"] for event in decoded(stamp.close_items())] == ["response.created"]
    assert stamp.last_sequence == 0


def test_the_handlers_own_numbers_do_not_count() -> None:
    stamp = stamper()
    assert decoded(stamp.stamp({**lifecycle("created"), "sequence_number": 17}))[0]["sequence_number"] == 0


def test_created_twice_is_an_error_in_the_first_entry_and_in_a_recovered_one() -> None:
    for stamp in (stamper(), stamper(last=3, recovery=True)):
        stamp.stamp(lifecycle("created"))
        with pytest.raises(InvalidEvent):
            stamp.stamp(lifecycle("created"))


def test_a_first_event_that_is_not_created_is_an_error() -> None:
    for event in (lifecycle("in_progress"), item(), lifecycle("completed")):
        with pytest.raises(InvalidEvent):
            stamper().stamp(event)


def test_a_recovered_entry_whose_created_was_never_stored_gets_it() -> None:
    stamp = stamper(recovery=True)
    events = decoded(stamp.stamp(lifecycle("in_progress")))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress"]
    assert [event["sequence_number"] for event in events] == [0, 1]


def test_an_error_event_is_not_the_handlers_to_send() -> None:
    stamp = stamper()
    stamp.stamp(lifecycle("created"))
    with pytest.raises(InvalidEvent):
        stamp.stamp({"type": "error", "message": "x"})


@pytest.mark.parametrize("name", ["completed", "failed", "incomplete"])
def test_a_terminal_event_is_the_outcome_and_not_a_frame(name: str) -> None:
    stamp = stamper()
    stamp.stamp(lifecycle("created"))
    stamp.stamp(item())
    ending = stamp.stamp({"type": f"response.{name}", "response": {}})
    assert isinstance(ending, Ending)
    assert ending.snapshot["status"] == name
    assert (ending.snapshot["completed_at"] == 99) == (name == "completed")
    assert (ending.snapshot["error"] is not None) == (name == "failed")
    assert len(ending.snapshot["output"]) == 1
    # W6: the item that was left open is done first.
    assert [sse.decode(each.frame)["type"] for each in ending.frames] == ["response.output_item.done"]
    assert stamp.last_sequence == 2


def test_identity_and_flags_are_not_the_handlers_to_change() -> None:
    stamp = stamper()
    event = decoded(stamp.stamp(lifecycle("created", id="resp_other", created_at=1, store=False, background=True)))[0]
    assert event["response"] == {**BASE, "status": "in_progress"}


def test_snapshots_inside_events_hold_what_the_events_before_said() -> None:
    stamp = stamper()
    stamp.stamp(lifecycle("created"))
    stamp.stamp(item())
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    place = {"item_id": "x", "output_index": 0, "content_index": 0}
    stamp.stamp({"type": "response.content_part.added", **place, "part": part})
    stamp.stamp({"type": "response.output_text.delta", **place, "delta": "abc", "logprobs": []})
    assert stamp.snapshot()["output"][0]["content"][0]["text"] == "abc"


def test_items_are_completed_with_what_every_item_has() -> None:
    """B20, B21, W3."""
    base = new_response({"agent_reference": {"name": "a"}}, response_id=RESPONSE_ID, created_at=7)
    stamp = stamper(base=base)
    stamp.stamp(lifecycle("created"))
    told = decoded(stamp.stamp(item()))[0]["item"]
    assert told["response_id"] == RESPONSE_ID
    assert told["id"].startswith("msg_")
    assert told["status"] == "in_progress"
    assert told["agent_reference"]["name"] == "a"


def test_internal_metadata_is_folded_and_not_framed() -> None:
    """R12."""
    stamp = stamper()
    (created,) = stamp.stamp(lifecycle("created", internal_metadata={"k": "canary"})) or []  # type: ignore[misc]
    (added,) = stamp.stamp(item(internal_metadata={"k": "canary"})) or []  # type: ignore[misc]
    assert b"canary" not in created.frame + added.frame
    snapshot = stamp.snapshot()
    assert snapshot["internal_metadata"] == {"k": "canary"}
    assert snapshot["output"][0]["internal_metadata"] == {"k": "canary"}


def test_what_somebody_waits_for_is_marked() -> None:
    stamp = stamper()
    assert [each.at_once for each in stamp.stamp(lifecycle("created")) or []] == [True]  # type: ignore[union-attr]
    assert [each.at_once for each in stamp.stamp(item()) or []] == [False]  # type: ignore[union-attr]
    done = stamp.stamp(item("done", id="msg_x", status="completed"))
    assert [each.at_once for each in done or []] == [True]  # type: ignore[union-attr]


def test_an_event_is_not_changed_and_not_kept() -> None:
    stamp = stamper()
    event = lifecycle("created", metadata={"k": "v"})
    before = repr(event)
    stamp.stamp(event)
    assert repr(event) == before
    event["response"]["metadata"]["k"] = "changed"
    assert stamp.snapshot()["metadata"] == {"k": "v"}


# -- how much a handler may say (B30) ----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilience.stamper.MAX_RESPONSE", 20_000)
    monkeypatch.setattr("resilience.stamper.MAX_FRAME", 30_000)
    monkeypatch.setattr("resilience.stamper.MEASURED_EVERY", 1_000)


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "m", "delta": text}


def with_a_text() -> Stamper:
    stamp = stamper()
    stamp.stamp(lifecycle("created"))
    stamp.stamp(item())
    part = {"type": "output_text", "text": ""}
    at = {"output_index": 0, "content_index": 0, "item_id": "m"}
    stamp.stamp({"type": "response.content_part.added", **at, "part": part})
    return stamp


@pytest.mark.usefixtures("small")
def test_an_event_beyond_the_limit_takes_no_number_and_leaves_no_trace() -> None:
    stamp = with_a_text()
    before, last = stamp.snapshot(), stamp.last_sequence
    with pytest.raises(InvalidEvent):
        stamp.stamp(delta("x" * 30_000))
    assert (stamp.snapshot(), stamp.last_sequence) == (before, last)


def _say_until_refused(stamp: Stamper, event: dict[str, Any]) -> int:
    for told in range(10_000):
        try:
            stamp.stamp(event)
        except InvalidEvent:
            return told
    raise AssertionError("it may go on for ever")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("character", ["x", "\x85", "\u2028"])
def test_a_response_that_outgrows_its_limit_is_stopped_while_its_end_still_fits(character: str) -> None:
    """Its pieces are small; some characters are longer in a frame than in what is stored."""
    stamp = with_a_text()
    told = _say_until_refused(stamp, delta(character * 50))
    assert told > 30
    closing = stamp.close_items()
    assert [event["type"] for event in decoded(closing)] == ["response.output_text.delta", "response.output_item.done"]
    assert [each.sequence for each in closing] == [told + 3, told + 4]
    snapshot = stamp.snapshot()
    assert stamp.snapshot()["output"][0]["content"][0]["text"] == character * 50 * (told + 1)
    ((_, last),) = terminal_frames(failed(snapshot, "server_error", "no"), stamp.last_sequence)
    assert 20_000 < len(last) < 25_000


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("last", [-1, 3], ids=["new", "suppressed"])
@pytest.mark.parametrize("size", [25_000, 35_000], ids=["response", "frame"])
def test_a_created_beyond_the_limits_is_refused_whether_it_is_shown_or_not(size: int, last: int) -> None:
    with pytest.raises(InvalidEvent):
        stamper(last=last, recovery=True).stamp(lifecycle("created", instructions="x" * size))


@pytest.mark.usefixtures("small")
def test_an_outcome_beyond_the_limit_is_invalid_and_what_was_said_is_kept() -> None:
    stamp = with_a_text()
    stamp.stamp(delta("kept"))
    part = {"type": "output_text", "text": "\x85" * 4_000}
    message = {"type": "message", "role": "assistant", "content": [part]}
    with pytest.raises(InvalidEvent):
        stamp.stamp(lifecycle("completed", output=[message]))
    assert [event["type"] for event in decoded(stamp.close_items())] == ["response.output_item.done"]
    assert stamp.snapshot()["output"][0]["content"][0]["text"] == "kept"


@pytest.mark.usefixtures("small")
def test_much_that_leaves_the_response_small_is_no_reason_to_stop() -> None:
    stamp = with_a_text()
    for _ in range(200):
        stamp.stamp(delta(""))
        stamp.stamp(lifecycle("in_progress"))
        stamp.stamp(item())
        stamp.stamp(
            {
                "type": "response.content_part.added",
                "output_index": 0,
                "content_index": 0,
                "item_id": "m",
                "part": {"type": "output_text", "text": ""},
            }
        )
    assert isinstance(stamp.stamp(lifecycle("completed")), Ending)


def test_measuring_a_response_costs_no_more_than_saying_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def noted(snapshot: dict[str, Any]) -> int:
        measured.append(check_size(snapshot))
        return measured[-1]

    monkeypatch.setattr("resilience.stamper.check_size", noted)
    monkeypatch.setattr("resilience.stamper.MAX_RESPONSE", 2_400_000)
    monkeypatch.setattr("resilience.stamper.MEASURED_EVERY", 100_000)
    stamp = with_a_text()
    said = sum(len(each.frame) for _ in range(1_900) for each in cast("list[Stamped]", stamp.stamp(delta("x" * 1_000))))
    assert measured
    assert sum(measured) < 5 * said
