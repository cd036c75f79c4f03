"""Conversations on the wire, compaction items, the estimate of tokens, and the app's two hooks."""

import base64
import json
from typing import Any

import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource

from protocol import ids
from protocol.compaction import PREFIX, expand, fold
from protocol.conversations import (
    conversation_object,
    deleted_object,
    list_object,
    numbered,
    parse_metadata,
    parse_new_conversation,
    parse_new_items,
)
from protocol.errors import InvalidRequest
from protocol.jsonio import MAX_VALUES
from protocol.request_items import MAX_ITEMS
from resilience.app import ResponsesApp
from resilience.compaction import MOST_KEPT, default_compaction
from resilience.token_count import estimate

RESPONSE_ID = ids.new_response_id(ids.new_partition())
USER: dict[str, Any] = {"type": "message", "role": "user", "content": "Hello"}


def message(number: int, role: str = "user") -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    part: dict[str, Any] = {"type": kind, "text": f"text {number}"}
    if role == "assistant":
        part |= {"annotations": [], "logprobs": []}
    return {"id": f"msg_{number}", "type": "message", "role": role, "status": "completed", "content": [part]}


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_conversation_may_begin_with_nothing() -> None:
    for body in (b"{}", b'{"items": null, "metadata": null}', b'{"items": [], "metadata": {}, "newer": 1}'):
        new = parse_new_conversation(body)
        assert (new.items, new.metadata) == ([], {})


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "$"),
        (b"[]", "$"),
        (b'{"items": "hi"}', "$.items"),
        (b'{"items": [{"role": "nobody", "content": "x"}]}', "$.items[0].role"),
        (b'{"items": [{"type": "message", "role": "user"}]}', "$.items[0].content"),
        (b'{"items": [1]}', "$.items[0]"),
        (b'{"metadata": {"k": 1}}', "$.metadata.k"),
        (b'{"metadata": []}', "$.metadata"),
        (json.dumps({"metadata": {"k": "v" * 513}}).encode(), "$.metadata.k"),
        (json.dumps({"metadata": {"k" * 65: "v"}}).encode(), "$.metadata." + "k" * 65),
        (json.dumps({"metadata": {str(number): "" for number in range(17)}}).encode(), "$.metadata"),
        (json.dumps({"items": [USER] * 21}).encode(), "$.items"),
    ],
    ids=str,
)
def test_a_malformed_conversation_is_refused_and_the_fault_named(body: bytes, path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_new_conversation(body)
    assert refused.value.status == 400
    assert [detail["param"] for detail in refused.value.details] == [path]


def test_twenty_items_at_once_and_no_more_and_no_less_than_one() -> None:
    assert len(parse_new_items(json.dumps({"items": [USER] * 20}).encode())) == 20
    for count in (0, 21):
        with pytest.raises(InvalidRequest):
            parse_new_items(json.dumps({"items": [USER] * count}).encode())
    with pytest.raises(InvalidRequest):
        parse_new_items(b"{}")


def test_other_metadata_have_to_be_said() -> None:
    assert parse_metadata(b'{"metadata": {"a": "b"}}') == {"a": "b"}
    assert parse_metadata(b'{"metadata": null}') == {}
    with pytest.raises(InvalidRequest):
        parse_metadata(b"{}")


# -- objects ----------------------------------------------------------------------------------------------------------


def test_the_objects_are_of_the_clients_types() -> None:
    shown = Conversation.model_validate(conversation_object("conv_1", 5, {"a": "b"}), strict=True)
    assert shown.metadata == {"a": "b"}
    ConversationDeletedResource.model_validate(deleted_object("conv_1"), strict=True)
    assert list_object([])["first_id"] is None
    assert list_object([message(1), message(2)])["last_id"] == "msg_2"


def test_items_that_are_put_in_get_ids_of_their_own_that_say_where_they_lie() -> None:
    partition = ids.new_partition()
    given = [{"role": "user", "content": "x", "id": "mine", "internal_metadata": {"a": 1}}, {**USER}, {**USER}]
    kept = numbered(given, partition)
    assert {ids.partition_of(item["id"]) for item in kept} == {partition}
    assert len({item["id"] for item in kept}) == 3
    assert all(item["id"].startswith("msg_") and item["status"] == "completed" for item in kept)
    assert not any("internal_metadata" in item for item in kept)
    assert given[0]["id"] == "mine"


# -- compaction -------------------------------------------------------------------------------------------------------


def test_folded_items_come_back_as_they_were() -> None:
    items = [message(1), message(2, "assistant"), {"type": "newer", "id": "n", "values": [1, None, "ü"]}]
    folded = fold([{**items[0], "internal_metadata": {"a": 1}}, *items[1:]], RESPONSE_ID)
    assert (folded["type"], ids.partition_of(folded["id"])) == ("compaction", ids.partition_of(RESPONSE_ID))
    assert expand([folded, message(9)]) == [*items, message(9)]
    assert expand([fold([], RESPONSE_ID)]) == []


def _sealed(value: object) -> str:
    return PREFIX + base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "content",
    [
        "somebody else's",
        PREFIX + "%%%",
        PREFIX + "bm8ganNvbg",
        PREFIX + "x",
        _sealed({"no": "list"}),
        _sealed([1]),
        _sealed([{"type": "message", "role": "nobody", "content": "x"}]),
        _sealed([{"type": "newer", "values": [0] * 600_000}]),
        _sealed([{"type": "newer"}] * 10_001),
    ],
    ids=["other", "alphabet", "json", "short", "object", "number", "role", "values", "items"],
)
def test_compaction_items_that_were_not_made_here_pass_as_they_are(content: str) -> None:
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": content}
    assert expand([item]) == [item]


