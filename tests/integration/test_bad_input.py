"""What clients and circumstances get wrong, over real HTTP: a clear answer, and nothing lost or half-recorded."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from protocol import ids
from tests.support.azurite import AzuriteServer
from tests.support.servers import Deployment, body, deployment, events_of
from tests.support.storage_proxy import StorageProxy


@pytest.fixture(scope="module")
def server(azurite: AzuriteServer) -> Iterator[Deployment]:
    with deployment(azurite, RESPONSES_MAX_BODY_BYTES=str(8 << 20), RESPONSES_EAGER_START="true") as made:
        made.start_blocking()
        yield made


@pytest.fixture
async def http(server: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.hosts[0].base_url, timeout=60) as client:
        yield client


def assert_refused(answer: httpx.Response, status: int, **expected: Any) -> dict[str, Any]:
    """An error in the API's own shape (W8), with the request's id in header and body."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["additionalInfo"]["request_id"] == answer.headers["x-request-id"]
    assert {name: error[name] for name in expected} == expected
    return error


BROKEN_BODIES = {
    "empty": b"",
    "not JSON": b'{"model": "m", ',
    "a list": b"[1, 2]",
    "a number": b"7",
    "not UTF-8": b'{"input": "\xff\xfe"}',
    "NaN": b'{"input": "x", "temperature": NaN}',
    "deep nesting": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("content", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
async def test_a_broken_body_is_refused(http: httpx.AsyncClient, content: bytes) -> None:
    answer = await http.post("/v1/responses", content=content, headers={"content-type": "application/json"})
    assert_refused(answer, 400, type="invalid_request_error")


WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "$.model": {"model": 5},
    "$.temperature": {"temperature": 3},
    "$.metadata": {"metadata": {"k": "v" * 513}},
    "$.input[0].role": {"input": [{"role": "king", "content": "hi"}]},
    "$.tools[0].name": {"tools": [{"type": "function"}]},
}


@pytest.mark.parametrize(("path", "fields"), WRONG_FIELDS.items(), ids=WRONG_FIELDS.keys())
async def test_wrong_types_are_refused_by_name(http: httpx.AsyncClient, path: str, fields: dict[str, Any]) -> None:
    error = assert_refused(await http.post("/v1/responses", json={"input": "hi", **fields}), 400)
    details = error["details"]
    assert any(detail["param"].startswith(path) for detail in details), details
    assert {detail["code"] for detail in details} == {"invalid_value"}


@pytest.mark.parametrize("stream", [False, True])
async def test_background_without_store_is_refused(http: httpx.AsyncClient, stream: bool) -> None:
    answer = await http.post("/v1/responses", json=body(background=True, store=False, stream=stream))
    assert_refused(answer, 400, code="unsupported_parameter", param="background")


PATHS = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items"), ("GET", "?stream=true")]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_an_unknown_id_is_not_found_and_a_malformed_one_is_said_to_be(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    unknown = ids.new_response_id(ids.new_partition())
    assert_refused(await http.request(method, f"/v1/responses/{unknown}{path}"), 404, type="invalid_request_error")
    answer = await http.request(method, f"/v1/responses/resp_nonsense{path}")
    assert_refused(answer, 400, code="invalid_parameters", param="responseId{resp_nonsense}")


async def test_an_unknown_predecessor_is_not_found_and_a_malformed_one_is_said_to_be(http: httpx.AsyncClient) -> None:
    unknown = ids.new_response_id(ids.new_partition())
    answer = await http.post("/v1/responses", json=body(previous_response_id=unknown))
    assert_refused(answer, 404, code="previous_response_not_found", param="previous_response_id")
    answer = await http.post("/v1/responses", json=body(previous_response_id="nonsense"))
    assert_refused(answer, 400, code="invalid_parameters", param="previous_response_id")


async def test_a_cursor_that_is_none_is_refused_and_a_stream_that_cannot_be_replayed_too(
    http: httpx.AsyncClient,
) -> None:
    done = (await http.post("/v1/responses", json=body())).json()
    answer = await http.get(f"/v1/responses/{done['id']}", params={"stream": "true"})
    assert_refused(answer, 400, param="stream")
    for cursor in ("-2", "x", "1.5", ""):
        answer = await http.get(f"/v1/responses/{done['id']}", params={"stream": "true", "starting_after": cursor})
        assert_refused(answer, 400)


@pytest.mark.parametrize("background", [False, True])
async def test_an_input_of_five_megabytes_goes_through_whole(http: httpx.AsyncClient, background: bool) -> None:
    text = "é" * (5 << 19)
    events = events_of(
        (await http.post("/v1/responses", json={"input": text, "background": background, "stream": True})).content
    )
    response_id = events[-1]["response"]["id"]
    assert events[-1]["response"]["status"] == "completed"
    items = (await http.get(f"/v1/responses/{response_id}/input_items")).json()
    assert items["data"][0]["content"][0]["text"] == text


async def test_a_body_over_the_limit_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/responses", json={"input": "x" * (9 << 20)})
    assert_refused(answer, 413)


HANDLER_FAULTS: list[tuple[dict[str, Any], int, str]] = [
    ({"raise_first": True, "end": "raise"}, 500, "server_error"),
    ({"raise_first": True, "end": "refuse"}, 400, "invalid_request"),
    ({"invalid": True}, 500, "server_error"),
]


@pytest.mark.parametrize(("script", "status", "code"), HANDLER_FAULTS)
async def test_a_faulty_handler_says_nothing_internal(
    server: Deployment, http: httpx.AsyncClient, script: dict[str, Any], status: int, code: str
) -> None:
    answer = await http.post("/v1/responses", json=body(script))
    error = assert_refused(answer, status, code=code)
    assert "canary" not in json.dumps(error)
    streamed = await http.post("/v1/responses", json=body(script, stream=True))
    assert b"canary" not in streamed.content
    last = events_of(streamed.content)[-1]
    assert last["type"] == ("response.failed" if "invalid" in script else "error")
    assert (last.get("code") or last["response"]["error"]["code"]) == code
    polled = (await http.post("/v1/responses", json=body(script, background=True, stream=True))).content
    assert b"canary" not in polled


async def test_an_unreachable_storage_is_told_and_leaves_nothing_behind(azurite: AzuriteServer) -> None:
    async with StorageProxy.before(azurite) as network:
        with deployment(azurite, RESPONSES_EAGER_START="true") as made:
            direct = made.environment["AzureWebJobsStorage"]
            host = await made.start(AzureWebJobsStorage=network.through(direct))
            async with httpx.AsyncClient(base_url=host.base_url, timeout=60) as http:
                assert (await http.post("/v1/responses", json=body())).status_code == 200
                async with made.storage() as storage:
                    before = await _stored(made)
                    network.cut()
                    for flags in ({}, {"background": True}, {"background": True, "stream": True}):
                        answer = await http.post("/v1/responses", json=body(**flags))
                        assert_refused(answer, 503)
                        assert int(answer.headers["retry-after"]) > 0
                        assert answer.headers["x-platform-error-source"] == "platform"
                    answer = await http.post("/v1/responses", json=body(stream=True))
                    assert [event["type"] for event in events_of(answer.content)] == ["error"]
                    assert_refused(await http.get(f"/v1/responses/{_some_id()}"), 503)
                    assert (await http.get("/readyz")).status_code == 503
                    assert (await http.get("/healthz")).status_code == 200
                    assert (await http.post("/v1/responses", json=body(store=False))).status_code == 200
                    network.restore()
                    assert (await http.post("/v1/responses", json=body(store=False))).status_code == 200
                    assert await _stored(made) == before
                    done = await http.post("/v1/responses", json=body(background=True, stream=True))
                    assert events_of(done.content)[-1]["type"] == "response.completed"
                    del storage


def _some_id() -> str:
    return ids.new_response_id(ids.new_partition())


async def _stored(made: Deployment) -> set[str]:
    """The names of all rows and blobs that belong to responses."""
    async with made.storage() as storage:
        rows = await storage.driver.query_entities("responses")
        blobs = [name for each in ("events", "payloads") for name in await storage.driver.list_blobs(each, "")]
        return {row.row_key for row in rows} | set(blobs)
