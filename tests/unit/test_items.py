"""Items in and out (B20, B21, W3, input_items)."""

from typing import Any

import pytest
from openai.types.responses import ResponseItemList, ResponseOutputItem
from pydantic import TypeAdapter

from protocol import ids, items
from protocol.items import ListQuery

RESPONSE_ID = ids.new_response_id(ids.new_partition())
OUTPUT_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseOutputItem)


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": f"msg_{index}"} for index in range(count)]


def names(page: dict[str, Any]) -> list[str]:
    return [item["id"].removeprefix("msg_") for item in page["data"]]


def test_a_string_is_one_user_message() -> None:
    (item,) = items.input_items({"input": "hi"}, RESPONSE_ID)

    assert ids.partition_of(item.pop("id")) == ids.partition_of(RESPONSE_ID)
    assert item == {
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "hi"}],
    }


def test_a_request_without_input_has_no_items() -> None:
    assert items.input_items({}, RESPONSE_ID) == []
    assert items.input_items({"input": None}, RESPONSE_ID) == []


def test_every_attempt_sees_the_same_input_items() -> None:
    request = {"input": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}

    first = items.input_items(request, RESPONSE_ID)

    assert first == items.input_items(request, RESPONSE_ID)
    assert first[0]["id"] != first[1]["id"]


def test_the_request_is_not_changed_nor_shared() -> None:
    request: dict[str, Any] = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}

    (item,) = items.input_items(request, RESPONSE_ID)
    item["content"][0]["text"] = "changed"

    assert request == {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}


def test_ids_and_statuses_of_the_client_stay() -> None:
    given = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c",
        "name": "f",
        "arguments": "",
        "status": "incomplete",
    }

    assert items.input_items({"input": [given]}, RESPONSE_ID) == [given]


@pytest.mark.parametrize("reference", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}])
def test_a_reference_is_kept(reference: dict[str, Any]) -> None:
    expected = {"type": "item_reference", "id": "msg_1"}

    assert items.input_items({"input": [reference]}, RESPONSE_ID) == [expected]


def test_an_item_of_a_newer_client_is_kept_and_gets_an_id() -> None:
    (item,) = items.input_items({"input": [{"type": "hologram", "light": 1}]}, RESPONSE_ID)

    assert item["id"].startswith("item_")
    assert (item["type"], item["light"]) == ("hologram", 1)
    assert "status" not in item


def test_the_openai_package_reads_the_input_items() -> None:
    request = {
        "input": [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
            {"role": "assistant", "content": "yes"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "reasoning", "summary": []},
            {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": ""},
        ]
    }

    page = items.page(items.input_items(request, RESPONSE_ID), ListQuery(order="asc"))

    parsed = ResponseItemList.model_validate(page, strict=True)
    assert [item.type for item in parsed.data][3:] == [
        "function_call",
        "function_call_output",
        "reasoning",
        "custom_tool_call",
    ]
    assert page["data"][2]["content"] == [{"type": "output_text", "text": "yes", "annotations": [], "logprobs": []}]


def test_input_text_joins_the_text_of_messages_only() -> None:
    request = {
        "input": [
            {"role": "user", "content": "a"},
            {"type": "function_call_output", "call_id": "c", "output": "not this"},
            {"role": "user", "content": [{"type": "input_text", "text": "b"}, {"type": "input_file"}]},
        ]
    }

    assert items.input_text(items.input_items(request, RESPONSE_ID)) == "a\nb"
    assert items.input_text([{"content": "raw"}]) == "raw"


@pytest.mark.parametrize(
    ("query", "expected", "more"),
    [
        (ListQuery(), "987654321 0".replace(" ", ""), False),
        (ListQuery(limit=3), "987", True),
        (ListQuery(limit=3, order="asc"), "012", True),
        (ListQuery(limit=10, order="asc"), "0123456789", False),
        (ListQuery(limit=3, order="asc", after="msg_6"), "789", False),
        (ListQuery(limit=2, order="asc", after="msg_6"), "78", True),
        (ListQuery(limit=3, after="msg_2"), "10", False),
        (ListQuery(limit=3, order="asc", before="msg_5"), "234", True),
        (ListQuery(limit=9, order="asc", before="msg_2"), "01", False),
        (ListQuery(order="asc", after="msg_2", before="msg_5"), "34", False),
        (ListQuery(order="asc", after="msg_9"), "", False),
        (ListQuery(order="asc", after="unknown", before="unknown"), "0123456789", False),
    ],
)
def test_a_page_is_the_asked_window(query: ListQuery, expected: str, more: bool) -> None:
    page = items.page(numbered(10), query)

    assert "".join(names(page)) == expected
    assert page["has_more"] is more
    assert page["object"] == "list"
    assert page["first_id"] == (f"msg_{expected[0]}" if expected else None)
    assert page["last_id"] == (f"msg_{expected[-1]}" if expected else None)


def test_walking_the_pages_gives_every_item_once() -> None:
    seen: list[str] = []
    after: str | None = None
    while True:
        page = items.page(numbered(10), ListQuery(limit=3, after=after))
        seen += names(page)
        after = page["last_id"]
        if not page["has_more"]:
            break

    assert "".join(seen) == "9876543210"


BARE_OUTPUT: list[dict[str, Any]] = [
    {"type": "message"},
    {"type": "message", "content": "text"},
    {"type": "message", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "no"}]},
    {"type": "reasoning"},
    {"type": "function_call", "call_id": "c", "name": "f"},
    {"type": "function_call_output", "call_id": "c", "output": "1"},
    {"type": "custom_tool_call", "call_id": "c", "name": "f"},
    {"type": "custom_tool_call_output", "call_id": "c", "output": "1"},
    {"type": "file_search_call"},
    {"type": "web_search_call"},
    {"type": "code_interpreter_call"},
    {"type": "image_generation_call"},
    {"type": "mcp_call", "server_label": "s", "name": "f"},
    {"type": "mcp_list_tools", "server_label": "s"},
    {"type": "mcp_approval_request", "server_label": "s", "name": "f", "arguments": "{}"},
    {"type": "mcp_approval_response", "approval_request_id": "m", "approve": True},
    {"type": "computer_call", "call_id": "c"},
    {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}},
    {"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": [], "env": {}}},
    {"type": "local_shell_call_output", "output": "1"},
    {"type": "shell_call", "call_id": "c", "action": {"commands": []}, "environment": None},
    {"type": "shell_call_output", "call_id": "c", "output": [], "max_output_length": None},
    {"type": "apply_patch_call", "call_id": "c", "operation": {"type": "delete_file", "path": "a"}},
    {"type": "apply_patch_call_output", "call_id": "c"},
    {"type": "compaction", "encrypted_content": "x"},
]


