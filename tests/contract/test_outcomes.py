"""What becomes of whatever a handler does, in every mode (B6, B8, B30, B32, B33, W4; ValueError of a handler).

The input names the plot that the handler plays. In the foreground a failure before `response.created` is an error in
place of a response and leaves nothing; afterwards there is a response, and it is `failed`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from protocol.errors import GENERIC_MESSAGE
from resilience import ResponseContext, ResponseEventStream
from storage.driver import WORKERS
from tests.contract.modes import EVERY_MODE, MODES, Told, ask
from tests.support.api_server import SETTINGS, ApiServer, serving, until
from tests.support.invariants import check_nothing_left

type Json = dict[str, Any]

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a detail of the handler"
USAGE = {"input_tokens": 3, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}
WHOLE_USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 5,
}


def completes(stream: ResponseEventStream) -> Json:
    return stream.emit_completed(usage=USAGE)


def fails(stream: ResponseEventStream) -> Json:
    return stream.emit_failed(code="rate_limit_exceeded", message="Slow down.", usage=USAGE)


def is_cut_short(stream: ResponseEventStream) -> Json:
    return stream.emit_incomplete(reason="max_output_tokens", usage=USAGE)


def raises(stream: ResponseEventStream) -> Json:
    raise RuntimeError(SECRET)


def refuses(stream: ResponseEventStream) -> Json:
    raise ValueError("The input is too sad.")


INVALID: dict[str, Any] = {
    "no-event": "just text",
    "no-type": {"secret": SECRET},
    "unknown-type": {"type": SECRET},
    "lacks-a-field": {"type": "response.output_text.delta", "delta": SECRET},
    "wrong-type": {"type": "response.output_item.added", "output_index": "0", "item": {"type": SECRET}},
    "broken-item": {"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call"}},
    "not-json": {"type": "response.output_item.added", "output_index": 1, "item": {"type": "x", "x": {SECRET}}},
    "does-not-fit": {"type": "response.output_item.done", "output_index": 7, "item": {"type": "x", "x": SECRET}},
    "second-created": {"type": "response.created", "response": {"x": SECRET}},
    "an-error-event": {"type": "error", "message": SECRET, "code": None, "param": None},
}


def says(what: Any) -> Callable[[ResponseEventStream], Any]:
    return lambda stream: what


LAST_WORDS: dict[str, Callable[[ResponseEventStream], Any]] = {
    "completes": completes,
    "fails": fails,
    "is-cut-short": is_cut_short,
    "raises": raises,
    "refuses": refuses,
    **{name: says(event) for name, event in INVALID.items()},
}


async def play(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    """`{said} {last word}`: how much is said before, and how it ends; the last word `stops` is none."""
    said, last = (await context.get_input_text()).split()
    if said != "nothing":
        yield stream.emit_created()
        yield stream.emit_in_progress()
    if said == "much":
        for event in stream.output_item_message(["Hel", "lo"]):
            yield event
    if last in LAST_WORDS:
        yield LAST_WORDS[last](stream)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def theatre() -> AsyncIterator[ApiServer]:
    # A worker without work closes its ledger soon, so that tests can see it closed.
    async with serving(play, settings=replace(SETTINGS, idle_close_after=0.05, idle_end_after=0.05)) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def server(theatre: ApiServer) -> AsyncIterator[ApiServer]:
    theatre.runs.clear()
    yield theatre
    theatre.judge.check()


def is_stream(mode: str) -> bool:
    return bool(MODES[mode].get("stream"))


def in_background(mode: str) -> bool:
    return bool(MODES[mode].get("background"))


def text_of(response: Json) -> list[str]:
    return [part["text"] for item in response["output"] for part in item["content"]]


def assert_generic_failure(response: Json, output: list[str]) -> None:
    """The client learns that it failed, and what was said before; why is for the log."""
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": GENERIC_MESSAGE}
    assert text_of(response) == output


async def assert_left_nothing(server: ApiServer) -> None:
    """Nobody was told an id; still, nothing may be found under it."""
    response_id = server.runs[-1].response_id
    assert (await server.get(response_id)).status_code == 404

    async def is_closed() -> bool:
        return not await server.storage.driver.query_entities(WORKERS, row_key=f"run-{response_id}")

    await until(is_closed)
    await check_nothing_left(server.storage, "local", response_id)


@EVERY_MODE
@pytest.mark.parametrize("said", ["much", "little"])
async def test_completed_response_says_when_and_what_it_cost(server: ApiServer, mode: str, said: str) -> None:
    told = await ask(server, mode, input=f"{said} completes")
    response = told.response
    assert response["status"] == "completed"
    assert response["completed_at"] >= response["created_at"]
    assert response["usage"] == WHOLE_USAGE
    assert text_of(response) == (["Hello"] if said == "much" else [])
    if is_stream(mode):
        assert told.types[:2] == ["response.created", "response.in_progress"]
        assert told.types[-1] == "response.completed"


@EVERY_MODE
async def test_failed_response_says_why_and_keeps_its_output(server: ApiServer, mode: str) -> None:
    told = await ask(server, mode, input="much fails")
    response = told.response
    assert told.answer.status_code == 200
    assert (response["status"], response["completed_at"]) == ("failed", None)
    assert response["error"] == {"code": "rate_limit_exceeded", "message": "Slow down."}
    assert text_of(response) == ["Hello"]
    assert response["usage"] == WHOLE_USAGE
    assert not is_stream(mode) or told.types[-1] == "response.failed"


@EVERY_MODE
async def test_incomplete_response_says_why_and_keeps_its_output(server: ApiServer, mode: str) -> None:
    told = await ask(server, mode, input="much is-cut-short")
    response = told.response
    assert (response["status"], response["completed_at"], response["error"]) == ("incomplete", None, None)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert text_of(response) == ["Hello"]
    assert response["usage"] == WHOLE_USAGE
    assert not is_stream(mode) or told.types[-1] == "response.incomplete"


@EVERY_MODE
@pytest.mark.parametrize("said", ["much", "little"])
@pytest.mark.parametrize("last", ["raises", "refuses", "stops"])
async def test_handler_that_breaks_off_leaves_a_failed_response(
    server: ApiServer, mode: str, said: str, last: str
) -> None:
    """B32, and after `response.created` a ValueError is an error like any other."""
    told = await ask(server, mode, input=f"{said} {last}")
    assert told.answer.status_code == 200
    assert_generic_failure(told.response, ["Hello"] if said == "much" else [])
    assert not is_stream(mode) or told.types[-1] == "response.failed"


@EVERY_MODE
@pytest.mark.parametrize("last", ["raises", "completes", "lacks-a-field"])
async def test_handler_that_fails_before_it_began_is_a_server_error(server: ApiServer, mode: str, last: str) -> None:
    """B8: on a stream it is one `error` event; a background response is on record, and fails."""
    told = await ask(server, mode, input=f"nothing {last}")
    if mode == "C3":
        assert_generic_failure(told.response, [])
        return
    assert told.error["type"] == told.error["code"] == "server_error"
    assert told.error["message"] == GENERIC_MESSAGE
    if mode == "C4":
        assert_generic_failure(await server.get_ended(server.runs[-1].response_id), [])
    else:
        assert told.answer.status_code == (200 if is_stream(mode) else 500)
        await assert_left_nothing(server)


@EVERY_MODE
async def test_handler_that_says_nothing_at_all_leaves_a_failed_response(server: ApiServer, mode: str) -> None:
    """B32: it raised nothing, so there is no error to answer with."""
    told = await ask(server, mode, input="nothing stops")
    assert told.answer.status_code == 200
    assert_generic_failure(told.response, [])
    assert not is_stream(mode) or told.types == ["response.created", "response.failed"]


@EVERY_MODE
async def test_value_error_before_the_beginning_is_told_to_the_client(server: ApiServer, mode: str) -> None:
    told = await ask(server, mode, input="nothing refuses")
    failure = {"code": "invalid_prompt", "message": "The input is too sad."}
    if mode == "C3":
        assert (told.response["status"], told.response["error"]) == ("failed", failure)
        return
    expected = {"type": "invalid_request_error", "code": "invalid_request", "message": "The input is too sad."}
    assert {name: told.error[name] for name in expected} == expected
    if mode == "C4":
        ended = await server.get_ended(server.runs[-1].response_id)
        assert (ended["status"], ended["error"]) == ("failed", failure)
    else:
        assert told.answer.status_code == (200 if is_stream(mode) else 400)
        await assert_left_nothing(server)


@EVERY_MODE
async def test_invalid_output_never_reaches_the_client(
    server: ApiServer, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """B30."""
    for last in INVALID:
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            told = await ask(server, mode, input=f"much {last}")
        if mode in ("C1", "C5"):
            assert told.answer.status_code == 500, last
            assert told.error["type"] == told.error["code"] == "server_error"
        else:
            assert_generic_failure(told.response, ["Hello"])
        if MODES[mode].get("store", True):
            assert_generic_failure((await server.get(server.runs[-1].response_id)).json(), ["Hello"])
        assert SECRET not in told.answer.text
        assert "InvalidEvent" in caplog.text or "InvalidItem" in caplog.text, last


@pytest.mark.parametrize("mode", ["C2", "C4", "C6"])
async def test_stream_has_its_events_in_order_and_one_end(server: ApiServer, mode: str) -> None:
    """B8, B9, B26: the numbers are the judge's; here the whole order by name."""
    told: Told = await ask(server, mode, input="much completes")
    assert told.types == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in told.events] == list(range(10))
    assert told.answer.content.count(b"\n\n") == 10
    assert b"[DONE]" not in told.answer.content
    assert b"id:" not in [line[:3] for line in told.answer.content.splitlines()]
    snapshots = [event["response"]["status"] for event in told.events if "response" in event]
    assert snapshots == ["in_progress", "in_progress", "completed"]
