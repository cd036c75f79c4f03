"""What a refused or failed request answers (B29, B40, W8, R1), and the headers of every answer."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.settings import ApiSettings
from protocol import ids
from resilience import ResponseContext, ResponseEventStream, ResponsesServerOptions
from storage.errors import MalformedRecord, StorageUnavailable
from storage.seam import Fault
from tests.support.api_server import ApiServer, events_in, serving

UNKNOWN = ids.new_response_id(ids.new_partition())


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, which has every key and the id that the header has."""
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["additionalInfo"]["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    return error


async def secretive(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    if context.response_id:
        raise RuntimeError("a secret of the handler")
    yield stream.emit_created()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_value"),
        (b"{", None, "invalid_value"),
        (b"[]", None, "invalid_value"),
        (b'{"input":"x","temperature":9}', "temperature", "invalid_value"),
        (b'{"input":"x","conversation_id":"c"}', "conversation_id", "unknown_parameter"),
        (b'{"input":"x","previous_response_id":"nonsense"}', "previous_response_id", "invalid_parameters"),
    ],
)
async def test_invalid_request_is_refused_before_anything_is_stored(body: bytes, param: str | None, code: str) -> None:
    async with serving() as server:
        answer = await server.client.post("/v1/responses", content=body)
        error = error_of(answer)
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert (error["param"], error["code"]) == (param, code)
        assert server.runs == []
        assert server.storage.seam.total() == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "?stream=maybe"), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items?limit=0")],
)
async def test_malformed_id_in_the_path_is_refused_first(method: str, path: str) -> None:
    async with serving() as server:
        answer = await server.client.request(method, "/v1/responses/resp_nonsense" + path)
        error = error_of(answer)
        assert answer.status_code == 400
        assert (error["code"], error["param"]) == ("invalid_parameters", "responseId{resp_nonsense}")
        assert server.storage.seam.total() == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "?stream=true"), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")],
)
async def test_unknown_id_is_not_found(method: str, path: str) -> None:
    async with serving() as server:
        answer = await server.client.request(method, f"/v1/responses/{UNKNOWN}{path}")
        assert answer.status_code == 404
        assert error_of(answer)["type"] == "invalid_request_error"


async def test_unknown_previous_response_is_not_found() -> None:
    async with serving() as server:
        for stream in (False, True):
            answer = await server.post(input="x", previous_response_id=UNKNOWN, stream=stream)
            error = error_of(answer)
            assert answer.status_code == 404
            assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("?stream=maybe", "stream"),
        ("?stream=true&starting_after=x", "starting_after"),
        ("?stream=true&starting_after=-2", "starting_after"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?order=up", "order"),
    ],
)
async def test_invalid_query_is_refused_by_its_name(path: str, param: str) -> None:
    async with serving() as server:
        answer = await server.client.get(f"/v1/responses/{UNKNOWN}{path}")
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param


async def chunked(body: bytes) -> AsyncIterator[bytes]:
    """A body without a declared length."""
    for start in range(0, len(body), 300):
        yield body[start : start + 300]


@pytest.mark.parametrize("size", [1_001, 3_000, 9_000])
@pytest.mark.parametrize("declared", [True, False])
async def test_body_over_the_limit_is_refused(size: int, declared: bool) -> None:
    async with serving(api=ApiSettings(max_body_bytes=1_000)) as server:
        body = b" " * size
        answer = await server.client.post("/v1/responses", content=body if declared else chunked(body))
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"


@pytest.mark.parametrize("declared", [True, False])
async def test_body_of_just_the_limit_is_read(declared: bool) -> None:
    async with serving(api=ApiSettings(max_body_bytes=1_000)) as server:
        body = b'{"input":"Hello"}'.ljust(1_000)
        answer = await server.client.post("/v1/responses", content=body if declared else chunked(body))
        assert answer.json()["status"] == "completed"


@pytest.mark.parametrize("flags", [{"background": True}, {"background": True, "stream": True}, {}])
async def test_storage_that_does_not_answer_is_503_with_retry_after(flags: dict[str, bool]) -> None:
    async with serving() as server:
        server.storage.seam.inject(Fault(operation="*", kind="before"))
        answer = await server.post(input="x", **flags)
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "service_unavailable"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["x-platform-error-source"] == "platform"