@pytest.mark.parametrize("bare", BARE_OUTPUT, ids=lambda bare: bare["type"])
@pytest.mark.parametrize("status", ["in_progress", "completed"])
def test_a_completed_item_is_read_by_the_openai_package(bare: dict[str, Any], status: str) -> None:
    item = items.complete_item(bare, RESPONSE_ID, {"name": "a"}, status=status)

    parsed = OUTPUT_ITEM.validate_python(item, strict=True)
    assert parsed.type == bare["type"]
    assert item["response_id"] == RESPONSE_ID
    assert item["agent_reference"] == {"type": "agent_reference", "name": "a"}
    assert item["id"].startswith(ids.ITEM_PREFIXES[bare["type"]] + "_")
    assert ("status" in item) == (bare["type"] in items.WITH_STATUS)
    # Its only statuses are completed and failed.
    if item.get("status", status) != status:
        assert bare["type"] == "apply_patch_call_output"


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"type": 3},
        {"type": "function_call", "name": "f"},
        {"type": "mcp_call", "name": "f"},
        {"type": "message", "content": 3},
        {"type": "message", "content": ["a"]},
    ],
)
def test_an_item_that_lacks_the_essential_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(items.InvalidItem):
        items.complete_item(broken, RESPONSE_ID)


def test_output_text_parts_have_annotations_and_logprobs() -> None:
    item = items.complete_item({"type": "message", "content": [{"type": "output_text"}]}, RESPONSE_ID)

    assert item["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]


def test_a_handler_cannot_give_an_item_to_another_response() -> None:
    assert items.complete_item({"type": "message", "response_id": "resp_x"}, RESPONSE_ID)["response_id"] == RESPONSE_ID


def test_completing_changes_neither_the_item_nor_the_next_one() -> None:
    bare: dict[str, Any] = {"type": "reasoning"}

    items.complete_item(bare, RESPONSE_ID)["summary"].append({"type": "summary_text", "text": ""})

    assert bare == {"type": "reasoning"}
    assert items.complete_item(bare, RESPONSE_ID)["summary"] == []


def test_a_partial_agent_reference_erases_nothing() -> None:
    base = {"type": "agent_reference", "name": "a", "version": "1"}

    merged = items.merge_agent_reference(base, {"name": "", "version": None, "extra": 1})

    assert merged == {**base, "extra": 1}
    assert items.merge_agent_reference(None, None) is None
    assert items.merge_agent_reference(base, "nonsense") == base


def test_an_unknown_output_item_gets_id_and_owner_only() -> None:
    item = items.complete_item({"type": "structured_outputs", "output": {"a": 1}}, RESPONSE_ID)

    assert set(item) == {"type", "output", "id", "response_id"}
