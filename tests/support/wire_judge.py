"""Holds every answer of a server to the wire, whatever the test that asked for it is about.

A client that is made with a `WireJudge` as its transport works as any other; meanwhile each answer is copied, and
judged when it was read to its end or left:

- a response, in a body or in an event, is strictly of the `openai` package's type and has every field (W1, W2, B6,
  B20);
- events too; a stream is in order, numbered without gap, and ends once (B8, B9, B26, B27, W4 to W7);
- a list of items is strictly of its type; an error has its four keys and the request's id (W8);
- what an earlier answer said of a finished response, each later one repeats field by field (W4, R6), and events of a
  background response are the same bytes whoever reads them (B23).

`check` raises what was found. Not for answers that a test broke on purpose.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

import httpx
from openai.types.responses import (
    CompactedResponse,
    InputTokenCountResponse,
    Response,
    ResponseItem,
    ResponseItemList,
)

from protocol import sse
from protocol.events import TERMINAL
from protocol.response import TERMINAL_STATUSES
from tests.support.invariants import check_body, check_frames, check_stream

type Json = dict[str, Any]

EVENT_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "connection": "keep-alive",
    "x-accel-buffering": "no",
}
LISTED = frozenset(
    name
    for model in get_args(get_args(ResponseItem)[0])
    for name in get_args(model.model_fields["type"].annotation)
    if isinstance(name, str)
)
"""Types of items that a typed client knows in a list; references and what a newer client sent are not among them."""


class _Watched(httpx.AsyncByteStream):
    """A body that is copied while it is read; `done` gets the copy, and whether it is the whole of it."""

    def __init__(self, source: httpx.AsyncByteStream, done: Callable[[bytes, bool], None]) -> None:
        self._source = source
        self._done = done
        self._copy = bytearray()
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._source:
            self._copy += chunk
            yield chunk
        self._whole = True

    async def aclose(self) -> None:
        await self._source.aclose()
        self._done(bytes(self._copy), self._whole)


class WireJudge(httpx.AsyncBaseTransport):
    """The transport of one client, over another one that does the work."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._transport = transport or httpx.AsyncHTTPTransport()
        self.judged = 0
        """Answers judged so far."""
        self._faults: list[str] = []
        self._finals: dict[str, Json] = {}
        self._frames: defaultdict[str, dict[int, bytes]] = defaultdict(dict)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._transport.handle_async_request(request)
        if "/responses" in request.url.path and request.method in ("GET", "POST", "DELETE"):
            assert isinstance(answer.stream, httpx.AsyncByteStream)

            def done(body: bytes, whole: bool) -> None:
                self._judge(request, answer, body, whole)

            answer.stream = _Watched(answer.stream, done)
        return answer

    async def aclose(self) -> None:
        await self._transport.aclose()

    def check(self) -> None:
        """Raise if any answer since the last check was not what it has to be."""
        faults, self._faults = self._faults, []
        assert not faults, "\n".join(faults)

    def _judge(self, request: httpx.Request, answer: httpx.Response, body: bytes, whole: bool) -> None:
        self.judged += 1
        try:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                self._judge_stream(request, answer, body, whole)
            elif whole:
                self._judge_json(answer, body)
        except Exception as fault:  # a test may expect errors of the call it makes
            self._faults.append(f"{request.method} {request.url.raw_path.decode()}: {type(fault).__name__}: {fault}")

    # -- JSON -------------------------------------------------------------------------------------------------------

    def _judge_json(self, answer: httpx.Response, body: bytes) -> None:
        if "x-platform-server" not in answer.headers:
            return  # the router's own answer to an unknown path or method
        assert answer.headers["content-type"] == "application/json"
        content = json.loads(body)
        if answer.status_code != 200:
            check_error(content, answer.headers["x-request-id"])
        elif content["object"] == "response":
            self._judge_response(content)
        elif content["object"] == "list":
            check_list(content)
        elif content["object"] == "response.input_tokens":
            InputTokenCountResponse.model_validate(content, strict=True)
        elif content["object"] == "response.compaction":
            # The package's own type knows no messages of users here, though its text says that they are there.
            others = [item for item in content["output"] if item.get("role", "assistant") == "assistant"]
            CompactedResponse.model_validate({**content, "output": others}, strict=True)
        else:
            assert set(content) == {"id", "object", "deleted"}
            assert (content["object"], content["deleted"]) == ("response.deleted", True)

    def _judge_response(self, response: Json) -> None:
        check_body(response)
        check_fields(response)
        known = self._finals.get(response["id"])
        if known is not None:
            assert response == known, "W4: another answer says something else of the finished response"
        elif response["status"] in TERMINAL_STATUSES:
            self._finals[response["id"]] = response

    # -- events -----------------------------------------------------------------------------------------------------

    def _judge_stream(self, request: httpx.Request, answer: httpx.Response, body: bytes, whole: bool) -> None:
        assert answer.status_code == 200
        headers = {name: answer.headers.get(name) for name in EVENT_STREAM_HEADERS}
        assert headers == EVENT_STREAM_HEADERS
        found, torn = sse.split(body)
        frames = [frame for frame in found if frame != sse.KEEP_ALIVE]
        events = self._judge_frames(frames, whole)
        if whole:
            assert torn == b"", f"B27: a torn frame: {torn[:100]!r}"
        for event in events:
            if "response" in event:
                check_fields(event["response"])
        if events and events[-1]["type"] in TERMINAL:
            self._judge_response(events[-1]["response"])
        self._compare(request, frames, events)

    def _judge_frames(self, frames: list[bytes], whole: bool) -> list[Json]:
        if whole and frames and sse.sequence_of(frames[0]) == 0:
            return check_stream(frames)
        events = check_frames(frames)
        numbers = [event["sequence_number"] for event in events]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)) if numbers else []), f"W4: {numbers}"
        ends = [name in TERMINAL or name == "error" for name in (event["type"] for event in events)]
        assert not any(ends[:-1]), "B26: something follows the terminal event"
        return events

    def _compare(self, request: httpx.Request, frames: list[bytes], events: list[Json]) -> None:
        shown = next((event["response"] for event in events if "response" in event), None)
        if shown is None or not shown["background"]:
            return
        known = self._frames[shown["id"]]
        for frame in frames:
            assert known.setdefault(sse.sequence_of(frame), frame) == frame, "B23: two readers saw different bytes"


