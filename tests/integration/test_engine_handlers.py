"""Handlers that do it wrong, or in their own way, in every mode (B8, B30, B32, R9, R11, R12)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from protocol import jsonio, sse
from protocol.aio import ResponseEventStream
from protocol.errors import ApiError, HandlerRefused
from resilience.context import ResponseContext
from resilience.text_response import TextResponse
from storage.driver import Update
from tests.support.engines import PRINCIPAL, Fleet, Host, background, deltas, fleet, key_of, until
from tests.support.handlers import Teller, text_of
from tests.support.invariants import View, check_response, check_stream
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MODES = ["c1", "c2", "c3", "c4", "c5", "c6"]
MODE = pytest.mark.parametrize("mode", MODES)

type Json = dict[str, Any]
type Body = Callable[[ResponseEventStream, ResponseContext, asyncio.Event], AsyncIterator[Any]]

CANARY = "canary-7f3a"


def handler_of(body: Body, *, internal: bool = False) -> Any:
    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        if internal:
            stream.internal_metadata["note"] = CANARY
        async for event in body(stream, context, signal):
            yield event

    return handler


async def outcome(hosts: Fleet, host: Host, mode: str, body: Json | None = None) -> tuple[Json | ApiError, list[bytes]]:
    """What the client has in the end: the response or an error, and the frames of its stream."""
    flags: Json = {**(body or {"input": "hi"})}
    if mode in ("c3", "c4"):
        flags["background"] = True
    if mode in ("c5", "c6"):
        flags["store"] = False
    if mode in ("c1", "c3", "c5"):
        try:
            response = await host.create(flags)
        except ApiError as error:
            return error, []
        frames: list[bytes] = []
    else:
        reader = await host.stream(flags)
        frames = await reader.whole()
        check_stream(frames)
        if reader.types == ["error"]:
            told = reader.events[0]["error"]
            refused = ApiError(told["message"], code=told["code"])
            refused.type = told["type"]
            for response_id in await hosts.ids():
                await hosts.finished(response_id)
            return refused, frames
        response = reader.events[-1]["response"]
    if mode in ("c5", "c6"):
        assert host.calls == []
        return response, frames
    await hosts.finished(response["id"])
    await check_response(
        hosts.storage,
        PRINCIPAL,
        response["id"],
        seen=[View(frames, ended=True)] if frames else [],
        entries=hosts.entered(response["id"]),
    )
    return await host.get(response["id"]), frames


async def run(body: Body, mode: str, **options: Any) -> tuple[Json | ApiError, list[bytes]]:
    async with fleet(handler_of(body, **options)) as hosts:
        result = await outcome(hosts, hosts.host(), mode)
        await hosts.quiet()
        return result


def failed(result: Json | ApiError) -> Json:
    assert not isinstance(result, ApiError), result
    assert result["status"] == "failed"
    assert result["error"]["code"] == "server_error"
    assert CANARY not in str(result), "B30: details are for the log"
    return result


@MODE
async def test_a_value_error_before_created_refuses_the_request(mode: str) -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        if context:
            raise ValueError("The input is too blue.")
        yield

    result, frames = await run(body, mode)
    if mode in ("c1", "c2", "c4", "c5", "c6"):
        assert isinstance(result, ApiError)
        assert (result.message, result.code) == ("The input is too blue.", "invalid_request")
        assert result.type == "invalid_request_error"
        assert len(frames) == (mode in ("c2", "c4", "c6"))
    else:
        assert isinstance(result, dict)
        assert result["status"] == "failed"
    if mode in ("c1", "c5"):
        assert isinstance(result, HandlerRefused)
        assert result.status == 400


@pytest.mark.parametrize("in_background", [False, True])
async def test_an_error_code_of_any_length_is_told_as_it_is(in_background: bool) -> None:
    """A row that has no room for it must neither lose the outcome nor run the handler again."""
    code = "far_too_long_" * 6_000

    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        yield stream.emit_failed(code=code, message="No.")

    async with fleet(handler_of(body)) as hosts:
        host = hosts.host()
        made = await host.create({"input": "hi", "background": in_background})
        await hosts.finished(made["id"])
        told = await host.get(made["id"])
        assert (told["status"], told["error"]["code"], hosts.entered(made["id"])) == ("failed", code, 1)


@MODE
async def test_another_error_before_created_is_a_server_error_without_details(mode: str) -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        if context:
            raise RuntimeError(CANARY)
        yield

    result, _ = await run(body, mode)
    if isinstance(result, ApiError):
        assert (result.code, result.type) == ("server_error", "server_error")
        assert CANARY not in result.message
    else:
        failed(result)


@MODE
@pytest.mark.parametrize(
    "error", [RuntimeError(CANARY), ValueError(CANARY), KeyError(CANARY), asyncio.CancelledError()]
)
async def test_an_error_after_created_fails_the_response(mode: str, error: BaseException) -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        async for event in stream.output_item_message("said before"):
            yield event
        raise error

    result, frames = await run(body, mode)
    assert text_of(failed(result)) == "said before"
    assert CANARY.encode() not in b"".join(frames)


@MODE
async def test_an_end_without_a_terminal_event_fails_the_response(mode: str) -> None:
    """B32."""

    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()

    failed((await run(body, mode))[0])


@MODE
async def test_no_event_at_all_is_an_error(mode: str) -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        return
        yield

    result, _ = await run(body, mode)
    if isinstance(result, ApiError):
        assert (result.code, result.type) == ("server_error", "server_error")
    else:
        failed(result)


INVALID: list[Any] = [
    None,
    7,
    "text",
    [],
    {},
    {"type": "no.such"},
    {"type": "response.output_text.delta"},
    {"type": "response.output_item.added", "output_index": 3, "item": {"type": "message", "content": []}},
    {"type": "response.output_item.done", "output_index": 0, "item": {"type": "message", "content": []}},
    {"type": "response.completed"},
    {"type": "response.completed", "response": {"output": "x"}},
    {"type": "response.created", "response": {}},
    {"type": "error", "message": CANARY},
    {"type": "response.new", "value": object()},
    {"type": "response.new", "value": "\ud800"},
    {"type": "response.x\ny: z"},
    {"type": "response.output_text.delta", "item_id": "x", "output_index": 0, "content_index": 0, "delta": 5},
]  # fmt: skip


@MODE
async def test_an_invalid_event_never_reaches_a_client(mode: str) -> None:
    """B30."""
    for event in INVALID:

        async def body(stream: Any, context: Any, signal: Any, event: Any = event) -> AsyncIterator[Any]:
            yield stream.emit_created()
            yield stream.emit_in_progress()
            yield event
            yield stream.emit_completed()

        result, frames = await run(body, mode)
        if mode in ("c1", "c5"):
            assert isinstance(result, ApiError), event
            assert (result.status, result.code) == (500, "server_error")
        else:
            failed(result)
        assert CANARY.encode() not in b"".join(frames)


@MODE
async def test_an_invalid_terminal_event_leaves_no_item_open_and_skips_no_number(mode: str) -> None:
    """W4, W6."""

    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {"type": "message", "role": "assistant", "content": []},
        }
        yield {"type": "response.completed", "response": {"output": [{"type": "function_call"}]}}

    result, frames = await run(body, mode)
    if mode in ("c1", "c5"):
        assert isinstance(result, ApiError)
        return
    failed(result)
    if frames:
        events = [sse.decode(frame) for frame in frames]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events].count("response.output_item.done") == 1


@MODE
async def test_a_first_event_that_is_not_created_is_an_error(mode: str) -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        stream.emit_created()
        yield stream.emit_in_progress()

    result, frames = await run(body, mode)
    assert isinstance(result, ApiError) or result["status"] == "failed"
    assert b"response.in_progress\n" not in b"".join(frames)


@MODE
async def test_events_after_the_terminal_one_are_dropped(mode: str) -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        yield stream.emit_completed()
        yield stream_event("response.output_text.delta")
        yield {"type": "response.failed", "response": {"status": "failed"}}
        yield stream_event("nonsense")
        yield stream.checkpoint()
        raise RuntimeError("too late")

    result, _ = await run(body, mode)
    assert isinstance(result, dict)
    assert result["status"] == "completed"
    assert result["output"] == []


def stream_event(name: str) -> Json:
    return {"type": name, "item_id": "x", "output_index": 0, "content_index": 0, "delta": "x", "logprobs": []}


@MODE
@pytest.mark.parametrize(
    "kind", ["sync generator", "list", "awaited async iterable", "TextResponse", "TextResponse chunks"]
)
async def test_a_handler_may_give_its_events_in_any_form(mode: str, kind: str) -> None:
    async def chunks() -> AsyncIterator[str]:
        for word in ("a", "b", "c"):
            await asyncio.sleep(0.01)
            yield word

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> Any:
        from protocol.event_stream import ResponseEventStream as Sync

        stream = Sync(response_id=context.response_id, request=request)

        def events() -> Any:
            yield stream.emit_created()
            yield stream.emit_in_progress()
            yield from stream.output_item_message("abc")
            yield stream.emit_completed()

        if kind == "sync generator":
            return events()
        if kind == "list":
            return list(events())
        if kind == "awaited async iterable":
            return aiter(TextResponse(context, request, text="abc"))
        return TextResponse(context, request, text="abc" if kind == "TextResponse" else chunks())

    async with fleet(handler) as hosts:
        result, frames = await outcome(hosts, hosts.host(), mode)
        assert isinstance(result, dict)
        assert result["status"] == "completed"
        assert text_of(result) == "abc"
        if frames and kind == "TextResponse chunks":
            assert deltas(check_stream(frames)) == ["a", "b", "c"]


@MODE
async def test_a_handler_that_returns_no_events_is_an_error(mode: str) -> None:
    for thing in (None, 7, "text", b"bytes", {"type": "response.created"}):

        async def handler(request: Json, context: ResponseContext, signal: asyncio.Event, thing: Any = thing) -> Any:
            return thing

        async with fleet(handler) as hosts:
            result, _ = await outcome(hosts, hosts.host(), mode)
            assert isinstance(result, ApiError) or result["status"] == "failed"


@MODE
async def test_what_is_internal_stays_internal(mode: str) -> None:
    """R12: stored where a recovery needs it, in nothing that a client gets."""

    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        item = stream.add_output_item_message()
        item.internal_metadata["note"] = CANARY
        yield item.emit_added()
        part = item.add_text_content()
        yield part.emit_added()
        yield part.emit_delta("x")
        yield part.emit_text_done()
        yield part.emit_done()
        yield item.emit_done()
        yield stream.checkpoint()
        yield stream.emit_completed()

    async with fleet(handler_of(body, internal=True)) as hosts:
        host = hosts.host()
        result, frames = await outcome(hosts, host, mode)
        assert isinstance(result, dict)
        said = [jsonio.dumps(result), *frames]
        if mode not in ("c5", "c6"):
            said += [jsonio.dumps(await host.get(result["id"])), jsonio.dumps(await host.input_items(result["id"]))]
            reference = {"type": "item_reference", "id": result["output"][0]["id"]}
            body2: Json = {"input": [reference], "previous_response_id": result["id"]}
            second, more = await outcome(hosts, host, mode, body2)
            assert isinstance(second, dict)
            said += [jsonio.dumps(second), *more, jsonio.dumps(await host.input_items(second["id"]))]
            stored = await hosts.storage.driver.get_entity(
                "responses", key_of(result["id"]), f"response-{result['id']}"
            )
            assert CANARY.encode() in stored.properties["snapshot_inline"], "it is stored"  # type: ignore[operator]
        assert CANARY.encode() not in b"".join(said)


async def test_a_response_cancelled_or_failed_keeps_its_internal_parts_to_itself() -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        yield stream.checkpoint()
        await signal.wait()

    async with fleet(handler_of(body, internal=True)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await asyncio.sleep(1)
        polled = await host.get(response_id)
        answer = await host.cancel(response_id)
        await reader.whole()
        for said in (polled, answer, await host.get(response_id), reader.events):
            assert CANARY not in str(said)


async def test_an_identical_checkpoint_is_not_written_again() -> None:
    """R11, for snapshots inside the row and in a blob of their own."""
    for size in (10, 100_000):

        async def body(stream: Any, context: Any, signal: Any, size: int = size) -> AsyncIterator[Any]:
            yield stream.emit_created()
            yield stream.emit_in_progress()
            async for event in stream.output_item_message("x" * size):
                yield event
            for _ in range(5):
                yield stream.checkpoint()
            yield stream.emit_completed()

        async with fleet(handler_of(body)) as hosts:
            host = hosts.host()
            reader = await host.stream(background())
            await reader.whole()
            await hosts.finished(await reader.response_id())
            # the claim, one checkpoint, the outcome
            assert host.calls.count("row.replace") == 3, size


async def test_a_checkpoint_is_durable_before_its_yield_returns() -> None:
    stored: list[Any] = []

    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        async for event in stream.output_item_message("x"):
            yield event
        stream.internal_metadata["phase"] = 1
        yield stream.checkpoint()
        stored.append(await hosts_of[0].row(context.response_id))
        yield stream.emit_completed()

    hosts_of: list[Fleet] = []
    async with fleet(handler_of(body)) as hosts:
        hosts_of.append(hosts)
        for mode in ("c3", "c4"):
            result, _ = await outcome(hosts, hosts.host(), mode)
            assert isinstance(result, dict)
            assert result["status"] == "completed"
            snapshot = jsonio.loads(stored[-1].snapshot.inline)
            assert stored[-1].status == "in_progress"
            assert text_of(snapshot) == "x"
            assert snapshot["internal_metadata"] == {"phase": 1}
            assert snapshot["status"] == "in_progress"


@pytest.mark.parametrize("mode", ["c1", "c2", "c3", "c4", "c5", "c6"])
async def test_a_checkpoint_outside_row_1_is_nothing(mode: str) -> None:
    async with fleet(Teller(3, checkpoints=True)) as hosts:
        host = hosts.host(resilient=False)
        result, _ = await outcome(hosts, host, mode)
        assert isinstance(result, dict)
        assert result["status"] == "completed"
        if mode in ("c3", "c4"):
            assert host.calls.count("row.replace") == 2


async def test_events_of_a_newer_server_pass_as_they_are() -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        yield {"type": "response.brand_new.delta", "value": [1, {"a": None}], "text": "\u2028 line"}
        yield stream.emit_completed()

    async with fleet(handler_of(body)) as hosts:
        host = hosts.host()
        reader = await host.stream(background())
        frames = await reader.whole()
        assert reader.events[2] == {
            "type": "response.brand_new.delta",
            "sequence_number": 2,
            "value": [1, {"a": None}],
            "text": "\u2028 line",
        }
        assert len(b"".join(frames).decode().splitlines()) == 3 * len(frames)


async def test_an_event_changed_after_its_yield_does_not_change_what_was_said() -> None:
    async def body(stream: Any, context: Any, signal: Any) -> AsyncIterator[Any]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        item: Json = {"type": "message", "role": "assistant", "content": [], "id": "msg_x", "status": "in_progress"}
        event = {"type": "response.output_item.added", "output_index": 0, "item": item}
        yield event
        item["role"] = "user"
        yield {**event, "type": "response.output_item.done", "item": {**item, "role": "assistant"}}
        yield stream.emit_completed()

    async with fleet(handler_of(body)) as hosts:
        reader = await hosts.host().stream(background())
        await reader.whole()
        assert reader.events[2]["item"]["role"] == "assistant"


@pytest.mark.timeout(10)
async def test_a_damaged_snapshot_is_an_error_and_not_another_entry_without_end() -> None:
    """A row whose snapshot cannot be read: attempts are bounded, nothing hangs."""
    async with fleet(Teller(6, pause=0.5, checkpoints=True)) as hosts:
        first = hosts.host()
        reader = await first.stream(background())
        response_id = await reader.response_id()
        await asyncio.sleep(2)
        await first.crash()
        driver = hosts.storage.driver
        entity = await driver.get_entity("responses", key_of(response_id), f"response-{response_id}")
        await driver.update_entity(
            "responses",
            Update(entity.partition_key, entity.row_key, {"snapshot_inline": b"{"}, entity.etag, merge=True),
        )
        hosts.host()

        async def ended() -> bool:
            row = await hosts.row(response_id)
            return row is not None and row.status == "failed"

        await until(ended, seconds=120)
