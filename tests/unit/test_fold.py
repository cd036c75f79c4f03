"""The fold of a log gives the response that a GET shows (V6, R7, B6, B7, B37, W6)."""

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from protocol import ids
from protocol.events import InvalidEvent
from protocol.fold import Fold
from protocol.items import complete_item
from protocol.response import new_response

Event = dict[str, Any]
RESPONSE_ID = ids.new_response_id(ids.new_partition())
BASE = new_response({}, response_id=RESPONSE_ID, created_at=5)


def item(item_type: str = "message", **more: Any) -> dict[str, Any]:
    return complete_item({"type": item_type, "id": "i", **more}, RESPONSE_ID, status="in_progress")


def added(whole: dict[str, Any], index: int = 0) -> Event:
    return {"type": "response.output_item.added", "output_index": index, "item": whole}


def done(whole: dict[str, Any], index: int = 0) -> Event:
    return {"type": "response.output_item.done", "output_index": index, "item": whole}


def about(name: str, index: int = 0, **more: Any) -> Event:
    return {"type": f"response.{name}", "output_index": index, "item_id": "i", **more}


def text(piece: str, part: int = 0, **more: Any) -> Event:
    return about("output_text.delta", content_index=part, delta=piece, logprobs=[], **more)


def folded(*events: Event, base: dict[str, Any] = BASE) -> dict[str, Any]:
    fold = Fold(base)
    for event in events:
        fold.apply(event)
    return fold.snapshot()


def only(snapshot: dict[str, Any]) -> Any:
    (single,) = snapshot["output"]
    return single


def test_nothing_applied_gives_the_base() -> None:
    assert folded() == BASE


def test_a_message_grows_delta_by_delta() -> None:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    fold = Fold(BASE)
    fold.apply(added(item()))
    fold.apply(about("content_part.added", content_index=0, part=part))
    for piece in ("a", "b"):
        fold.apply(text(piece))
    middle = fold.snapshot()
    fold.apply(text("c"))

    assert only(middle)["content"] == [{**part, "text": "ab"}]
    assert only(fold.snapshot())["content"] == [{**part, "text": "abc"}]
    assert only(middle)["content"] == [{**part, "text": "ab"}]
    Response.model_validate(fold.snapshot(), strict=True)


def test_done_events_have_the_last_word() -> None:
    final = {"type": "output_text", "text": "final", "annotations": [], "logprobs": []}
    start = (added(item()), text("dra"))

    assert (
        only(folded(*start, about("output_text.done", content_index=0, text="draft", logprobs=[])))["content"][0][
            "text"
        ]
        == "draft"
    )
    assert only(folded(*start, about("content_part.done", content_index=0, part=final)))["content"] == [final]
    whole = {**item(), "status": "completed", "content": [final]}
    assert only(folded(*start, done(whole))) == whole


def test_deltas_after_a_done_go_on_from_it() -> None:
    snapshot = folded(
        added(item()), text("x"), about("output_text.done", content_index=0, text="a", logprobs=[]), text("b")
    )

    assert only(snapshot)["content"][0]["text"] == "ab"


def test_parts_and_items_are_kept_apart() -> None:
    snapshot = folded(
        added(item()),
        added(item(), 1),
        text("a"),
        text("b", 1),
        about("output_text.delta", 1, content_index=0, delta="c"),
        text("d"),
    )

    assert [[part["text"] for part in one["content"]] for one in snapshot["output"]] == [["ad", "b"], ["c"]]


@pytest.mark.parametrize(
    ("whole", "delta", "final", "read"),
    [
        (item(), "refusal.delta", {"type": "response.refusal.done", "refusal": "done"}, ("content", "refusal")),
        (
            item("reasoning"),
            "reasoning_text.delta",
            {"type": "response.reasoning_text.done", "text": "done"},
            ("content", "text"),
        ),
        (
            item("reasoning"),
            "reasoning_summary_text.delta",
            {"type": "response.reasoning_summary_text.done", "text": "done"},
            ("summary", "text"),
        ),
    ],
)
def test_text_of_every_kind_accumulates_in_its_part(
    whole: dict[str, Any], delta: str, final: dict[str, Any], read: tuple[str, str]
) -> None:
    place = {"content_index": 0, "summary_index": 0}
    grown = folded(added(whole), about(delta, delta="a", **place), about(delta, delta="b", **place))
    ended = folded(added(whole), about(delta, delta="a", **place), {**about(delta, **place), **final})

    assert only(grown)[read[0]][0][read[1]] == "ab"
    assert only(ended)[read[0]][0][read[1]] == "done"
    Response.model_validate(grown, strict=True)


