"""The served description is true: of the routes, of what is accepted, of every answer and event."""

import asyncio
import importlib
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, example, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from api.incoming import IDEMPOTENCY_KEY_HEADER, MAX_IDEMPOTENCY_KEY
from api.version import VERSION
from protocol import ids, jsonio
from protocol.errors import ApiError
from protocol.events import REQUIRED
from protocol.jsonio import MAX_VALUES
from protocol.openapi import OPERATIONS, Operation, document
from protocol.requests import parse_create
from resilience import ResponseContext, ResponseEventStream
from tests.support import hostile
from tests.support.api_server import ApiServer, serving, until
from tests.support.described import DOCUMENT, SCHEMAS, NotAsDescribed, check, find, validator
from tests.support.described import example as example_of
from tests.support.fuzzing import serving_in_thread

QUICK = settings(
    max_examples=1,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
UNKNOWN = ids.new_response_id(ids.new_partition())


# -- routes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def function_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("AzureWebJobsStorage", "UseDevelopmentStorage=true")
    sys.modules.pop("function_app", None)
    yield importlib.import_module("function_app")
    sys.modules.pop("function_app", None)


def test_every_function_is_described_and_every_description_has_its_function(function_app: ModuleType) -> None:
    declared = {
        (function.get_function_name(), method.value, "/" + trigger["route"])
        for function in function_app.app.get_functions()
        if (trigger := function.get_trigger().get_dict_repr())["type"] == "httpTrigger"
        for method in trigger["methods"]
    }
    described = {
        (operation["operationId"], method.upper(), path)
        for path, operations in DOCUMENT["paths"].items()
        for method, operation in operations.items()
    }
    assert described == declared


def test_the_parameters_of_a_path_are_described() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


def test_the_longest_idempotency_key_is_described() -> None:
    (key,) = DOCUMENT["paths"]["/v1/responses"]["post"]["parameters"]
    assert (key["name"].lower(), key["schema"]["maxLength"]) == (IDEMPOTENCY_KEY_HEADER, MAX_IDEMPOTENCY_KEY)


# -- the document -----------------------------------------------------------------------------------------------------


async def test_the_document_is_served_as_it_is() -> None:
    async with serving() as server:
        answer = await server.client.get("/v1/openapi.json", headers={"x-request-id": "mine"})
        assert answer.json() == DOCUMENT
        assert answer.headers["x-request-id"] == "mine"
        assert server.storage.seam.total() == 0
    assert DOCUMENT["info"]["version"] == VERSION


def test_every_schema_is_one_and_is_used_and_nothing_else_is_referred_to() -> None:
    for name, schema in SCHEMAS.items():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        assert validator(name)
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert referred == set(SCHEMAS)


def test_the_document_is_a_valid_openapi_document() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()


def test_every_event_of_the_table_is_described() -> None:
    described = {
        schema["properties"]["type"].get("const")
        for name, schema in SCHEMAS.items()
        if name.endswith("Event") and "type" in schema.get("properties", {})
    }
    assert described == set(REQUIRED)


def test_the_document_is_made_once() -> None:
    assert document("1") is document("1")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_error_of_an_operation_is_among_its_answers(operation: Operation) -> None:
    for name, path in operation.functions():
        described = DOCUMENT["paths"][path][operation.method]
        assert described["operationId"] == name
        assert {"200", "500", *(str(error.status) for error in operation.errors)} == set(described["responses"])


# -- what is accepted -------------------------------------------------------------------------------------------------


def accepted(body: bytes) -> bool:
    try:
        parse_create(body)
    except ApiError:
        return False
    return True


def readable(body: bytes) -> dict[str, Any] | None:
    """The request in a body of which nothing is wrong that a schema cannot say: bytes, depth, size."""
    try:
        request = jsonio.loads(body)
    except jsonio.NotJson:
        return None
    return request if isinstance(request, dict) and jsonio.fits(request) and len(body) < MAX_VALUES else None


requests = hostile.field_attacks | hostile.mutated() | hostile.mutated() | hostile.valid


@settings(QUICK, max_examples=250)
@given(requests)
@example({"max_output_tokens": 16.0})
@example({"max_output_tokens": 15.0})
@example({"top_logprobs": 1.5})
@example({"max_output_tokens": 2**53 - 1})
@example({"max_output_tokens": 2**53})
@example({"max_tool_calls": 2**64})
@example({"tools": [{"type": "file_search", "vector_store_ids": [], "max_num_results": -(2**64)}]})
@example({"conversation_id": "c"})
@example({"background": True, "store": False})
@example({"background": True, "store": None})
@example({"previous_response_id": UNKNOWN, "conversation": {"id": "c"}})
@example({"previous_response_id": UNKNOWN, "conversation": None})
@example({"previous_response_id": UNKNOWN + "\n"})
@example({"agent_reference": {"type": "other", "name": "a"}})
@example({"input": [{"id": "msg_1"}]})
@example({"input": [{"id": "msg_1", "type": None}]})
@example({"input": [{"id": "msg_1", "role": "user"}]})
@example({"input": [{"type": "function_call_output", "output": "x"}]})
@example({"input": [{"type": "function_call_output", "output": "x", "name": "f", "call_id": None}]})
@example({"input": [{"type": ""}]})
@example({"input": [{"type": 1}]})
@example({"tools": [{"type": "newer"}] * 1025})
def test_what_the_description_allows_is_accepted_and_nothing_else(request: dict[str, Any]) -> None:
    body = hostile.written(request)
    value = readable(body)
    if value is not None:
        assert validator("CreateResponseParam").is_valid(value) == accepted(body)


@pytest.mark.parametrize(
    ("name", "number"),
    [("ItemParam", 29), ("PartParam", 10), ("ToolParam", 13)],
)
def test_every_known_kind_has_an_example_that_is_accepted(name: str, number: int) -> None:
    found = [example_of(choice) for choice in SCHEMAS[name]["anyOf"]]
    assert len(found) == number
    for value in found:
        wrapped = {
            "ItemParam": {"input": [value]},
            "PartParam": {"input": [{"role": "user", "content": [value]}]},
            "ToolParam": {"tools": [value]},
        }[name]
        parse_create(json.dumps(wrapped).encode())


# -- answers ----------------------------------------------------------------------------------------------------------


async def every_kind(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    """An output item of every kind that has a one-call generator, and some of the others."""
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for events in (
        stream.output_item_message("text", annotations=[{"type": "url_citation", "url": "u"}]),
        stream.output_item_reasoning_item("summary"),
        stream.output_item_function_call("f", "call_1", "{}"),
        stream.output_item_function_call_output("call_1", "out"),
        stream.output_item_image_gen_call("aGk=", partials=["aA=="]),
        stream.output_item_structured_outputs({"a": 1}),
        stream.output_item_computer_call("call_2", {"type": "screenshot"}),
        stream.output_item_computer_call_output("call_2", {"type": "computer_screenshot"}),
        stream.output_item_local_shell_call("call_3", {"type": "exec", "command": ["ls"], "env": {}}),
        stream.output_item_local_shell_call_output("out"),
        stream.output_item_function_shell_call("call_4", {"commands": ["ls"]}, {"type": "local"}),
        stream.output_item_function_shell_call_output(
            "call_4", [{"stdout": "x", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
        ),
        stream.output_item_apply_patch_call("call_5", {"type": "delete_file", "path": "p"}),
        stream.output_item_apply_patch_call_output("call_5"),
        stream.output_item_custom_tool_call_output("call_6", "out"),
        stream.output_item_mcp_approval_request("server", "tool", "{}"),
        stream.output_item_mcp_approval_response("mcpr_1", True),
        stream.output_item_compaction("encrypted"),
    ):
        for event in events:
            yield event
    message = stream.add_output_item_message()
    yield message.emit_added()
    for event in message.refusal_content("no"):
        yield event
    yield message.emit_done()
    call = stream.add_output_item_mcp_call("server", "tool")
    yield call.emit_added()
    for event in call.arguments("{}"):
        yield event
    yield call.emit_completed()
    yield call.emit_done(output="out")
    usage = {"input_tokens": 1, "output_tokens": 2}
    yield stream.emit_completed(usage=usage)


def assert_as_described(answer: httpx.Response) -> httpx.Response:
    operation = find(answer.request.method, answer.request.url.path)
    assert operation is not None
    check(operation, answer.status_code, answer.headers, answer.content)
    return answer


REQUESTS: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"background": True},
    {"background": True, "stream": True},
    {"store": False},
    {"store": False, "stream": True},
    {
        "metadata": {"k": "v"},
        "agent_reference": "me",
        "conversation": "c",
        "tools": [{"type": "function", "name": "f"}],
    },
    {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}, "reasoning": {"effort": "low"}},
    {"tools": [{"type": "mcp", "server_label": "s", "headers": {"a": "b"}}, {"type": "newer", "name": 5}]},
]


@pytest.mark.parametrize("fields", REQUESTS, ids=str)
async def test_every_answer_of_a_session_is_as_described(fields: dict[str, Any]) -> None:
    items = [example_of(choice) for choice in SCHEMAS["ItemParam"]["anyOf"]]
    given_items = [item for item in items if item.get("type") != "item_reference"]
    # A client of its own: the other one's judge wants more of listed items than a request has to say of them.
    async with serving(every_kind) as server, httpx.AsyncClient(base_url=server.client.base_url, timeout=30) as client:
        created = assert_as_described(await client.post("/v1/responses", json={"input": given_items, **fields}))
        response_id = re.findall(r"resp_[0-9A-Za-z]{50}", created.text)[0]
        one = f"/v1/responses/{response_id}"
        await until(partial(has_ended, client, one))
        for query in ("", "?stream=true", "?stream=true&starting_after=3"):
            assert_as_described(await client.get(one + query))
        for query in ("", "?order=asc&limit=1", "?limit=0"):
            assert_as_described(await client.get(f"/responses/{response_id}/input_items{query}"))
        assert_as_described(await client.post(f"{one}/cancel"))
        for _ in range(2):
            assert_as_described(await client.delete(one))
        assert_as_described(await client.get(one))


async def has_ended(client: httpx.AsyncClient, path: str) -> bool:
    """Whether the response has a final status, or was never stored."""
    return (await client.get(path)).json().get("status") not in ("queued", "in_progress")


async def test_every_refusal_is_as_described() -> None:
    async with serving() as server:
        answers = await refusals(server)
        assert {answer.status_code for answer in answers} == {400, 404}
        for answer in answers:
            assert_as_described(answer)
        for path in ("/healthz", "/readyz", "/v1/openapi.json"):
            assert_as_described(await server.client.get(path))


async def refusals(server: ApiServer) -> list[httpx.Response]:
    client = server.client
    return [
        await client.post("/v1/responses", content=b""),
        await client.post("/responses", json={"temperature": 9, "tools": [{}], "input": [{"type": "message"}]}),
        await client.post("/v1/responses", json={"previous_response_id": UNKNOWN}),
        await client.get("/v1/responses/x"),
        await client.get(f"/v1/responses/{UNKNOWN}"),
        await client.delete(f"/v1/responses/{UNKNOWN}"),
        await client.post(f"/v1/responses/{UNKNOWN}/cancel"),
        await client.get(f"/v1/responses/{UNKNOWN}/input_items"),
    ]


async def test_an_answer_that_differs_is_noticed() -> None:
    async with serving() as server:
        whole = (await server.post(input="x")).json()
        item = whole["output"][0]
        broken = [
            {name: part for name, part in whole.items() if name != "usage"},
            {**whole, "created_at": 1.5},
            {**whole, "status": "done"},
            {**whole, "tools": None},
            {**whole, "output": [{name: part for name, part in item.items() if name != "id"}]},
        ]
    operation = find("POST", "/v1/responses")
    assert operation is not None
    headers = {"content-type": "application/json", "x-request-id": "r", "x-platform-server": "s"}
    check(operation, 200, headers, jsonio.dumps(whole))
    for body in broken:
        with pytest.raises(NotAsDescribed):
            check(operation, 200, headers, jsonio.dumps(body))
    frame = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":0}\n\n'
    with pytest.raises(NotAsDescribed):
        check(operation, 200, {**headers, "content-type": "text/event-stream"}, frame)


# -- schemathesis -----------------------------------------------------------------------------------------------------


def examples(operation: str, mode: GenerationMode) -> int:
    """How many, after what they cost: the schema of a request is large."""
    if operation == "create_response":
        return 10 if mode is GenerationMode.POSITIVE else 5
    if operation in ("count_input_tokens", "compact_items"):  # the same schema again
        return 2
    return 8


@pytest.mark.timeout(300)  # a quarter of a minute of computing
def test_schemathesis_finds_nothing() -> None:
    described = schemathesis.openapi.from_dict(DOCUMENT)
    asked = 0
    with serving_in_thread() as served:
        for result in described.get_all_operations():
            assert isinstance(result, Ok)
            operation = result.ok()
            name = operation.definition.raw["operationId"]
            if name.endswith("_bare"):
                continue
            for mode in GenerationMode:
                if mode is GenerationMode.NEGATIVE and not (
                    operation.body or operation.query or operation.path_parameters
                ):
                    continue

                @settings(QUICK, max_examples=examples(name, mode))
                @given(operation.as_strategy(generation_mode=mode))
                def ask(case: schemathesis.Case[Any]) -> None:
                    nonlocal asked
                    asked += 1
                    case.call_and_validate(base_url=str(served.server.client.base_url), timeout=30)

                ask()
    assert asked > 50
