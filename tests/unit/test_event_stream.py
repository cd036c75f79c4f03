from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.builders import BuilderOrderError
from protocol.event_stream import CHECKPOINT, ResponseEventStream
from protocol.events import InvalidEvent
from protocol.fold import Fold
from tests.support.stream_oracle import assert_response, assert_valid, assert_whole

RESPONSE_ID = "resp_" + "p" * 18 + "r" * 32
REQUEST: dict[str, Any] = {
    "model": "gpt-5",
    "input": "hi",
    "temperature": 0.5,
    "metadata": {"k": "v"},
    "conversation": "conv_1",
    "agent_reference": {"type": "agent_reference", "name": "a", "version": "1"},
}


def new_stream(**keywords: Any) -> ResponseEventStream:
    return ResponseEventStream(**{"response_id": RESPONSE_ID, "request": REQUEST, **keywords})


def running() -> ResponseEventStream:
    stream = new_stream()
    stream.emit_created()
    stream.emit_in_progress()
    return stream


def test_lifecycle_events_carry_the_whole_response_of_their_moment() -> None:
    stream = new_stream(created_at=1_700_000_000)
    stream.emit_created(status="queued")
    stream.emit_queued()
    stream.emit_in_progress()
    list(stream.output_item_message("Hi"))
    stream.emit_completed(usage={"input_tokens": 3, "output_tokens": 4})
    events = stream.events()
    final = assert_whole(events)
    snapshots = [event["response"] for event in events if "response" in event]
    assert [snapshot["status"] for snapshot in snapshots] == ["queued", "queued", "in_progress", "completed"]
    assert [len(snapshot["output"]) for snapshot in snapshots] == [0, 0, 0, 1]
    assert all(snapshot.keys() == snapshots[0].keys() for snapshot in snapshots)
    for snapshot in snapshots:
        assert_response(snapshot)
    assert final["temperature"] == 0.5
    assert final["created_at"] == 1_700_000_000
    assert final["conversation"] == {"id": "conv_1"}
    assert final["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }


def test_created_at_is_now_when_nobody_says() -> None:
    assert new_stream().response["created_at"] > 1_700_000_000


def test_response_is_up_to_date_after_every_event() -> None:
    stream = running()
    item = stream.add_output_item_message()
    item.emit_added()
    text = item.add_text_content()
    text.emit_added()
    text.emit_delta("half ")
    assert stream.response["output"][0]["content"][0]["text"] == "half "
    text.emit_delta("way")
    assert stream.response["output"][0]["content"][0]["text"] == "half way"
    assert stream.response["status"] == "in_progress"


def test_field_set_on_the_response_stands_in_the_next_snapshot() -> None:
    stream = running()
    stream.response["metadata"]["step"] = "2"
    stream.response["instructions"] = "be brief"
    final = stream.emit_completed()["response"]
    assert final["metadata"] == {"k": "v", "step": "2"}
    assert final["instructions"] == "be brief"


def test_emitted_event_does_not_change_afterwards() -> None:
    stream = running()
    created = stream.events()[0]
    first = stream.emit_in_progress()
    stream.response["metadata"]["later"] = "1"
    list(stream.output_item_message("x"))
    assert first["response"]["output"] == []
    assert first["response"]["metadata"] == {"k": "v"}
    assert stream.events()[0] == created


def test_response_cannot_be_changed_through_events() -> None:
    stream = running()
    stream.events()[0]["response"]["model"] = "other"
    assert stream.events()[0]["response"]["model"] == "gpt-5"


def test_model_and_agent_reference_are_taken_over_the_requests() -> None:
    stream = new_stream(model="mine", agent_reference={"name": "b"})
    snapshot = stream.emit_created()["response"]
    assert snapshot["model"] == "mine"
    assert snapshot["agent_reference"] == {"type": "agent_reference", "name": "b", "version": "1"}
    item = next(stream.output_item_message("x"))["item"]
    assert item["agent_reference"] == snapshot["agent_reference"]
    assert item["response_id"] == RESPONSE_ID


def test_stream_without_request_still_makes_a_readable_response() -> None:
    stream = ResponseEventStream(response_id=RESPONSE_ID)
    stream.emit_created()
    stream.emit_in_progress()
    stream.emit_completed()
    assert_response(assert_whole(stream.events()))


def test_stream_needs_an_id_and_only_one_origin() -> None:
    with pytest.raises(ValueError, match="response_id"):
        ResponseEventStream()
    with pytest.raises(ValueError, match="response_id"):
        ResponseEventStream(response={"model": "m"})
    with pytest.raises(ValueError, match="both"):
        ResponseEventStream(response_id=RESPONSE_ID, request={}, response={})


def test_failed_says_why_and_keeps_the_output() -> None:
    stream = running()
    list(stream.output_item_message("kept"))
    stream.emit_failed(code="rate_limit_exceeded", message="slow down", metadata={"attempt": "2"}, usage={})
    final = assert_whole(stream.events())
    assert final["status"] == "failed"
    assert final["error"] == {"code": "rate_limit_exceeded", "message": "slow down"}
    assert final["metadata"] == {"k": "v", "attempt": "2"}
    assert final["usage"]["total_tokens"] == 0
    assert len(final["output"]) == 1
    assert_response(final)


def test_failed_without_arguments_is_a_server_error() -> None:
    error = running().emit_failed()["response"]["error"]
    assert error == {"code": "server_error", "message": "An internal server error occurred."}


def test_incomplete_ends_what_was_begun_as_incomplete() -> None:
    stream = running()
    item = stream.add_output_item_message()
    item.emit_added()
    text = item.add_text_content()
    text.emit_added()
    text.emit_delta("cut o")
    picture = stream.add_output_item_image_gen_call()
    picture.emit_added()
    stream.emit_incomplete(reason="max_output_tokens")
    final = stream.events()[-1]["response"]
    assert final["status"] == "incomplete"
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["output"][0]["status"] == "incomplete"
    assert final["output"][0]["content"][0]["text"] == "cut o"
    assert final["output"][1]["status"] == "in_progress", "pictures know no status incomplete"
    assert_valid(stream.events())
    assert_response(final)
    assert stream.response["output"] == final["output"]


def test_incomplete_without_a_reason_has_no_details() -> None:
    assert running().emit_incomplete()["response"]["incomplete_details"] is None


# Recovery


def persisted() -> dict[str, Any]:
    stream = new_stream(created_at=1_700_000_000)
    stream.emit_created()
    stream.emit_in_progress()
    list(stream.output_item_message("first phase"))
    stream.internal_metadata["phase"] = 1
    item = stream.add_output_item_message()
    item.internal_metadata["cursor"] = "c"
    item.emit_added()
    snapshot: dict[str, Any] = stream.checkpoint()["response"]
    return snapshot


def test_seeded_stream_begins_with_the_reset_and_continues_the_output() -> None:
    snapshot = persisted()
    stream = ResponseEventStream(response=snapshot)
    reset = stream.emit_in_progress()
    assert reset["response"]["output"] == snapshot["output"]
    assert reset["response"]["created_at"] == 1_700_000_000
    assert reset["response"]["id"] == RESPONSE_ID
    assert reset["response"]["conversation"] == {"id": "conv_1"}
    assert [event["output_index"] for event in stream.output_item_message("second phase")] == [2] * 6
    stream.emit_completed()
    assert_valid(stream.events())
    final = stream.events()[-1]["response"]
    assert [item["status"] for item in final["output"]] == ["completed", "incomplete", "completed"]
    assert_response(final)


def test_seeded_stream_may_also_begin_with_created() -> None:
    stream = ResponseEventStream(response=persisted())
    stream.emit_created()
    stream.emit_in_progress()
    list(stream.output_item_message("on"))
    assert len(stream.emit_completed()["response"]["output"]) == 3


def test_seeded_stream_keeps_internal_metadata() -> None:
    stream = ResponseEventStream(response=persisted())
    assert stream.internal_metadata == {"phase": 1}
    assert stream.emit_in_progress()["response"]["output"][1]["internal_metadata"] == {"cursor": "c"}


def test_output_of_a_seed_can_be_cut_before_the_first_event() -> None:
    stream = ResponseEventStream(response=persisted())
    stream.response["output"].pop()
    assert len(stream.emit_in_progress()["response"]["output"]) == 1
    assert {event["output_index"] for event in stream.output_item_message("again")} == {1}


def test_seed_is_not_changed_by_the_stream() -> None:
    snapshot = persisted()
    before = persisted_shape(snapshot)
    stream = ResponseEventStream(response=snapshot)
    stream.emit_in_progress()
    list(stream.output_item_message("more"))
    stream.response["metadata"]["x"] = "y"
    assert persisted_shape(snapshot) == before


def persisted_shape(snapshot: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return len(snapshot["output"]), dict(snapshot["metadata"])


def test_bare_seed_is_completed_to_a_whole_response() -> None:
    stream = ResponseEventStream(response={"id": RESPONSE_ID, "model": "m", "status": "queued"})
    stream.emit_created()
    stream.emit_completed()
    assert_response(assert_whole(stream.events()))


# Internal metadata and checkpoints


def test_internal_metadata_stands_in_snapshots_once_there_is_some() -> None:
    stream = running()
    assert stream.internal_metadata == {}
    assert "internal_metadata" not in stream.emit_in_progress()["response"]
    stream.internal_metadata["step"] = 3
    assert stream.checkpoint()["response"]["internal_metadata"] == {"step": 3}
    assert stream.emit_completed()["response"]["internal_metadata"] == {"step": 3}


def test_checkpoint_holds_the_snapshot_and_is_no_event() -> None:
    stream = running()
    list(stream.output_item_message("phase 1"))
    before = stream.events()
    checkpoint = stream.checkpoint()
    assert checkpoint == {"type": CHECKPOINT, "response": stream.response}
    assert stream.events() == before
    stream.emit_completed()
    assert_whole(stream.events())


def test_checkpoint_after_the_end_is_left_to_the_host() -> None:
    stream = running()
    stream.emit_completed()
    assert stream.checkpoint()["response"]["status"] == "completed"


# Order

OUT_OF_ORDER: dict[str, tuple[Callable[[ResponseEventStream], object], str, str]] = {
    "in_progress first": (
        lambda stream: stream.emit_in_progress(),
        "emit_in_progress",
        "response.in_progress cannot come now, emit_created() must come first",
    ),
    "completed first": (
        lambda stream: stream.emit_completed(),
        "emit_completed",
        "response.completed cannot come now, emit_created() must come first",
    ),
    "item first": (
        lambda stream: next(stream.output_item_message("x")),
        "emit_event",
        "response.output_item.added cannot come now, emit_created() must come first",
    ),
    "checkpoint first": (lambda stream: stream.checkpoint(), "checkpoint", "emit_created() must come first"),
    "created twice": (
        lambda stream: (stream.emit_created(), stream.emit_created()),
        "emit_created",
        "response.created cannot come now, it can only be the first event",
    ),
    "queued too late": (
        lambda stream: (stream.emit_created(), stream.emit_in_progress(), stream.emit_queued()),
        "emit_queued",
        "response.queued cannot come now, it can only follow response.created",
    ),
    "two ends": (
        lambda stream: (stream.emit_created(), stream.emit_completed(), stream.emit_failed()),
        "emit_failed",
        "response.failed cannot come now, nothing can follow response.completed",
    ),
    "item after the end": (
        lambda stream: (stream.emit_created(), stream.emit_failed(), list(stream.output_item_compaction("x"))),
        "emit_event",
        "response.output_item.added cannot come now, nothing can follow response.failed",
    ),
    "completed with an open item": (
        lambda stream: (
            stream.emit_created(),
            stream.add_output_item_message().emit_added(),
            stream.emit_completed(),
        ),
        "emit_completed",
        "item 0 must be done first",
    ),
}


@pytest.mark.parametrize("case", OUT_OF_ORDER)
def test_lifecycle_out_of_order_names_the_call_and_what_was_expected(case: str) -> None:
    act, call, expected = OUT_OF_ORDER[case]
    with pytest.raises(BuilderOrderError) as caught:
        act(new_stream())
    assert (caught.value.builder, caught.value.call, caught.value.expected) == ("ResponseEventStream", call, expected)


def test_seeded_stream_still_begins_with_a_lifecycle_event() -> None:
    with pytest.raises(BuilderOrderError, match=r"emit_in_progress\(\) or emit_created\(\) must come first"):
        next(ResponseEventStream(response=persisted()).output_item_message("x"))


def test_refused_lifecycle_call_changes_nothing() -> None:
    stream = running()
    with pytest.raises(BuilderOrderError):
        stream.emit_queued()
    assert stream.response["status"] == "in_progress"
    assert [event["type"] for event in stream.events()] == ["response.created", "response.in_progress"]


def test_response_cannot_be_created_in_another_status() -> None:
    with pytest.raises(ValueError, match="completed"):
        new_stream().emit_created(status="completed")


def test_event_of_ones_own_making_is_numbered_and_folded() -> None:
    stream = running()
    list(stream.output_item_message("Hi"))
    item_id = stream.response["output"][0]["id"]
    event = stream.emit_event(
        {
            "type": "response.output_text.done",
            "sequence_number": 99,
            "item_id": item_id,
            "output_index": 0,
            "content_index": 0,
            "text": "Ho",
            "logprobs": [],
        }
    )
    assert list(event)[:2] == ["type", "sequence_number"]
    assert event["sequence_number"] == 8
    assert stream.response["output"][0]["content"][0]["text"] == "Ho"


def test_event_that_fits_nothing_is_refused() -> None:
    with pytest.raises(InvalidEvent):
        running().emit_event({"type": "response.refusal.delta", "output_index": 4, "content_index": 0, "delta": "x"})


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6)


@given(st.lists(st.tuples(st.sampled_from(["message", "reasoning", "call"]), TEXTS), max_size=6))
def test_whatever_is_said_in_whatever_chunks_the_final_output_says_the_same(items: list[tuple[str, list[str]]]) -> None:
    stream = running()
    for kind, chunks in items:
        if kind == "message":
            list(stream.output_item_message(chunks))
        elif kind == "reasoning":
            list(stream.output_item_reasoning_item(chunks))
        else:
            list(stream.output_item_function_call("f", "c", chunks))
    stream.emit_completed()
    events = stream.events()
    final = assert_whole(events)
    fold = Fold(events[0]["response"])
    for event in events:
        fold.apply(event)
    assert fold.snapshot() == final
    assert len(final["output"]) == len(items)
    for (kind, chunks), item in zip(items, final["output"], strict=True):
        parts = {"message": item.get("content"), "reasoning": item.get("summary")}.get(kind)
        assert "".join(chunks) == (parts[0]["text"] if parts else item["arguments"])