def check_fields(response: Json) -> None:
    """Assert that no field that the client's own type has is left out (W1)."""
    missing = set(Response.model_fields) - set(response)
    assert not missing, f"W1: left out: {sorted(missing)}"
    for tool in response["tools"]:
        if tool.get("type") == "function":
            assert {"name", "description", "parameters", "strict"} <= set(tool), "W1: a function tool is not whole"


def check_list(page: Json) -> None:
    """Assert that a typed client can read a list of items, and that its frame fits its content."""
    assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}
    data = page["data"]
    assert (page["first_id"], page["last_id"]) == ((data[0]["id"], data[-1]["id"]) if data else (None, None))
    assert "internal_metadata" not in json.dumps(data), "R12: internal metadata in a list"
    listed = [item for item in data if item["type"] in LISTED]
    # An empty list has no first and no last item, which the package's type cannot say.
    ends = {} if data else {"first_id": "", "last_id": ""}
    ResponseItemList.model_validate({**page, **ends, "data": listed}, strict=True)


def check_error(content: Json, request_id: str) -> None:
    """Assert the form of an error's body (W8)."""
    assert set(content) == {"error"}
    error = content["error"]
    assert {"message", "type", "param", "code"} <= set(error), "W8"
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["additionalInfo"]["request_id"] == request_id
    assert "internal_metadata" not in json.dumps(content), "R12: internal metadata in an error"