@pytest.mark.parametrize(
    ("whole", "stem", "field"),
    [
        (item("function_call", call_id="c", name="f"), "function_call_arguments", "arguments"),
        (item("mcp_call", server_label="s", name="f"), "mcp_call_arguments", "arguments"),
        (item("custom_tool_call", call_id="c", name="f"), "custom_tool_call_input", "input"),
        (item("code_interpreter_call"), "code_interpreter_call_code", "code"),
    ],
)
def test_the_input_of_every_call_accumulates_in_its_field(whole: dict[str, Any], stem: str, field: str) -> None:
    grown = folded(added(whole), about(f"{stem}.delta", delta="a"), about(f"{stem}.delta", delta="b"))
    ended = folded(added(whole), about(f"{stem}.delta", delta="a"), {**about(f"{stem}.done"), field: "done"})

    assert only(grown)[field] == "ab"
    assert only(ended)[field] == "done"
    Response.model_validate(grown, strict=True)


def test_a_reasoning_summary_is_built_part_by_part() -> None:
    snapshot = folded(
        added(item("reasoning")),
        about("reasoning_summary_part.added", summary_index=0, part={"type": "summary_text", "text": ""}),
        about("reasoning_summary_text.delta", summary_index=0, delta="a"),
        about("reasoning_summary_part.done", summary_index=0, part={"type": "summary_text", "text": "A"}),
        about("reasoning_summary_part.added", summary_index=1, part={"type": "summary_text", "text": ""}),
        about("reasoning_summary_text.delta", summary_index=1, delta="b"),
    )

    assert [part["text"] for part in only(snapshot)["summary"]] == ["A", "b"]


def test_annotations_and_logprobs_gather_in_the_part() -> None:
    logprob = {"token": "a", "logprob": -1, "top_logprobs": [], "bytes": []}
    snapshot = folded(
        added(item()),
        {**text("a"), "logprobs": [logprob]},
        about("output_text.annotation.added", content_index=0, annotation_index=0, annotation={"n": 0}),
        about("output_text.annotation.added", content_index=0, annotation_index=1, annotation={"n": 1}),
        about("output_text.annotation.added", content_index=0, annotation_index=0, annotation={"n": 2}),
        about("output_text.done", content_index=0, text="a", logprobs=[]),
    )

    (part,) = only(snapshot)["content"]
    assert part["annotations"] == [{"n": 2}, {"n": 1}]
    assert part["logprobs"] == [logprob]


@pytest.mark.parametrize(
    ("whole", "step", "status"),
    [
        (item("web_search_call"), "web_search_call.searching", "searching"),
        (item("file_search_call"), "file_search_call.completed", "completed"),
        (item("image_generation_call"), "image_generation_call.generating", "generating"),
        (item("mcp_call", server_label="s", name="f"), "mcp_call.failed", "failed"),
        (item("mcp_list_tools", server_label="s"), "mcp_list_tools.failed", None),
    ],
)
def test_steps_show_in_the_status_of_items_that_have_one(whole: dict[str, Any], step: str, status: str | None) -> None:
    assert only(folded(added(whole), about(step))).get("status") == status


def test_shell_commands_grow() -> None:
    snapshot = folded(
        added(item("shell_call", call_id="c", action={})),
        about("shell_call_command.added", command_index=0, command=""),
        about("shell_call_command.delta", command_index=0, delta="l"),
        about("shell_call_command.delta", command_index=0, delta="s"),
        about("shell_call_command.added", command_index=1, command="pwd"),
        about("shell_call_command.done", command_index=1, command="pwd -P"),
    )

    assert only(snapshot)["action"] == {"commands": ["ls", "pwd -P"]}


def test_what_says_nothing_about_the_snapshot_changes_nothing() -> None:
    start = (added(item("image_generation_call")),)
    partial = about("image_generation_call.partial_image", partial_image_index=0, partial_image_b64="AA==")

    assert folded(*start, partial, about("hologram.delta", delta="x")) == folded(*start)


def test_an_item_added_where_one_is_replaces_it() -> None:
    again = item(content="again")

    assert folded(added(item()), text("lost"), added(item(), 1), added(again))["output"] == [again, item()]


def test_a_reset_replaces_the_output() -> None:
    kept = item(content="kept")
    reset = {"type": "response.in_progress", "response": {**BASE, "output": [kept]}}
    fold = Fold(BASE)

    for event in (added(item()), text("lost"), added(item(), 1), reset):
        fold.apply(event)

    assert fold.items() == [kept]
    assert fold.output_length == 1
    fold.apply(added(item(), 1))
    assert fold.output_length == 2


def test_a_seeded_fold_goes_on_after_the_items_present() -> None:
    base = {**BASE, "output": [item(content="old")]}

    snapshot = folded(added(item(), 1), about("output_text.delta", 1, content_index=0, delta="new"), base=base)

    assert [one["content"][0]["text"] for one in snapshot["output"]] == ["old", "new"]


@pytest.mark.parametrize(
    ("name", "payload", "status"),
    [
        ("queued", {}, "queued"),
        ("in_progress", {}, "in_progress"),
        ("completed", {"status": "in_progress"}, "completed"),
        ("incomplete", {}, "incomplete"),
        ("failed", {}, "failed"),
        ("failed", {"status": "cancelled", "output": []}, "cancelled"),
    ],
)
def test_a_lifecycle_event_sets_the_status(name: str, payload: dict[str, Any], status: str) -> None:
    snapshot = folded(added(item()), {"type": f"response.{name}", "response": payload})

    assert snapshot["status"] == status
    assert bool(snapshot["output"]) == (status != "cancelled")


