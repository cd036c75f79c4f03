"""What stands in every response object and on every item (B20–B23, B31, W1–W3, W10), whichever way it is read."""

from typing import Any

import pytest

from resilience import ResponsesServerOptions
from tests.contract.modes import EVERY_MODE, MODES, Json, Told, ask
from tests.support.api_server import ApiServer, serving
from tests.support.invariants import check_body
from tests.support.wire_judge import check_fields

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHOED: Json = {
    "model": "m-1",
    "instructions": "Be kind.",
    "max_output_tokens": 1000,
    "max_tool_calls": 3,
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "prompt_cache_key": "k",
    "safety_identifier": "s" * 64,
    "service_tier": "flex",
    "temperature": 0.25,
    "top_p": 0.5,
    "top_logprobs": 2,
    "truncation": "auto",
    "tool_choice": {"type": "function", "name": "f"},
    "user": "u",
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
}
TOOLS: list[Json] = [
    {"type": "function", "name": "f"},
    {"type": "function", "name": "g", "description": "G", "parameters": {"type": "object"}, "strict": True},
]
DEFAULTS: Json = {
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
    "service_tier": "default",
    "metadata": {},
    "model": "",
    "instructions": None,
    "previous_response_id": None,
    "conversation": None,
    "usage": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "reasoning": {"effort": None, "summary": None},
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "error": None,
    "incomplete_details": None,
}


def bodies(told: Told) -> list[Json]:
    """Every response object the client saw."""
    snapshots = [event["response"] for event in told.events if "response" in event]
    return [*snapshots, *([] if told.events else [told.answer.json()]), told.response]


@EVERY_MODE
async def test_request_of_nothing_but_input_gets_every_field_with_its_default(server: ApiServer, mode: str) -> None:
    told = await ask(server, mode)
    flags = {"store": True, "background": False, **MODES[mode]}
    for body in bodies(told):
        check_body(body)
        check_fields(body)
        assert {name: body[name] for name in DEFAULTS} == DEFAULTS
        assert (body["object"], body["store"], body["background"]) == ("response", flags["store"], flags["background"])
        assert body["id"] == told.response["id"]
        assert body["created_at"] == told.response["created_at"]


@EVERY_MODE
async def test_values_of_the_request_are_echoed_in_every_body(server: ApiServer, mode: str) -> None:
    told = await ask(server, mode, **ECHOED, tools=TOOLS)
    whole = [{"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}, TOOLS[1]]
    for body in bodies(told):
        assert {name: body[name] for name in ECHOED} == ECHOED
        assert body["tools"] == whole


@EVERY_MODE
async def test_items_name_their_response_and_the_agent(server: ApiServer, mode: str) -> None:
    """B20, B21, W3: on the items of the events too."""
    reference = {"type": "agent_reference", "name": "a", "version": "1"}
    told = await ask(server, mode, agent_reference=reference)
    items = [event["item"] for event in told.events if "item" in event] + told.response["output"]
    assert items
    for item in items:
        assert (item["response_id"], item["agent_reference"]) == (told.response["id"], reference)
        assert item["id"]
        assert item["status"] in ("in_progress", "completed")
    assert all(body["agent_reference"] == reference for body in bodies(told))
    (part,) = told.response["output"][0]["content"]
    assert part == {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    deltas = [event for event in told.events if event["type"] == "response.output_text.delta"]
    assert all(delta["logprobs"] == [] for delta in deltas)


@pytest.mark.parametrize("given", ["a", {"name": "a"}, {"type": "agent_reference", "name": "a"}])
async def test_agent_reference_is_an_object_however_it_was_given(server: ApiServer, given: Any) -> None:
    told = await ask(server, "C1", agent_reference=given)
    assert told.response["agent_reference"] == {"type": "agent_reference", "name": "a"}


@EVERY_MODE
async def test_snapshot_in_an_event_is_that_of_its_moment(server: ApiServer, mode: str) -> None:
    """B23, B37: nothing of what came later; the last one holds the final output."""
    told = await ask(server, mode)
    if not told.events:
        assert told.answer.json()["output"] == ([] if mode == "C3" else told.response["output"])
        return
    outputs = {event["type"]: len(event["response"]["output"]) for event in told.events if "response" in event}
    assert outputs == {"response.created": 0, "response.in_progress": 0, "response.completed": 1}
    done = next(event["item"] for event in told.events if event["type"] == "response.output_item.done")
    assert told.response["output"] == [done]


@EVERY_MODE
async def test_model_is_the_requests_or_the_default_of_the_app(mode: str) -> None:
    """B22."""
    async with serving(options=ResponsesServerOptions(resilient_background=True, default_model="house")) as server:
        for given, shown in (({"model": "m-1"}, "m-1"), ({}, "house"), ({"model": None}, "house")):
            told = await ask(server, mode, **given)
            assert {body["model"] for body in bodies(told)} == {shown}


@EVERY_MODE
async def test_what_newer_clients_send_is_taken_and_reaches_the_handler(server: ApiServer, mode: str) -> None:
    """W10."""
    body = {
        "input": [{"type": "hologram", "light": 1}, {"role": "user", "content": "Hello"}],
        "tools": [{"type": "namespace", "name": "n", "description": "d", "tools": []}],
        "client_metadata": {"x": [1]},
    }
    await ask(server, mode, **body)
    (context,) = server.runs
    assert {name: context.request[name] for name in body} == body


async def test_conversation_may_be_a_name_or_an_object_and_need_not_exist(server: ApiServer) -> None:
    first = await ask(server, "C1", input="One", conversation="conv_of_mine")
    second = await ask(server, "C1", input="Two", conversation={"id": "conv_of_mine"})
    assert first.response["conversation"] == second.response["conversation"] == {"id": "conv_of_mine"}
    history = await server.runs[-1].get_history()
    assert [item["content"][0]["text"] for item in history] == ["One", "One"]
    alone = await ask(server, "C1", input="Three", conversation="conv_of_another")
    assert alone.response["status"] == "completed"
    assert await server.runs[-1].get_history() == []
