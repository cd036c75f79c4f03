"""The judge that every test of the in-process server relies on finds what it is there to find."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from protocol import ids, sse
from protocol.response import completed, new_response
from tests.support.wire_judge import EVENT_STREAM_HEADERS, WireJudge

type Json = dict[str, Any]

RESPONSE_ID = ids.new_response_id(ids.new_partition())
BEGUN = new_response({"background": True, "stream": True}, response_id=RESPONSE_ID, created_at=5)
FINAL = completed(BEGUN, 6)
HEADERS = {"x-request-id": "req_1", "x-platform-server": "s"}
LIST: Json = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
ERROR: Json = {"message": "m", "type": "t", "param": None, "code": None, "additionalInfo": {"request_id": "req_1"}}


def json_answer(body: Json, status: int = 200) -> httpx.Response:
    return httpx.Response(
        status,
        headers={**HEADERS, "content-type": "application/json"},
        stream=httpx.ByteStream(json.dumps(body).encode()),
    )


def stream_answer(*frames: bytes, **headers: str) -> httpx.Response:
    return httpx.Response(
        200, headers={**HEADERS, **EVENT_STREAM_HEADERS, **headers}, stream=httpx.ByteStream(b"".join(frames))
    )


def frame(number: int, name: str, response: Json) -> bytes:
    return sse.encode({"type": name, "response": response, "sequence_number": number})


CREATED, IN_PROGRESS, COMPLETED = (
    frame(0, "response.created", BEGUN),
    frame(1, "response.in_progress", BEGUN),
    frame(2, "response.completed", FINAL),
)


def without(body: Json, name: str) -> Json:
    return {key: value for key, value in body.items() if key != name}


def item(**more: Any) -> Json:
    whole = {"id": "msg_1", "type": "message", "role": "user", "status": "completed", "content": [], **more}
    return {**LIST, "data": [whole], "first_id": "msg_1", "last_id": "msg_1"}


async def judged(*answers: httpx.Response) -> WireJudge:
    """A judge that saw these answers, given one after the other."""
    left = iter(answers)
    judge = WireJudge(httpx.MockTransport(lambda request: next(left)))
    async with httpx.AsyncClient(transport=judge, base_url="http://server") as client:
        for _ in answers:
            await client.get(f"/v1/responses/{RESPONSE_ID}")
    assert judge.judged == len(answers)
    return judge


RIGHT: dict[str, Callable[[], list[httpx.Response]]] = {
    "response": lambda: [json_answer(BEGUN), json_answer(FINAL), json_answer(FINAL)],
    "stream": lambda: [stream_answer(CREATED, sse.KEEP_ALIVE, IN_PROGRESS, COMPLETED), json_answer(FINAL)],
    "resumed": lambda: [stream_answer(IN_PROGRESS, COMPLETED), stream_answer(COMPLETED), stream_answer()],
    "list": lambda: [json_answer(LIST), json_answer(item())],
    "error": lambda: [json_answer({"error": ERROR}, 404)],
    "deleted": lambda: [json_answer({"id": RESPONSE_ID, "object": "response.deleted", "deleted": True})],
}


def response_without(name: str) -> Callable[[], list[httpx.Response]]:
    return lambda: [json_answer(without(FINAL, name))]


def error_without(name: str) -> Callable[[], list[httpx.Response]]:
    return lambda: [json_answer({"error": without(ERROR, name)}, 404)]


WRONG: dict[str, Callable[[], list[httpx.Response]]] = {
    **{f"without-{name}": response_without(name) for name in FINAL},
    "null-tools": lambda: [json_answer({**FINAL, "tools": None})],
    "wrong-type": lambda: [json_answer({**FINAL, "temperature": "1"})],
    "half-a-tool": lambda: [json_answer({**FINAL, "tools": [{"type": "function", "name": "f"}]})],
    "internal-metadata": lambda: [json_answer({**FINAL, "internal_metadata": {}})],
    "completed-without-a-time": lambda: [json_answer({**FINAL, "completed_at": None})],
    "another-final": lambda: [json_answer(FINAL), json_answer({**FINAL, "model": "m"})],
    "another-status-later": lambda: [json_answer(FINAL), json_answer(BEGUN)],
    "get-unlike-the-terminal-event": lambda: [
        stream_answer(CREATED, IN_PROGRESS, COMPLETED),
        json_answer({**FINAL, "metadata": {"a": "b"}}),
    ],
    "stream-without-an-end": lambda: [stream_answer(CREATED, IN_PROGRESS)],
    "stream-with-a-gap": lambda: [stream_answer(CREATED, COMPLETED)],
    "resumed-with-a-gap": lambda: [stream_answer(IN_PROGRESS, frame(3, "response.completed", FINAL))],
    "something-behind-the-end": lambda: [
        stream_answer(IN_PROGRESS, COMPLETED, frame(3, "response.in_progress", BEGUN))
    ],
    "field-left-out-of-an-event": lambda: [
        stream_answer(CREATED, frame(1, "response.in_progress", without(BEGUN, "moderation")), COMPLETED)
    ],
    "torn-frame": lambda: [stream_answer(CREATED, IN_PROGRESS, COMPLETED, b"event: x\n")],
    "id-line": lambda: [stream_answer(b"id: 1\n" + CREATED, IN_PROGRESS, COMPLETED)],
    "other-bytes": lambda: [
        stream_answer(CREATED, IN_PROGRESS, COMPLETED),
        stream_answer(frame(1, "response.in_progress", {**BEGUN, "model": "m"}), COMPLETED),
    ],
    "cached": lambda: [stream_answer(CREATED, IN_PROGRESS, COMPLETED, **{"cache-control": "public"})],
    "list-of-broken-items": lambda: [json_answer(item(role=7))],
    "list-with-internal-metadata": lambda: [json_answer(item(internal_metadata={}))],
    "list-with-another-end": lambda: [json_answer({**item(), "last_id": "msg_2"})],
    **{f"error-without-{name}": error_without(name) for name in ERROR},
    "error-of-another-request": lambda: [
        json_answer({"error": {**ERROR, "additionalInfo": {"request_id": "req_2"}}}, 404)
    ],
}


@pytest.mark.parametrize("name", RIGHT)
async def test_answers_that_are_right_pass(name: str) -> None:
    (await judged(*RIGHT[name]())).check()


@pytest.mark.parametrize("name", WRONG)
async def test_answers_that_are_wrong_are_found(name: str) -> None:
    judge = await judged(*WRONG[name]())
    with pytest.raises(AssertionError):
        judge.check()
    judge.check()  # told once