def test_the_terminal_output_is_the_final_output() -> None:
    final = {**BASE, "status": "completed", "completed_at": 9, "output": [item(content="final")]}

    assert folded(added(item()), text("draft"), {"type": "response.completed", "response": final}) == final


def test_the_place_of_the_output_among_the_keys_stays() -> None:
    terminal = {"type": "response.completed", "response": {**BASE, "status": "completed"}}

    assert list(folded(terminal)) == list(BASE)


@pytest.mark.parametrize(
    "event",
    [
        added(item(), 2),
        done(item(), 1),
        about("output_text.delta", 1, content_index=0, delta="a"),
        text("a", 2),
        about("content_part.added", content_index=2, part={}),
        about("reasoning_summary_part.added", summary_index=1, part={}),
        about("shell_call_command.delta", command_index=0, delta="a"),
        about("shell_call_command.added", command_index=1, command="a"),
        {"type": "response.completed", "response": {"output": ["a"]}},
        {"type": "response.completed", "response": {"x": "\ud800"}},
        added({"type": "message", "x": object()}),
    ],
)
def test_an_event_that_does_not_fit_is_refused_and_changes_nothing(event: Event) -> None:
    fold = Fold(BASE)
    fold.apply(added(item("message")))
    before = fold.snapshot()

    with pytest.raises(InvalidEvent):
        fold.apply(event)

    assert fold.snapshot() == {**before, "output": fold.items()}
    assert fold.output_length == 1


def test_a_delta_for_a_field_that_is_not_text_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="not text"):
        folded(
            added(item("function_call", call_id="c", name="f", arguments={"a": 1})),
            about("function_call_arguments.delta", delta="x"),
        )


def test_what_a_handler_changes_afterwards_is_not_seen() -> None:
    base = {**BASE, "output": []}
    whole = item(content="a")
    fold = Fold(base)
    fold.apply(added(whole))

    whole["content"][0]["text"] = "changed"
    base["output"].append("changed")
    fold.snapshot()["output"].clear()
    fold.items()[0]["content"].clear()

    assert only(fold.snapshot()) == item(content="a")


GROWING: dict[str, Callable[[int], Event]] = {
    "text": lambda number: text("x" * 100),
    "logprobs": lambda number: {
        **text("x"),
        "logprobs": [{"token": "x", "logprob": -1, "bytes": [], "top_logprobs": []}],
    },
    "annotations": lambda number: about(
        "output_text.annotation.added", content_index=0, annotation_index=number, annotation={"n": number}
    ),
    "command": lambda number: about("shell_call_command.delta", 1, command_index=0, delta="x" * 100),
}


@pytest.mark.parametrize("kind", sorted(GROWING))
def test_a_long_output_costs_no_more_per_event_than_a_short_one(kind: str) -> None:
    fold = Fold(BASE)
    fold.apply(added(item()))
    fold.apply(added(item("shell_call", call_id="c", action={"commands": [""]}), 1))
    numbers = count()

    def timed(events: int) -> float:
        # Of this thread alone: others on a busy machine do not count.
        start = time.thread_time()
        for _ in range(events):
            fold.apply(GROWING[kind](next(numbers)))
        return time.thread_time() - start

    first = min(timed(1000) for _ in range(3))
    fold_of_many = [timed(1000) for _ in range(40)]

    # Copying what there is for each event would make the last ones some twenty times as dear.
    assert min(fold_of_many[-5:]) < first * 5
    message, shell = fold.items()
    grown = [len(shell["action"]["commands"][0]) // 100]
    for part in message["content"]:
        grown += [len(part["text"]) // 100, len(part["logprobs"]), len(part["annotations"])]
    assert max(grown) == 43 * 1000


PIECES = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(0, 2), st.text(st.characters(exclude_categories=["Cs"]))),
        st.tuples(st.just("snapshot"), st.just(0), st.just("")),
        st.tuples(st.just("item"), st.integers(0, 2), st.just("")),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(PIECES)
def test_looking_in_between_never_changes_the_outcome(pieces: list[tuple[str, int, str]]) -> None:
    start = [added(item(), index) for index in range(3)]
    watched, unwatched = Fold(BASE), Fold(BASE)
    expected = ["", "", ""]
    for event in start:
        watched.apply(event)
        unwatched.apply(event)
    for kind, index, piece in pieces:
        if kind == "snapshot":
            watched.snapshot()
            continue
        event = (
            added(item(), index)
            if kind == "item"
            else about("output_text.delta", index, content_index=0, delta=piece, logprobs=[])
        )
        expected[index] = "" if kind == "item" else expected[index] + piece
        watched.apply(event)
        unwatched.apply(event)

    assert watched.snapshot() == unwatched.snapshot() == watched.snapshot()
    texts = ["".join(part["text"] for part in one["content"]) for one in watched.items()]
    assert texts == expected