def test_a_client_cannot_fold_internal_metadata_into_an_item() -> None:
    item = {"type": "compaction", "encrypted_content": _sealed([{**USER, "internal_metadata": {"a": 1}}])}
    (expanded,) = expand([item])
    assert "internal_metadata" not in expanded
    assert expanded["content"] == [{"type": "input_text", "text": "Hello"}]
    assert expanded["id"]


def test_folded_items_are_not_more_than_a_request_may_have_openly() -> None:
    """However many compaction items they come in; what is too much stays as it is."""
    many = _sealed([USER] * (MAX_ITEMS - 1))
    expanded = expand([{"type": "compaction", "encrypted_content": many}] * 3)
    assert [item["type"] for item in expanded[-3:]] == ["message", "compaction", "compaction"]
    assert len(expanded) == MAX_ITEMS + 1


def test_folded_values_are_not_more_than_a_request_may_have_openly() -> None:
    one = _sealed([{"type": "of_a_newer_client", "values": [0] * (MAX_VALUES - 100)}])
    expanded = expand([{"type": "compaction", "encrypted_content": one}] * 3)
    assert [item["type"] for item in expanded] == ["of_a_newer_client", "compaction", "compaction"]


def test_the_newest_turn_stays_and_the_rest_is_folded() -> None:
    items = [message(1), message(2, "assistant"), message(3), message(4, "assistant")]
    first, *rest = default_compaction(items, RESPONSE_ID)
    assert first["type"] == "compaction"
    assert rest == items[2:]
    assert expand([first, *rest]) == items


def test_a_long_turn_is_folded_too() -> None:
    items = [message(0), *(message(number, "assistant") for number in range(1, 50))]
    first, *rest = default_compaction(items, RESPONSE_ID)
    assert len(rest) == MOST_KEPT
    assert expand([first, *rest]) == items


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_the_estimate_is_a_quarter_of_the_bytes_of_what_is_read() -> None:
    assert estimate({}, []) == 0
    assert estimate({"instructions": "12345"}, []) == 2
    assert estimate({}, [message(1)]) == 2
    assert estimate({}, [{"type": "message", "content": [{"type": "input_text", "text": "ä" * 4}]}]) == 2
    assert estimate({"tools": [{"type": "function", "name": "f"}]}, []) > 5
    call = {"type": "function_call", "name": "name", "arguments": "1234", "call_id": "x" * 1000, "id": "y" * 1000}
    assert estimate({}, [call]) == 2
    image = {"type": "input_image", "image_url": "data:" + "x" * 10_000, "detail": "auto"}
    assert estimate({}, [{"type": "message", "content": [image]}]) == 0


# -- hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["input_token_counter", "compactor"])
def test_a_hook_is_one_async_function_of_two_parameters(hook: str) -> None:
    async def good(request: Any, context: Any) -> Any: ...

    def sync(request: Any, context: Any) -> Any: ...

    async def short(request: Any) -> Any: ...

    app = ResponsesApp()
    for wrong in (sync, short):
        with pytest.raises(TypeError):
            getattr(app, hook)(wrong)
    assert getattr(app, hook)(good) is good
    with pytest.raises(TypeError, match="already has"):
        getattr(app, hook)(good)