async def test_open_stream_without_a_record_is_one_error_event() -> None:
    async with serving() as server:
        server.storage.seam.inject(Fault(operation="ledger.*", kind="before"))
        events = events_in((await server.post(input="x", stream=True)).content)
        assert [event["type"] for event in events] == ["error"]
        assert events[0]["sequence_number"] == 0
        assert events[0]["code"] == events[0]["error"]["code"] == "service_unavailable"


@pytest.mark.parametrize("path", ["", "?stream=true", "/input_items"])
async def test_read_without_storage_is_503(path: str) -> None:
    async with serving() as server:
        server.storage.seam.inject(Fault(operation="*", kind="before"))
        answer = await server.client.get(f"/v1/responses/{UNKNOWN}{path}")
        assert answer.status_code == 503
        assert "retry-after" in answer.headers


async def test_broken_record_is_a_platform_error_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        broken = Fault(operation="row.read", kind="before", error=lambda: MalformedRecord("a row is broken"))
        server.storage.seam.inject(broken)
        answer = await server.client.get(f"/v1/responses/{UNKNOWN}")
        assert answer.status_code == 500
        assert answer.headers["x-platform-error-source"] == "platform"
        assert error_of(answer)["code"] == "server_error"
        assert "broken" not in answer.text
        assert "a row is broken" in caplog.text
        assert answer.headers["x-request-id"] in caplog.text


async def test_failed_handler_is_500_and_its_reason_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(secretive) as server:
        with caplog.at_level(logging.ERROR):
            answer = await server.post(input="a prompt of the client")
        assert answer.status_code == 500
        assert error_of(answer)["type"] == "server_error"
        assert "x-platform-error-source" not in answer.headers
        assert "secret" not in answer.text
        assert "a secret of the handler" in caplog.text
        assert "a prompt of the client" not in caplog.text


async def test_bug_in_the_server_is_a_plain_500(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        bug = Fault(operation="row.read", kind="before", error=lambda: ZeroDivisionError("inner detail"))
        server.storage.seam.inject(bug)
        answer = await server.client.get(f"/v1/responses/{UNKNOWN}")
        assert answer.status_code == 500
        assert error_of(answer)["message"] == "The server had an error while processing your request."
        assert "x-platform-error-source" not in answer.headers
        assert "inner detail" in caplog.text


async def answers(server: ApiServer, headers: dict[str, str]) -> list[httpx.Response]:
    """One answer of every kind."""
    client = server.client
    return [
        await client.post("/v1/responses", json={"input": "x"}, headers=headers),
        await client.post("/v1/responses", json={"input": "x", "stream": True}, headers=headers),
        await client.post("/v1/responses", content=b"{", headers=headers),
        await client.get(f"/v1/responses/{UNKNOWN}", headers=headers),
        await client.get("/readyz", headers=headers),
        await client.get("/healthz", headers=headers),
    ]


async def test_every_answer_names_its_request_and_the_server() -> None:
    async with serving(options=ResponsesServerOptions(additional_server_version="my-app/2")) as server:
        given = await answers(server, {})
        assert len({answer.headers["x-request-id"] for answer in given}) == len(given)
        assert all(answer.headers["x-platform-server"].startswith("resilient-responses/") for answer in given)
        assert all(answer.headers["x-platform-server"].endswith(" my-app/2") for answer in given[:4])


async def test_request_id_of_the_client_is_kept() -> None:
    async with serving() as server:
        given = await answers(server, {"x-request-id": "trace-1.2:3"})
        assert {answer.headers["x-request-id"] for answer in given} == {"trace-1.2:3"}


@pytest.mark.parametrize("value", ["", "a b", "x" * 65, "<script>", "-", "a,b"])
async def test_request_id_that_is_no_token_is_replaced(value: str) -> None:
    async with serving() as server:
        answer = await server.client.get("/healthz", headers={"x-request-id": value})
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["x-request-id"] != value


async def test_readiness_follows_the_storage_and_liveness_does_not() -> None:
    async with serving() as server:
        assert (await server.client.get("/readyz")).json() == {"status": "ready"}
        fault = server.storage.seam.inject(Fault(operation="*", kind="before", error=StorageUnavailable))
        calls = server.storage.seam.total()
        assert (await server.client.get("/healthz")).json() == {"status": "ok"}
        assert server.storage.seam.total() == calls
        answer = await server.client.get("/readyz")
        assert answer.status_code == 503
        error_of(answer)
        fault.remove()
        assert (await server.client.get("/readyz")).status_code == 200
