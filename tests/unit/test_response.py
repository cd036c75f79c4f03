"""The response object (W1, W2, B6, B20–B22, R12), against the `openai` package's types."""

from typing import Any

import pytest
from openai.types.responses import Response

from protocol import ids, models, response
from protocol.events import InvalidEvent
from protocol.response import cancelled, completed, failed, fill_response, new_response, strip_internal

RESPONSE_ID = ids.new_response_id(ids.new_partition())

EMPTY: dict[str, Any] = {
    "id": RESPONSE_ID,
    "object": "response",
    "created_at": 5,
    "status": "in_progress",
    "model": "",
    "output": [],
    "tools": [],
    "tool_choice": "auto",
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "store": True,
    "background": False,
    "service_tier": "default",
    "metadata": {},
    "reasoning": {"effort": None, "summary": None},
}


def new(request: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    return new_response(request or {}, **{"response_id": RESPONSE_ID, "created_at": 5, **given})


def message(text: str = "a", **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "status": "completed", "content": text, **more}


def check(body: dict[str, Any]) -> None:
    """No field omitted, and all of them as the `openai` package wants them."""
    assert set(Response.model_fields) <= set(body)
    assert models.Response.__required_keys__ <= set(body)
    assert set(body) <= models.Response.__required_keys__ | models.Response.__optional_keys__
    Response.model_validate(body, strict=True)


def test_an_empty_request_gives_every_field() -> None:
    body = new()

    check(body)
    assert {key: body[key] for key in EMPTY} == EMPTY
    assert {key for key, value in body.items() if value is None} == set(body) - set(EMPTY)


def test_nulls_of_the_request_become_the_defaults() -> None:
    fields = set(new()) - {"id", "object", "created_at", "status", "output"}

    assert new(dict.fromkeys(fields)) == new()


REQUEST: dict[str, Any] = {
    "model": "m",
    "instructions": "be kind",
    "conversation": {"id": "conv_1"},
    "max_output_tokens": 100,
    "max_tool_calls": 3,
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "temperature": 0.5,
    "top_p": 0.1,
    "top_logprobs": 2,
    "truncation": "auto",
    "tool_choice": {"type": "function", "name": "f"},
    "user": "u",
    "store": False,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "prompt": {"id": "p"},
}


def test_the_values_of_the_request_are_echoed() -> None:
    body = new(REQUEST)

    check(body)
    assert {key: body[key] for key in REQUEST} == REQUEST


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1", "more": 1}])
def test_a_conversation_is_shown_as_an_object(conversation: object) -> None:
    assert new({"conversation": conversation})["conversation"] == {"id": "conv_1"}


@pytest.mark.parametrize(
    ("request_model", "default", "shown"), [("m", "d", "m"), (None, "d", "d"), (None, None, ""), ("", "d", "d")]
)
def test_the_model_is_the_requests_or_the_default_or_empty(
    request_model: str | None, default: str | None, shown: str
) -> None:
    assert new({"model": request_model}, default_model=default)["model"] == shown


def test_echoed_function_tools_have_all_their_keys() -> None:
    body = new({"tools": [{"type": "function", "name": "f"}, {"type": "hologram", "light": 1}]})

    assert body["tools"] == [
        {"type": "function", "name": "f", "description": None, "parameters": None, "strict": None},
        {"type": "hologram", "light": 1},
    ]
    check(new({"tools": [{"type": "function", "name": "f"}]}))


def test_credentials_of_a_tool_are_not_echoed() -> None:
    tool = {"type": "mcp", "server_label": "s", "authorization": "secret", "headers": {"X-Key": "secret"}}

    body = new({"tools": [tool]})

    assert body["tools"] == [{"type": "mcp", "server_label": "s", "headers": {"X-Key": "<redacted>"}}]
    check(body)


def test_a_text_without_a_format_gets_one() -> None:
    assert new({"text": {"verbosity": "low"}})["text"] == {"verbosity": "low", "format": {"type": "text"}}


def test_an_echoed_schema_has_all_its_keys() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {}}

    assert new({"text": {"format": form}})["text"]["format"] == {**form, "description": None, "strict": None}


def test_reasoning_keeps_its_keys() -> None:
    assert new({"reasoning": {"effort": "low"}})["reasoning"] == {"effort": "low", "summary": None}


def test_the_agent_reference_of_the_request_stands_on_the_response() -> None:
    reference = {"type": "agent_reference", "name": "a"}

    assert new({"agent_reference": reference})["agent_reference"] == reference
    assert new({}, agent_reference=reference)["agent_reference"] == reference
    assert "agent_reference" not in new()


def test_a_response_shares_nothing_with_its_request() -> None:
    request: dict[str, Any] = {"metadata": {"a": "b"}}

    new(request)["metadata"]["a"] = "changed"
    new()["metadata"]["x"] = "y"

    assert request == {"metadata": {"a": "b"}}
    assert new()["metadata"] == {}


def test_a_bare_snapshot_of_a_handler_is_completed() -> None:
    base = new(REQUEST)

    body = fill_response({"output": [message()]}, base, status="completed", completed_at=9)

    check(body)
    assert body == {**base, "status": "completed", "completed_at": 9, "output": body["output"]}
    assert body["output"][0]["response_id"] == RESPONSE_ID
    assert body["output"][0]["content"] == [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]


