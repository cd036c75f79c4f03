from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protocol.builders import (
    BuilderOrderError,
    OutputItemBuilder,
    OutputItemMessageBuilder,
    TextContentBuilder,
)
from protocol.event_stream import ResponseEventStream
from protocol.events import InvalidEvent
from protocol.items import InvalidItem
from protocol.jsonio import NotJson
from tests.support.stream_oracle import Event, assert_response, assert_whole

RESPONSE_ID = "resp_" + "p" * 18 + "r" * 32


@pytest.fixture
def stream() -> ResponseEventStream:
    started = ResponseEventStream(response_id=RESPONSE_ID, request={"model": "m", "input": "hi"})
    started.emit_created()
    started.emit_in_progress()
    return started


def finished(stream: ResponseEventStream) -> Event:
    """The final response, after everything the stream said was judged."""
    stream.emit_completed()
    final = assert_whole(stream.events())
    assert_response(final)
    return final


def types(events: list[Event]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def message(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_message()
    yield item.emit_added()
    yield from item.text_content("Hello")
    yield from item.refusal_content(["I ", "can't"])
    yield item.emit_done()


def reasoning(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_reasoning_item()
    yield item.emit_added()
    yield from item.summary_part("first")
    yield from item.summary_part(["sec", "ond"])
    yield item.emit_done(encrypted_content="gAAA")


def function_call(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_function_call("weather", "call_1")
    yield item.emit_added()
    yield from item.arguments(['{"city":', '"Turin"}'])
    yield item.emit_done()


def function_call_output(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_function_call_output("call_1")
    yield item.emit_added()
    yield item.emit_done([{"type": "input_text", "text": "21"}])


def custom_tool_call(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_custom_tool_call("call_1", "sql")
    yield item.emit_added()
    yield from item.input(["select", " 1"])
    yield item.emit_done()


def file_search_call(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_file_search_call()
    yield item.emit_added()
    yield item.emit_in_progress()
    yield item.emit_searching()
    yield item.emit_completed()
    yield item.emit_done(queries=["q"], results=[{"file_id": "f", "score": 0.5}])


def web_search_call(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_web_search_call()
    yield item.emit_added()
    yield item.emit_in_progress()
    yield item.emit_searching()
    yield item.emit_completed()
    yield item.emit_done(action={"type": "open_page", "url": "https://example.org"})


def code_interpreter_call(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_code_interpreter_call()
    yield item.emit_added(container_id="cntr_1")
    yield item.emit_in_progress()
    yield from item.code(["print", "(1)"])
    yield item.emit_interpreting()
    yield item.emit_completed()
    yield item.emit_done(outputs=[{"type": "logs", "logs": "1"}])


def image_generation_call(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_image_gen_call()
    yield item.emit_added()
    yield item.emit_in_progress()
    yield item.emit_generating()
    yield item.emit_partial_image("cGFydA==")
    yield item.emit_partial_image("cGFydDI=")
    yield item.emit_completed()
    yield item.emit_done("aW1hZ2U=")


def mcp_call(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_mcp_call("maps", "route")
    yield item.emit_added()
    yield item.emit_in_progress()
    yield from item.arguments(["{", "}"])
    yield item.emit_completed()
    yield item.emit_done(output="2 hours")


def mcp_list_tools(stream: ResponseEventStream) -> Iterator[Event]:
    item = stream.add_output_item_mcp_list_tools("maps")
    yield item.emit_added()
    yield item.emit_in_progress()
    yield item.emit_completed()
    yield item.emit_done(tools=[{"name": "route", "input_schema": {"type": "object"}}])


BUILT: dict[str, tuple[Callable[[ResponseEventStream], Iterator[Event]], list[str]]] = {
    "message": (
        message,
        [
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "content_part.added",
            "refusal.delta",
            "refusal.delta",
            "refusal.done",
            "content_part.done",
            "output_item.done",
        ],
    ),
    "reasoning": (
        reasoning,
        [
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
        ],
    ),
    "function_call": (
        function_call,
        [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ],
    ),
    "function_call_output": (function_call_output, ["output_item.added", "output_item.done"]),
    "custom_tool_call": (
        custom_tool_call,
        [
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
        ],
    ),
    "file_search_call": (
        file_search_call,
        [
            "output_item.added",
            "file_search_call.in_progress",
            "file_search_call.searching",
            "file_search_call.completed",
            "output_item.done",
        ],
    ),
    "web_search_call": (
        web_search_call,
        [
            "output_item.added",
            "web_search_call.in_progress",
            "web_search_call.searching",
            "web_search_call.completed",
            "output_item.done",
        ],
    ),
    "code_interpreter_call": (
        code_interpreter_call,
        [
            "output_item.added",
            "code_interpreter_call.in_progress",
            "code_interpreter_call_code.delta",
            "code_interpreter_call_code.delta",
            "code_interpreter_call_code.done",
            "code_interpreter_call.interpreting",
            "code_interpreter_call.completed",
            "output_item.done",
        ],
    ),
    "image_generation_call": (
        image_generation_call,
        [
            "output_item.added",
            "image_generation_call.in_progress",
            "image_generation_call.generating",
            "image_generation_call.partial_image",
            "image_generation_call.partial_image",
            "image_generation_call.completed",
            "output_item.done",
        ],
    ),
    "mcp_call": (
        mcp_call,
        [
            "output_item.added",
            "mcp_call.in_progress",
            "mcp_call_arguments.delta",
            "mcp_call_arguments.delta",
            "mcp_call_arguments.done",
            "mcp_call.completed",
            "output_item.done",
        ],
    ),
    "mcp_list_tools": (
        mcp_list_tools,
        [
            "output_item.added",
            "mcp_list_tools.in_progress",
            "mcp_list_tools.completed",
            "output_item.done",
        ],
    ),
}


@pytest.mark.parametrize("kind", BUILT)
def test_built_item_is_readable_by_typed_clients_and_ends_up_in_the_output(
    stream: ResponseEventStream, kind: str
) -> None:
    build, expected = BUILT[kind]
    assert types(list(build(stream))) == expected
    [item] = finished(stream)["output"]
    assert item["type"] == kind
    assert item["response_id"] == RESPONSE_ID
    assert item["id"].rpartition("_")[2].startswith("p" * 18), "the item lies in the response's partition"
    assert "status" not in item or item["status"] == "completed"


def test_all_kinds_of_items_stand_side_by_side_in_one_response(stream: ResponseEventStream) -> None:
    for build, _ in BUILT.values():
        for _ in build(stream):
            pass
    assert [item["type"] for item in finished(stream)["output"]] == list(BUILT)


ENVIRONMENT = {"type": "local"}
CLICK = {"type": "click", "button": "left", "x": 1, "y": 2}
CHECK = {"id": "c", "code": None, "message": None}
SHELL_OUTPUT = [{"stdout": "x", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]

WHOLE: dict[str, tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]] = {
    "output_item_message": (("Hi",), {}, {"type": "message", "status": "completed"}),
    "output_item_reasoning_item": (("why",), {}, {"type": "reasoning"}),
    "output_item_function_call": (("f", "c1", "{}"), {}, {"type": "function_call", "name": "f", "call_id": "c1"}),
    "output_item_function_call_output": (("c1", "21"), {}, {"type": "function_call_output", "output": "21"}),
    "output_item_custom_tool_call_output": (("c1", "o"), {}, {"type": "custom_tool_call_output", "output": "o"}),
    "output_item_image_gen_call": (("aQ==",), {}, {"type": "image_generation_call", "result": "aQ=="}),
    "output_item_structured_outputs": (({"a": [1]},), {}, {"type": "structured_outputs", "output": {"a": [1]}}),
    "output_item_computer_call": (
        ("c1", CLICK),
        {"pending_safety_checks": [CHECK]},
        {"type": "computer_call", "action": CLICK, "pending_safety_checks": [CHECK], "status": "completed"},
    ),
    "output_item_computer_call_output": (
        ("c1", {"type": "computer_screenshot", "image_url": "data:,"}),
        {"acknowledged_safety_checks": [CHECK]},
        {"type": "computer_call_output", "acknowledged_safety_checks": [CHECK]},
    ),
    "output_item_local_shell_call": (
        ("c1", {"type": "exec", "command": ["ls"], "env": {}}),
        {"status": "incomplete"},
        {"type": "local_shell_call", "status": "incomplete"},
    ),
    "output_item_local_shell_call_output": (("{}",), {}, {"type": "local_shell_call_output", "output": "{}"}),
    "output_item_function_shell_call": (
        ("c1", {"commands": ["ls"]}, ENVIRONMENT),
        {},
        {"type": "shell_call", "environment": ENVIRONMENT},
    ),
    "output_item_function_shell_call_output": (
        ("c1", SHELL_OUTPUT),
        {"max_output_length": 80},
        {"type": "shell_call_output", "output": SHELL_OUTPUT, "max_output_length": 80},
    ),
    "output_item_apply_patch_call": (
        ("c1", {"type": "delete_file", "path": "a"}),
        {},
        {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a"}},
    ),
    "output_item_apply_patch_call_output": (
        ("c1",),
        {"status": "failed", "output": "no"},
        {"type": "apply_patch_call_output", "status": "failed", "output": "no"},
    ),
    "output_item_mcp_approval_request": (
        ("maps", "route", "{}"),
        {},
        {"type": "mcp_approval_request", "server_label": "maps", "name": "route", "arguments": "{}"},
    ),
    "output_item_mcp_approval_response": (
        ("mcpr_1", False),
        {"reason": "too far"},
        {"type": "mcp_approval_response", "approve": False, "reason": "too far"},
    ),
    "output_item_compaction": (("gAAA",), {}, {"type": "compaction", "encrypted_content": "gAAA"}),
}


@pytest.mark.parametrize("method", WHOLE)
def test_whole_item_in_one_call_is_added_and_done_with_what_was_given(stream: ResponseEventStream, method: str) -> None:
    arguments, keywords, expected = WHOLE[method]
    events = list(getattr(stream, method)(*arguments, **keywords))
    assert types(events)[0] == "output_item.added"
    assert types(events)[-1] == "output_item.done"
    [item] = finished(stream)["output"]
    assert expected.items() <= item.items()


def test_whole_item_takes_its_place_only_when_iterated(stream: ResponseEventStream) -> None:
    later = stream.output_item_message("later")
    assert [event["output_index"] for event in stream.output_item_message("now")] == [0] * 6
    assert {event["output_index"] for event in later} == {1}


def test_message_streams_one_delta_per_chunk(stream: ResponseEventStream) -> None:
    events = list(stream.output_item_message(chunk for chunk in ("a", "b", "c")))
    assert [event["delta"] for event in events if event["type"].endswith(".delta")] == ["a", "b", "c"]
    assert finished(stream)["output"][0]["content"][0]["text"] == "abc"


def test_annotations_stand_in_events_part_and_item(stream: ResponseEventStream) -> None:
    citations = [
        {"type": "url_citation", "url": "https://e.org", "title": "E", "start_index": 0, "end_index": 1},
        {"type": "file_path", "file_id": "f", "index": 0},
    ]
    events = list(stream.output_item_message("Hi", annotations=citations))
    added = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert [event["annotation_index"] for event in added] == [0, 1]
    [part_done] = [event for event in events if event["type"] == "response.content_part.done"]
    assert part_done["part"]["annotations"] == citations
    assert finished(stream)["output"][0]["content"][0]["annotations"] == citations


def test_logprobs_of_all_deltas_stand_in_the_part(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_message()
    item.emit_added()
    text = item.add_text_content()
    text.emit_added()
    first = text.emit_delta(
        "é", logprobs=[{"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -1.0}]}]
    )
    text.emit_delta("!", logprobs=[{"token": "!", "logprob": -0.1}])
    done = text.emit_text_done()
    text.emit_done()
    item.emit_done()
    assert first["logprobs"][0]["bytes"] == [0xC3, 0xA9]
    assert [entry["token"] for entry in done["logprobs"]] == ["é", "!"]
    assert finished(stream)["output"][0]["content"][0]["logprobs"] == done["logprobs"]


def test_text_events_have_empty_annotations_and_logprobs(stream: ResponseEventStream) -> None:
    events = list(stream.output_item_message("Hi"))
    added, delta, done = events[1], events[2], events[3]
    assert added["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert delta["logprobs"] == []
    assert done["logprobs"] == []


def test_deltas_win_over_another_final_text(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_message()
    item.emit_added()
    text = item.add_text_content()
    text.emit_added()
    text.emit_delta("said")
    before = text.final_text
    assert text.emit_text_done("meant")["text"] == "said"
    assert (before, text.final_text) == (None, "said")
    text.emit_done()
    item.emit_done()
    assert finished(stream)["output"][0]["content"][0]["text"] == "said"


def test_final_text_without_deltas_is_the_text(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_message()
    item.emit_added()
    text = item.add_text_content()
    text.emit_added()
    text.emit_text_done("at once")
    text.emit_done()
    refusal = item.add_refusal_content()
    refusal.emit_added()
    refusal.emit_refusal_done("no")
    refusal.emit_done()
    item.emit_done()
    assert refusal.final_refusal == "no"
    assert [part.get("text", part.get("refusal")) for part in finished(stream)["output"][0]["content"]] == [
        "at once",
        "no",
    ]


def test_failed_mcp_call_has_status_failed(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_mcp_call("maps", "route", item_id=" mcp_given ")
    item.emit_added()
    item.emit_arguments_done("{}")
    item.emit_failed()
    done = item.emit_done(error="timeout")
    assert item.item_id == "mcp_given"
    assert done["item"]["status"] == "failed"
    assert done["item"]["error"]["content"] == [{"type": "text", "text": "timeout"}]
    finished(stream)


def test_error_object_of_an_mcp_call_is_taken_as_it_is(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_mcp_call("maps", "route")
    item.emit_added()
    error = {"type": "http_error", "code": 503, "message": "down"}
    done = item.emit_done(error=error)
    assert done["item"]["error"] == error
    assert done["item"]["status"] == "failed"
    finished(stream)


def test_function_call_output_keeps_what_was_added(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_function_call_output("c")
    item.emit_added("21")
    assert item.emit_done()["item"]["output"] == "21"
    finished(stream)


def test_generic_item_keeps_the_builders_id_and_its_own_fields(stream: ResponseEventStream) -> None:
    item = stream.add_output_item("ctx_1")
    program = {"type": "program", "id": "other", "call_id": "c", "code": "1", "fingerprint": "f"}
    for event in (item.emit_added(program), item.emit_done(program)):
        assert event["item"].items() >= {**program, "id": "ctx_1"}.items()
    finished(stream)


def test_generic_item_without_what_its_type_needs_is_refused(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_local_shell_call()
    with pytest.raises(InvalidItem, match="call_id"):
        item.emit_added({"action": {}})
    whole = {"call_id": "c", "action": {"type": "exec", "command": ["ls"], "env": {}}}
    item.emit_added(whole)
    item.emit_done(whole)
    with pytest.raises(InvalidItem, match="type"):
        stream.add_output_item("x_1").emit_added({})
    finished(stream)


def test_item_that_is_not_json_is_refused(stream: ResponseEventStream) -> None:
    with pytest.raises(NotJson):
        list(stream.output_item_structured_outputs({"when": object()}))


def test_changing_an_item_afterwards_changes_nothing(stream: ResponseEventStream) -> None:
    output = {"list": [1]}
    events = list(stream.output_item_structured_outputs(output))
    output["list"].append(2)
    assert events[-1]["item"]["output"] == {"list": [1]}
    assert finished(stream)["output"][0]["output"] == {"list": [1]}


def test_internal_metadata_of_an_item_is_stored_with_it_even_when_set_late(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_message()
    item.internal_metadata["step"] = 1
    assert item.emit_added()["item"]["internal_metadata"] == {"step": 1}
    item.emit_done()
    item.internal_metadata["step"] = 2
    assert stream.checkpoint()["response"]["output"][0]["internal_metadata"] == {"step": 2}


def test_item_without_internal_metadata_has_no_such_key(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_message()
    assert item.internal_metadata == {}
    assert "internal_metadata" not in item.emit_added()["item"]


# Order


def open_message(stream: ResponseEventStream) -> OutputItemMessageBuilder:
    item = stream.add_output_item_message()
    item.emit_added()
    return item


def open_text(stream: ResponseEventStream) -> TextContentBuilder:
    text = open_message(stream).add_text_content()
    text.emit_added()
    return text


def item_done_before_added(stream: ResponseEventStream) -> None:
    stream.add_output_item_message().emit_done()


def item_added_twice(stream: ResponseEventStream) -> None:
    open_message(stream).emit_added()


def item_done_twice(stream: ResponseEventStream) -> None:
    item = open_message(stream)
    item.emit_done()
    item.emit_done()


def part_before_its_message(stream: ResponseEventStream) -> None:
    stream.add_output_item_message().add_text_content().emit_added()


def part_after_its_message(stream: ResponseEventStream) -> None:
    item = open_message(stream)
    item.emit_done()
    item.add_text_content().emit_added()


def second_part_before_the_first(stream: ResponseEventStream) -> None:
    item = open_message(stream)
    item.add_text_content()
    item.add_refusal_content().emit_added()


def message_done_before_its_part(stream: ResponseEventStream) -> None:
    item = open_message(stream)
    item.add_text_content().emit_added()
    item.emit_done()


def delta_before_part(stream: ResponseEventStream) -> None:
    open_message(stream).add_text_content().emit_delta("x")


def delta_after_text_done(stream: ResponseEventStream) -> None:
    text = open_text(stream)
    text.emit_text_done("x")
    text.emit_delta("y")


def text_done_twice(stream: ResponseEventStream) -> None:
    text = open_text(stream)
    text.emit_text_done("x")
    text.emit_text_done("x")


def part_done_before_text_done(stream: ResponseEventStream) -> None:
    open_text(stream).emit_done()


def annotation_after_part_done(stream: ResponseEventStream) -> None:
    text = open_text(stream)
    text.emit_text_done("x")
    text.emit_done()
    text.emit_annotation_added({"type": "file_path", "file_id": "f", "index": 0})


def summary_delta_before_part(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_reasoning_item()
    item.emit_added()
    item.add_summary_part().emit_text_delta("x")


def arguments_before_added(stream: ResponseEventStream) -> None:
    stream.add_output_item_function_call("f", "c").emit_arguments_delta("{}")


def call_done_with_unsettled_arguments(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_function_call("f", "c")
    item.emit_added()
    item.emit_arguments_delta("{")
    item.emit_done()


def step_backwards(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_web_search_call()
    item.emit_added()
    item.emit_searching()
    item.emit_in_progress()


def step_after_the_last(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_mcp_list_tools("maps")
    item.emit_added()
    item.emit_failed()
    item.emit_completed()


def code_after_completed(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_code_interpreter_call()
    item.emit_added()
    item.emit_completed()
    item.emit_code_delta("1")


def preview_after_completed(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_image_gen_call()
    item.emit_added()
    item.emit_completed()
    item.emit_partial_image("aQ==")


def second_item_before_the_first(stream: ResponseEventStream) -> None:
    stream.add_output_item_message()
    stream.add_output_item_message().emit_added()


OUT_OF_ORDER: dict[Callable[[ResponseEventStream], None], tuple[str, str, str]] = {
    item_done_before_added: ("OutputItemMessageBuilder", "emit_done", "emit_added() must come first"),
    item_added_twice: ("OutputItemMessageBuilder", "emit_added", "it was called before"),
    item_done_twice: ("OutputItemMessageBuilder", "emit_done", "nothing can follow emit_done()"),
    part_before_its_message: (
        "OutputItemMessageBuilder",
        "TextContentBuilder.emit_added",
        "emit_added() must come first",
    ),
    part_after_its_message: (
        "OutputItemMessageBuilder",
        "TextContentBuilder.emit_added",
        "nothing can follow emit_done()",
    ),
    second_part_before_the_first: ("RefusalContentBuilder", "emit_added", "part 0 must be added before part 1"),
    message_done_before_its_part: ("OutputItemMessageBuilder", "emit_done", "part 0 must be done first"),
    delta_before_part: ("TextContentBuilder", "emit_delta", "emit_added() must come first"),
    delta_after_text_done: ("TextContentBuilder", "emit_delta", "nothing can follow emit_text_done()"),
    text_done_twice: ("TextContentBuilder", "emit_text_done", "nothing can follow emit_text_done()"),
    part_done_before_text_done: ("TextContentBuilder", "emit_done", "emit_text_done() must come first"),
    annotation_after_part_done: ("TextContentBuilder", "emit_annotation_added", "nothing can follow emit_done()"),
    summary_delta_before_part: ("ReasoningSummaryPartBuilder", "emit_text_delta", "emit_added() must come first"),
    arguments_before_added: (
        "OutputItemFunctionCallBuilder",
        "emit_arguments_delta",
        "emit_added() must come first",
    ),
    call_done_with_unsettled_arguments: (
        "OutputItemFunctionCallBuilder",
        "emit_done",
        "emit_arguments_done() must come first",
    ),
    step_backwards: ("OutputItemWebSearchCallBuilder", "emit_in_progress", "it cannot follow emit_searching()"),
    step_after_the_last: (
        "OutputItemMcpListToolsBuilder",
        "emit_completed",
        "only emit_done() can follow emit_failed()",
    ),
    code_after_completed: (
        "OutputItemCodeInterpreterCallBuilder",
        "emit_code_delta",
        "only emit_done() can follow emit_completed()",
    ),
    preview_after_completed: (
        "OutputItemImageGenCallBuilder",
        "emit_partial_image",
        "only emit_done() can follow emit_completed()",
    ),
    second_item_before_the_first: (
        "ResponseEventStream",
        "output_item.added",
        "item 0 must be added before item 1",
    ),
}


@pytest.mark.parametrize("act", OUT_OF_ORDER, ids=lambda act: act.__name__)
def test_call_out_of_order_names_itself_and_what_was_expected(
    stream: ResponseEventStream, act: Callable[[ResponseEventStream], None]
) -> None:
    with pytest.raises(BuilderOrderError) as caught:
        act(stream)
    error = caught.value
    assert (error.builder, error.call, error.expected) == OUT_OF_ORDER[act]
    assert str(error) == f"{error.builder}.{error.call}() is out of order: {error.expected}"


def test_order_error_is_a_fault_of_the_handler_and_a_value_error() -> None:
    assert issubclass(BuilderOrderError, InvalidEvent)
    assert issubclass(BuilderOrderError, ValueError)


def test_refused_delta_leaves_no_trace_in_the_text(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_function_call("f", "c")
    with pytest.raises(BuilderOrderError):
        item.emit_arguments_delta("lost")
    item.emit_added()
    assert item.emit_arguments_done("{}")["arguments"] == "{}"


def test_call_without_any_arguments_event_can_be_done(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_mcp_call("maps", "route")
    item.emit_added()
    assert item.emit_done()["item"]["arguments"] == ""
    finished(stream)


def test_repeated_searching_is_allowed(stream: ResponseEventStream) -> None:
    item = stream.add_output_item_file_search_call()
    item.emit_added()
    item.emit_searching()
    item.emit_searching()
    item.emit_done()
    finished(stream)


def test_part_built_by_hand_works_without_its_message_builder(stream: ResponseEventStream) -> None:
    item = open_message(stream)
    text = TextContentBuilder(stream, item.output_index, 0, item.item_id)
    assert text.content_index == 0
    assert text.emit_added()["item_id"] == item.item_id


def test_builder_by_hand_replaces_the_item_at_its_index(stream: ResponseEventStream) -> None:
    list(stream.output_item_message("draft"))
    again = OutputItemBuilder(stream, 0, "cmp_1", default_type="compaction")
    again.emit_added({"encrypted_content": "x"})
    again.emit_done({"encrypted_content": "x"})
    assert [item["id"] for item in finished(stream)["output"]] == ["cmp_1"]


@pytest.mark.parametrize("chunk", [None, 1, b"x"])
def test_chunk_that_is_no_text_is_refused(stream: ResponseEventStream, chunk: Any) -> None:
    with pytest.raises(TypeError, match="takes a str"):
        list(stream.output_item_message(["ok", chunk]))


def test_source_that_is_no_text_is_refused(stream: ResponseEventStream) -> None:
    with pytest.raises(TypeError, match="not int"):
        list(stream.output_item_message(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda stream: stream.add_output_item(" "),
        lambda stream: stream.add_output_item_function_call("", "c"),
        lambda stream: stream.add_output_item_function_call("f", ""),
        lambda stream: stream.add_output_item_function_call_output(""),
        lambda stream: stream.add_output_item_custom_tool_call("", "n"),
        lambda stream: stream.add_output_item_mcp_call("", "n"),
        lambda stream: stream.add_output_item_mcp_call("s", "n", item_id=" "),
        lambda stream: stream.add_output_item_mcp_list_tools(None),
    ],
)
def test_blank_name_is_refused(stream: ResponseEventStream, make: Callable[[ResponseEventStream], object]) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        make(stream)
