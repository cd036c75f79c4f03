"""Requests become values the engine can rely on, or a 400 that says what is wrong (B4, B21, B29, B40, C7, W10, W11)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import ids
from protocol.compaction import fold
from protocol.errors import ApiError, InvalidRequest, MalformedId, UnknownParameter, UnsupportedParameter
from protocol.items import ListQuery, input_items
from protocol.jsonio import MAX_VALUES
from protocol.references import MAX_PARTITIONS
from protocol.request_faults import MAX_FAULTS
from protocol.request_items import MAX_ITEMS
from protocol.request_tools import MAX_TOOLS
from protocol.requests import (
    Flags,
    conversation_id,
    flags,
    parse_create,
    parse_list_query,
    parse_starting_after,
)
from protocol.response import new_response

KNOWN_ID = "resp_" + "A1b2C3d4E5" * 5


def parse(**fields: Any) -> dict[str, Any]:
    return parse_create(json.dumps(fields).encode())


def faults(**fields: Any) -> dict[str, str]:
    """Path → message of every fault in a request."""
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    error = caught.value
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert error.details
    for detail in error.details:
        assert set(detail) == {"type", "code", "message", "param"}
        assert (detail["type"], detail["code"]) == ("invalid_request_error", "invalid_value")
    assert error.message == error.details[0]["message"]
    return {detail["param"]: detail["message"] for detail in error.details}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"{",
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b"7",
        b'{"temperature": NaN}',
        b'{"input": "\\ud800"}',
        b'{"input": "\xff"}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a": ' + b"[" * 250 + b"]" * 250 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
    ids=lambda body: body[:12],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_create(body)

    assert [detail["param"] for detail in caught.value.details] == ["$"]
    assert caught.value.param is None


def crowd(number: int) -> list[dict[str, Any]]:
    return [{"type": "newer"}] * number


def test_a_crowded_request_is_refused() -> None:
    assert set(faults(tools=crowd(MAX_TOOLS + 1))) == {"$.tools"}
    assert set(faults(input=crowd(MAX_ITEMS + 1))) == {"$.input"}
    assert set(faults(input=[{"role": "user", "content": crowd(MAX_VALUES // 2)}])) == {"$"}
    assert set(faults(of_a_newer_client=[0] * MAX_VALUES)) == {"$"}


def references(partitions: int) -> list[dict[str, Any]]:
    """References into so many partitions, two into each, and some that lead nowhere."""
    responses = [ids.new_response_id(ids.new_partition()) for _ in range(partitions)]
    lost = [{"id": "msg_unknown"}, {"type": "item_reference", "id": "no id"}]
    return [{"type": "item_reference", "id": ids.new_item_id("msg", each)} for each in responses * 2] + lost


def test_references_that_lead_to_too_many_places_are_refused() -> None:
    passes, crowded = references(MAX_PARTITIONS), references(MAX_PARTITIONS + 1)
    parse(input=passes)
    assert set(faults(input=crowded)) == {"$.input"}
    assert set(faults(input=[{"id": each["id"]} for each in crowded])) == {"$.input"}
    assert set(faults(input=[fold(crowded, KNOWN_ID)])) == {"$.input"}


def test_what_is_just_not_crowded_passes() -> None:
    parse(tools=crowd(MAX_TOOLS))
    parse(input=crowd(MAX_ITEMS))
    # The object and its list are values too; what stands in a text is none.
    parse(of_a_newer_client=[0] * (MAX_VALUES - 2))
    parse(input="[," * MAX_VALUES)


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    parsed = parse(max_output_tokens=20.0, top_logprobs=3, max_tool_calls=None)
    assert parsed == {"max_output_tokens": 20, "top_logprobs": 3, "max_tool_calls": None}
    assert isinstance(parsed["max_output_tokens"], int)
    assert set(faults(max_output_tokens=20.5)) == {"$.max_output_tokens"}
    assert set(faults(max_output_tokens=15.0)) == {"$.max_output_tokens"}
    assert set(faults(max_output_tokens=2**64)) == {"$.max_output_tokens"}


@pytest.mark.parametrize("wrong", [{"type": "agent"}, {"type": 1}, {"version": 1}, {"name": ""}])
def test_an_agent_reference_of_another_shape_is_refused(wrong: dict[str, Any]) -> None:
    (param,) = faults(agent_reference={"name": "a", **wrong})
    assert param.startswith("$.agent_reference.")


def test_what_an_agent_reference_leaves_open_is_left_out() -> None:
    parsed = parse(agent_reference={"name": "a", "version": None, "type": None})
    assert parsed["agent_reference"] == {"type": "agent_reference", "name": "a"}


def test_the_last_of_doubled_keys_wins() -> None:
    assert parse_create(b'{"model": "a", "model": "b"}') == {"model": "b"}


def test_nothing_is_filled_in_and_nothing_left_out() -> None:
    request = {"input": "hi", "client_metadata": {"a": 1}, "temperature": None, "of_a_newer_client": [1, {"b": 2}]}

    assert parse(**request) == request
    assert parse() == {}


ACCEPTED: list[dict[str, Any]] = [
    {"input": None},
    {"input": []},
    {"input": [{"role": "user", "content": "a"}, {"type": None, "role": "user", "content": "a"}]},
    {"input": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]},
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}, {"type": "of_tomorrow"}]}]},
    {"input": [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}]},
    {"input": [{"type": "hologram"}, {"type": "compaction_trigger"}]},
    {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "a"}]}]},
    {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x", "content": None}]},
    {"input": [{"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}]},
    {"input": [{"type": "local_shell_call", "action": {"type": "exec"}}]},
    {"tools": [{"type": "function", "name": "f", "parameters": None, "strict": None}]},
    {"tools": [{"type": "hologram"}, {"type": "namespace", "name": "n", "description": "", "tools": []}]},
    {"tools": [{"type": "mcp", "server_label": "s", "allowed_tools": ["a"], "require_approval": "never"}]},
    {"tools": [{"type": "mcp", "server_label": "s", "allowed_tools": {}, "require_approval": {"always": {}}}]},
    {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}, {"type": "local_shell"}]},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "name": "f"}},
    {"tool_choice": {"type": "web_search_preview"}},
    {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}},
    {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"}},
    {"text": {"format": {"type": "of_tomorrow"}}},
    {"text": {"format": None}},
    {"reasoning": {"effort": "xhigh", "summary": "auto", "of_tomorrow": 1}},
    {"include": ["reasoning.encrypted_content"]},
    {"temperature": 0, "top_p": 1, "top_logprobs": 20},
    {"temperature": 2.0, "max_output_tokens": 16},
    {"metadata": {f"{index:064}": "v" * 512 for index in range(16)}},
    {"safety_identifier": "x" * 64},
    {"conversation": "conv_1"},
    {"conversation": {"id": "conv_1"}},
    {"conversation": "c" * 512},
    {"previous_response_id": KNOWN_ID},
    {"store": False, "background": False},
    {"store": None, "background": True},
    {"prompt": {"id": "p", "variables": {}}},
    {"stream_options": {"include_obfuscation": False}},
]


@pytest.mark.parametrize("request_", ACCEPTED, ids=json.dumps)
def test_a_valid_request_passes_unchanged(request_: dict[str, Any]) -> None:
    assert parse(**request_) == request_


def in_input(**item: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "fine"}, item]}


def in_content(**part: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [part]}]}


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"input": 5}, ["$.input"]),
    ({"input": {}}, ["$.input"]),
    ({"input": ["a", 1, None]}, ["$.input[0]", "$.input[1]", "$.input[2]"]),
    (in_input(type=5), ["$.input[1]"]),
    (in_input(type=""), ["$.input[1]"]),
    (in_input(), ["$.input[1].role", "$.input[1].content"]),
    (in_input(role="user"), ["$.input[1].content"]),
    (in_input(role="wizard", content="a"), ["$.input[1].role"]),
    (in_input(role="user", content=5), ["$.input[1].content"]),
    (in_input(role="user", content="a", status="done"), ["$.input[1].status"]),
    (in_content(), ["$.input[0].content[0]"]),
    (in_content(type="input_text"), ["$.input[0].content[0].text"]),
    (in_content(type="input_text", text=1), ["$.input[0].content[0].text"]),
    (in_content(type="input_image", detail="much"), ["$.input[0].content[0].detail"]),
    (in_content(type="refusal"), ["$.input[0].content[0].refusal"]),
    (in_input(type="function_call"), ["$.input[1].call_id", "$.input[1].name", "$.input[1].arguments"]),
    (in_input(type="function_call", call_id="", name="f", arguments="{}"), ["$.input[1].call_id"]),
    (in_input(type="function_call_output"), ["$.input[1].output"]),
    (in_input(type="function_call_output", output="a"), ["$.input[1]"]),
    (in_input(type="function_call_output", call_id="c", output=1), ["$.input[1].output"]),
    (in_input(type="reasoning"), ["$.input[1].summary"]),
    (in_input(type="item_reference"), ["$.input[1].id"]),
    (in_input(type="mcp_approval_response"), ["$.input[1].approval_request_id", "$.input[1].approve"]),
    (in_input(type="mcp_approval_response", approval_request_id="a", approve="yes"), ["$.input[1].approve"]),
    (in_input(type="custom_tool_call_output"), ["$.input[1].call_id", "$.input[1].output"]),
    (in_input(type="computer_call_output", call_id="c"), ["$.input[1].output"]),
    (in_input(type="apply_patch_call_output", call_id="c", status="maybe"), ["$.input[1].status"]),
    (in_input(type="shell_call_output", call_id="c", output="a"), ["$.input[1].output"]),
    ({"tools": {}}, ["$.tools"]),
    ({"tools": ["function"]}, ["$.tools[0]"]),
    ({"tools": [{}]}, ["$.tools[0]"]),
    ({"tools": [{"type": "function"}]}, ["$.tools[0].name"]),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, ["$.tools[0].name"]),
    ({"tools": [{"type": "function", "name": "f", "parameters": "{}"}]}, ["$.tools[0].parameters"]),
    ({"tools": [{"type": "mcp"}]}, ["$.tools[0].server_label"]),
    ({"tools": [{"type": "file_search"}]}, ["$.tools[0].vector_store_ids"]),
    ({"tools": [{"type": "code_interpreter"}]}, ["$.tools[0].container"]),
    ({"tools": [{"type": "custom"}]}, ["$.tools[0].name"]),
    (
        {"tools": [{"type": "computer_use_preview"}]},
        ["$.tools[0].display_height", "$.tools[0].display_width", "$.tools[0].environment"],
    ),
    ({"tools": [{"type": "web_search", "search_context_size": "all"}]}, ["$.tools[0].search_context_size"]),
    ({"tools": [{"type": "image_generation", "partial_images": 4}]}, ["$.tools[0].partial_images"]),
    ({"tool_choice": "maybe"}, ["$.tool_choice"]),
    ({"tool_choice": []}, ["$.tool_choice"]),
    ({"tool_choice": {}}, ["$.tool_choice"]),
    ({"tool_choice": {"type": "function"}}, ["$.tool_choice.name"]),
    ({"tool_choice": {"type": "allowed_tools", "mode": "x", "tools": []}}, ["$.tool_choice.mode"]),
    ({"text": "plain"}, ["$.text"]),
    ({"text": {"format": "json"}}, ["$.text.format"]),
    ({"text": {"format": {"type": "json_schema"}}}, ["$.text.format.name", "$.text.format.schema"]),
    ({"text": {"verbosity": "loud"}}, ["$.text.verbosity"]),
    ({"reasoning": {"effort": "huge", "summary": 3}}, ["$.reasoning.effort", "$.reasoning.summary"]),
    ({"include": ["everything"]}, ["$.include[0]"]),
    ({"include": "everything"}, ["$.include"]),
    ({"truncation": "some"}, ["$.truncation"]),
    ({"service_tier": "gold"}, ["$.service_tier"]),
    ({"prompt_cache_retention": "1y"}, ["$.prompt_cache_retention"]),
    ({"temperature": 2.1}, ["$.temperature"]),
    ({"temperature": -0.1}, ["$.temperature"]),
    ({"temperature": "1"}, ["$.temperature"]),
    ({"temperature": True}, ["$.temperature"]),
    ({"top_p": 1.1}, ["$.top_p"]),
    ({"top_logprobs": 21}, ["$.top_logprobs"]),
    ({"top_logprobs": -1}, ["$.top_logprobs"]),
    ({"max_output_tokens": 15}, ["$.max_output_tokens"]),
    ({"max_output_tokens": 16.5}, ["$.max_output_tokens"]),
    ({"safety_identifier": "x" * 65}, ["$.safety_identifier"]),
    ({"metadata": {f"{index}": "v" for index in range(17)}}, ["$.metadata"]),
    ({"metadata": {"k": "v" * 513}}, ["$.metadata.k"]),
    ({"metadata": {"k": 1}}, ["$.metadata.k"]),
    ({"metadata": {"k" * 65: "v"}}, ["$.metadata." + "k" * 65]),
    ({"metadata": []}, ["$.metadata"]),
    ({"model": 3}, ["$.model"]),
    ({"instructions": ["a"]}, ["$.instructions"]),
    ({"store": "yes"}, ["$.store"]),
    ({"stream": 1}, ["$.stream"]),
    ({"background": "true"}, ["$.background"]),
    ({"conversation": 5}, ["$.conversation"]),
    ({"conversation": ""}, ["$.conversation"]),
    ({"conversation": {}}, ["$.conversation.id"]),
    ({"conversation": "c" * 513}, ["$.conversation"]),
    ({"conversation": {"id": "c" * 513}}, ["$.conversation.id"]),
    ({"previous_response_id": 5}, ["$.previous_response_id"]),
    ({"agent_reference": {}}, ["$.agent_reference.name"]),
    ({"agent_reference": 5}, ["$.agent_reference"]),
    ({"prompt": {}}, ["$.prompt.id"]),
]


@pytest.mark.parametrize(("request_", "paths"), REFUSED, ids=json.dumps)
def test_an_invalid_request_names_every_fault(request_: dict[str, Any], paths: list[str]) -> None:
    assert sorted(faults(**request_)) == sorted(paths)


def test_faults_of_different_fields_are_all_named() -> None:
    found = faults(temperature=3, tools=[{"type": "function"}], input=[{"type": "reasoning"}])

    assert set(found) == {"$.temperature", "$.tools[0].name", "$.input[0].summary"}


def test_the_first_fault_is_message_and_param_of_the_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(tools=[{"type": "function"}])

    assert caught.value.message == "Missing required parameter: 'tools[0].name'."
    assert caught.value.param == "tools[0].name"


def test_an_unknown_choice_is_answered_with_the_known_ones() -> None:
    assert faults(truncation="x") == {"$.truncation": "Invalid value for 'truncation': expected 'auto' or 'disabled'."}


def test_a_request_that_is_wrong_everywhere_gets_a_bounded_answer() -> None:
    long_key = "k" * 100_000

    assert len(faults(input=[1] * 1000)) == MAX_FAULTS
    assert all(len(path) < 200 for path in faults(metadata={long_key: 1}))


def test_conversation_id_is_an_unknown_parameter() -> None:
    with pytest.raises(UnknownParameter) as caught:
        parse(conversation_id="conv_1")

    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "unknown_parameter",
        "conversation_id",
    )


@pytest.mark.parametrize("stream", [True, False])
def test_background_without_store_is_not_supported(stream: bool) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        parse(store=False, background=True, stream=stream)

    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "unsupported_parameter",
        "background",
    )


@pytest.mark.parametrize("value", ["resp_1", "", "x" * 5000])
def test_a_malformed_previous_response_id_is_refused(value: str) -> None:
    with pytest.raises(MalformedId) as caught:
        parse(previous_response_id=value)

    assert (caught.value.code, caught.value.param) == ("invalid_parameters", "previous_response_id")


def test_a_conversation_and_a_previous_response_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="Mutually exclusive"):
        parse(previous_response_id=KNOWN_ID, conversation="conv_1")


@pytest.mark.parametrize(
    ("given_", "normal"),
    [
        ("a", {"type": "agent_reference", "name": "a"}),
        ({"name": "a"}, {"type": "agent_reference", "name": "a"}),
        (
            {"type": "agent_reference", "name": "a", "version": "1"},
            {"type": "agent_reference", "name": "a", "version": "1"},
        ),
    ],
)
def test_an_agent_reference_becomes_an_object(given_: Any, normal: dict[str, Any]) -> None:
    assert parse(agent_reference=given_)["agent_reference"] == normal


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, Flags(store=True, background=False, stream=False)),
        ({"store": None, "background": None, "stream": None}, Flags()),
        ({"store": False, "stream": True}, Flags(store=False, background=False, stream=True)),
        ({"background": True}, Flags(background=True)),
    ],
)
def test_flags_have_defaults(request_: dict[str, Any], expected: Flags) -> None:
    assert flags(request_) == expected


@pytest.mark.parametrize(
    ("conversation", "expected"), [("c", "c"), ({"id": "c"}, "c"), (None, None), ({"id": 1}, None)]
)
def test_a_conversation_has_one_id_however_it_is_given(conversation: Any, expected: str | None) -> None:
    assert conversation_id({"conversation": conversation}) == expected


@pytest.mark.parametrize(
    ("value", "number"), [(None, -1), ("-1", -1), ("0", 0), ("7", 7), ("007", 7), ("-0", 0), ("9" * 5000, 10**18)]
)
def test_starting_after_is_an_integer(value: str | None, number: int) -> None:
    assert parse_starting_after(value) == number


@pytest.mark.parametrize("value", ["", "a", "1.5", "-2", " 1", "+1", "1_0", "٣", "-" + "9" * 5000, "--1"])
def test_a_starting_after_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_starting_after(value)

    assert caught.value.param == "starting_after"
    assert caught.value.details


def test_a_list_query_has_defaults() -> None:
    assert parse_list_query() == ListQuery(limit=20, order="desc", after=None, before=None)
    assert parse_list_query("100", "asc", "a", "b") == ListQuery(limit=100, order="asc", after="a", before="b")


@pytest.mark.parametrize("limit", ["0", "101", "-1", "", "x", "1.0", "9" * 5000])
def test_a_limit_outside_its_range_is_refused(limit: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_list_query(limit)

    assert caught.value.param == "limit"


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_list_query(order="up")

    assert caught.value.param == "order"


FIELDS = [
    "input",
    "tools",
    "tool_choice",
    "text",
    "reasoning",
    "metadata",
    "conversation",
    "previous_response_id",
    "agent_reference",
    "store",
    "background",
    "temperature",
    "include",
]
NAMES = st.sampled_from(
    ["type", "role", "content", "name", "id", "format", "message", "function", "mcp", "json_schema"]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(), inner, max_size=4),
    max_leaves=15,
)


def outcome(body: bytes) -> dict[str, Any] | ApiError:
    try:
        return parse_create(body)
    except ApiError as error:
        return error


def check_outcome(result: dict[str, Any] | ApiError) -> None:
    if isinstance(result, ApiError):
        assert result.status == 400
        assert json.dumps(result.body("req_1"), ensure_ascii=False).encode()
    else:
        assert flags(result).store or not flags(result).background


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), ANY, max_size=5))
def test_any_json_is_accepted_or_refused_in_order(value: dict[str, Any]) -> None:
    check_outcome(outcome(json.dumps(value).encode()))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused_in_order(body: bytes) -> None:
    check_outcome(outcome(body))


@settings(deadline=None)
@given(ANY)
def test_what_is_accepted_gives_a_response_and_input_items(value: Any) -> None:
    for field in ("input", "tools", "text", "tool_choice", "agent_reference"):
        request = outcome(json.dumps({field: value}).encode())
        if isinstance(request, dict):
            assert new_response(request, response_id=KNOWN_ID, created_at=1)["id"] == KNOWN_ID
            assert all(item["type"] and item["id"] for item in input_items(request, KNOWN_ID))


def test_internal_metadata_of_a_client_is_dropped() -> None:
    item = {"role": "user", "content": "a"}

    parsed = parse(internal_metadata={"a": 1}, input=[{**item, "internal_metadata": {"b": 2}}])

    assert parsed == {"input": [item]}