def test_the_output_so_far_stays_when_the_handler_says_nothing_of_it() -> None:
    base = fill_response({"output": [message()]}, new())

    assert fill_response({}, base, status="completed")["output"] == base["output"]
    assert fill_response({"output": []}, base, status="completed")["output"] == []


def test_a_handler_sets_what_it_may_and_nothing_else() -> None:
    base = new({"conversation": "c", "background": True})
    emitted = {
        "id": "resp_x",
        "object": "x",
        "created_at": 1,
        "store": False,
        "background": False,
        "conversation": None,
        "previous_response_id": "resp_y",
        "completed_at": 3,
        "model": "better",
        "metadata": {"k": "v"},
        "temperature": None,
        "status": None,
    }

    body = fill_response(emitted, base)

    assert body == {**base, "model": "better", "metadata": {"k": "v"}}


def test_a_partial_agent_reference_of_a_handler_erases_nothing() -> None:
    base = new({"agent_reference": {"name": "a", "version": "1"}})

    body = fill_response({"agent_reference": {"name": None, "label": "x"}, "output": [message()]}, base)

    expected = {"type": "agent_reference", "name": "a", "version": "1", "label": "x"}
    assert body["agent_reference"] == expected
    assert body["output"][0]["agent_reference"] == expected


@pytest.mark.parametrize(
    "emitted",
    [
        {"output": {}},
        {"output": ["a"]},
        {"output": [{"type": "function_call"}]},
        {"tools": "x"},
        {"status": "done"},
        {"metadata": []},
        {"error": "broken"},
        {"model": 3},
        {"x": "\ud800"},
        {"x": object()},
    ],
)
def test_a_broken_snapshot_of_a_handler_is_refused(emitted: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        fill_response(emitted, new())


@pytest.mark.parametrize("status", sorted(response.STATUSES))
def test_fields_go_with_the_status(status: str) -> None:
    emitted = {"error": {"code": "x"}, "incomplete_details": {"reason": "content_filter"}, "output": [message()]}

    body = fill_response(emitted, new(), status=status, completed_at=9)

    assert (body["completed_at"] is not None) == (status == "completed")
    assert (body["error"] is not None) == (status == "failed")
    assert (body["incomplete_details"] is not None) == (status == "incomplete")
    assert (body["output"] == []) == (status == "cancelled")
    assert response.is_terminal(body) == (status not in ("queued", "in_progress"))


def test_a_failed_response_always_says_why() -> None:
    assert fill_response({}, new(), status="failed")["error"]["code"] == "server_error"
    assert fill_response({"error": {"code": "x"}}, new(), status="failed")["error"] == {"code": "x", "message": ""}


def test_a_failure_is_laid_over_the_last_snapshot() -> None:
    base = fill_response({"output": [message()], "model": "m"}, new({"agent_reference": {"name": "a"}}))

    body = failed(base, "server_error", "gone", "crash_recovery")

    check(body)
    assert body == {
        **base,
        "status": "failed",
        "error": {
            "code": "server_error",
            "message": "gone",
            "additionalInfo": {"shutdown_reason": "crash_recovery"},
        },
    }


def test_a_failure_without_a_shutdown_has_code_and_message_only() -> None:
    assert set(failed(new())["error"]) == {"code", "message"}


def test_a_cancelled_response_has_no_output() -> None:
    base = fill_response({"output": [message()]}, new())

    body = cancelled(base)

    check(body)
    assert body == {**base, "status": "cancelled", "output": []}
    assert base["output"]


def test_a_completed_response_says_when() -> None:
    body = completed(new(), 7)

    check(body)
    assert (body["status"], body["completed_at"]) == ("completed", 7)


def test_usage_has_all_its_keys() -> None:
    assert response.usage({"input_tokens": 2, "output_tokens": 3, "extra": "kept"}) == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5,
        "extra": "kept",
    }
    assert response.usage(None) is None


def test_partial_usage_of_a_handler_is_completed() -> None:
    body = fill_response({"usage": {"input_tokens": 1}}, new(), status="completed", completed_at=1)

    assert body["usage"] == response.usage({"input_tokens": 1})
    check(body)


def test_usage_of_a_handler_stays() -> None:
    given = {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 1},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 9,
    }

    body = fill_response({"usage": given}, new(), status="completed", completed_at=1)

    assert body["usage"] == given
    check(body)


def test_internal_metadata_is_stripped_wherever_a_client_looks() -> None:
    item = message(internal_metadata={"a": 1}, metadata={"internal_metadata": "a client's own"})
    body = {"internal_metadata": {"b": 2}, "output": [item]}

    stripped = strip_internal({"type": "response.completed", "response": body})

    kept = {key: value for key, value in item.items() if key != "internal_metadata"}
    assert stripped == {"type": "response.completed", "response": {"output": [kept]}}
    assert strip_internal({"type": "response.output_item.done", "item": item})["item"] == kept
    assert "internal_metadata" in item
    assert "internal_metadata" in body


def test_internal_metadata_is_kept_when_a_snapshot_is_filled() -> None:
    body = fill_response({"internal_metadata": {"a": 1}, "output": [message(internal_metadata={"b": 2})]}, new())

    assert body["internal_metadata"] == {"a": 1}
    assert body["output"][0]["internal_metadata"] == {"b": 2}
