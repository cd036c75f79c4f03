import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from protocol import aio, builders, event_stream
from protocol.aio import ResponseEventStream
from protocol.builders import BuilderOrderError
from tests.support.stream_oracle import Event, assert_response, assert_whole

RESPONSE_ID = "resp_" + "p" * 18 + "r" * 32
CHUNKS = ["Hel", "lo ", "wörld"]


async def chunked(chunks: Iterable[str] = CHUNKS) -> AsyncIterator[str]:
    for chunk in chunks:
        yield chunk


async def collected(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


@pytest.fixture
def stream() -> ResponseEventStream:
    return begun(ResponseEventStream)


def begun[T: (aio.ResponseEventStream, event_stream.ResponseEventStream)](kind: Callable[..., T]) -> T:
    stream = kind(response_id=RESPONSE_ID, request={"model": "m"}, created_at=1_700_000_000)
    stream.emit_created()
    stream.emit_in_progress()
    return stream


def finished(stream: ResponseEventStream) -> Event:
    stream.emit_completed()
    final = assert_whole(stream.events())
    assert_response(final)
    return final


def without_ids(events: list[Event]) -> Any:
    text = repr(events)
    return re.sub(r"'[a-z]+_p{18}\w+'", "ID", text)


TEXTS: dict[str, Callable[[Any, Any], Any]] = {
    "output_item_message": lambda stream, text: stream.output_item_message(text),
    "output_item_reasoning_item": lambda stream, text: stream.output_item_reasoning_item(text),
    "output_item_function_call": lambda stream, text: stream.output_item_function_call("f", "c", text),
}

WHOLE: dict[str, tuple[Any, ...]] = {
    "output_item_function_call_output": ("c", "out"),
    "output_item_custom_tool_call_output": ("c", "out"),
    "output_item_image_gen_call": ("aQ==",),
    "output_item_structured_outputs": ({"a": 1},),
    "output_item_computer_call": ("c", {"type": "screenshot"}),
    "output_item_computer_call_output": ("c", {"type": "computer_screenshot"}),
    "output_item_local_shell_call": ("c", {"type": "exec", "command": [], "env": {}}),
    "output_item_local_shell_call_output": ("{}",),
    "output_item_function_shell_call": ("c", {"commands": []}, None),
    "output_item_function_shell_call_output": ("c", []),
    "output_item_apply_patch_call": ("c", {"type": "delete_file", "path": "a"}),
    "output_item_apply_patch_call_output": ("c",),
    "output_item_mcp_approval_request": ("s", "n", "{}"),
    "output_item_mcp_approval_response": ("mcpr_1", True),
    "output_item_compaction": ("x",),
}


@pytest.mark.parametrize("kind", TEXTS)
async def test_text_from_an_async_iterable_gives_one_delta_per_chunk(stream: ResponseEventStream, kind: str) -> None:
    events = await collected(TEXTS[kind](stream, chunked()))
    assert [event["delta"] for event in events if event["type"].endswith(".delta")] == CHUNKS
    assert [event for event in events if event["type"].endswith("done")]
    finished(stream)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("text", ["whole", ["in ", "chunks"]], ids=["str", "iterable"])
async def test_async_stream_emits_what_the_sync_stream_emits(kind: str, text: Any) -> None:
    asynchronous, synchronous = begun(aio.ResponseEventStream), begun(event_stream.ResponseEventStream)
    expected = list(TEXTS[kind](synchronous, text))
    assert without_ids(await collected(TEXTS[kind](asynchronous, text))) == without_ids(expected)


@pytest.mark.parametrize("method", WHOLE)
async def test_async_whole_item_emits_what_the_sync_one_emits(method: str) -> None:
    asynchronous, synchronous = begun(aio.ResponseEventStream), begun(event_stream.ResponseEventStream)
    expected = list(getattr(synchronous, method)(*WHOLE[method]))
    events = await collected(getattr(asynchronous, method)(*WHOLE[method]))
    assert without_ids(events) == without_ids(expected)
    finished(asynchronous)


async def test_builders_generators_take_async_iterables(stream: ResponseEventStream) -> None:
    message = stream.add_output_item_message()
    message.emit_added()
    await collected(message.text_content(chunked()))
    await collected(message.refusal_content(chunked()))
    message.emit_done()
    reasoning = stream.add_output_item_reasoning_item()
    reasoning.emit_added()
    await collected(reasoning.summary_part(chunked()))
    reasoning.emit_done()
    call = stream.add_output_item_function_call("f", "c")
    call.emit_added()
    await collected(call.arguments(chunked()))
    call.emit_done()
    custom = stream.add_output_item_custom_tool_call("c", "n")
    custom.emit_added()
    await collected(custom.input(chunked()))
    custom.emit_done()
    code = stream.add_output_item_code_interpreter_call()
    code.emit_added()
    await collected(code.code(chunked()))
    code.emit_done()
    mcp = stream.add_output_item_mcp_call("s", "n")
    mcp.emit_added()
    await collected(mcp.arguments(chunked()))
    mcp.emit_done()
    whole = "".join(CHUNKS)
    output = finished(stream)["output"]
    assert output[0]["content"][0]["text"] == whole
    assert output[0]["content"][1]["refusal"] == whole
    assert output[1]["summary"][0]["text"] == whole
    assert [output[2]["arguments"], output[3]["input"], output[4]["code"], output[5]["arguments"]] == [whole] * 4


async def test_deltas_come_while_the_source_is_still_running(stream: ResponseEventStream) -> None:
    given: list[str] = []

    async def source() -> AsyncIterator[str]:
        for chunk in CHUNKS:
            given.append(chunk)
            yield chunk

    seen = [list(given) async for event in stream.output_item_message(source()) if event["type"].endswith(".delta")]
    assert seen == [CHUNKS[:1], CHUNKS[:2], CHUNKS]


async def test_partial_images_come_from_an_async_iterable(stream: ResponseEventStream) -> None:
    events = await collected(stream.output_item_image_gen_call("aQ==", partials=chunked(["YQ==", "Yg=="])))
    partial = [event for event in events if event["type"].endswith(".partial_image")]
    assert [(event["partial_image_index"], event["partial_image_b64"]) for event in partial] == [
        (0, "YQ=="),
        (1, "Yg=="),
    ]
    finished(stream)


async def test_source_is_closed_when_the_handler_stops_early(stream: ResponseEventStream) -> None:
    closed = False

    async def source() -> AsyncIterator[str]:
        nonlocal closed
        try:
            for chunk in CHUNKS:
                yield chunk
        finally:
            closed = True

    events = stream.output_item_message(source())
    async for event in events:
        if event["type"].endswith(".delta"):
            break
    await events.aclose()
    assert closed


async def test_error_of_the_source_reaches_the_handler(stream: ResponseEventStream) -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        raise ConnectionError("model gone")

    with pytest.raises(ConnectionError, match="model gone"):
        await collected(stream.output_item_message(source()))
    assert stream.response["output"][0]["content"][0]["text"] == "a"


async def test_source_without_aclose_is_iterated_as_well(stream: ResponseEventStream) -> None:
    class Plain:
        def __init__(self) -> None:
            self._chunks = iter(CHUNKS)

        def __aiter__(self) -> "Plain":
            return self

        async def __anext__(self) -> str:
            try:
                return next(self._chunks)
            except StopIteration:
                raise StopAsyncIteration from None

    await collected(stream.output_item_message(Plain()))
    assert finished(stream)["output"][0]["content"][0]["text"] == "".join(CHUNKS)


async def test_order_is_kept_by_the_async_stream_too(stream: ResponseEventStream) -> None:
    stream.emit_completed()
    with pytest.raises(BuilderOrderError):
        await collected(stream.output_item_message("late"))


async def test_source_that_is_no_text_is_refused(stream: ResponseEventStream) -> None:
    with pytest.raises(TypeError, match="not int"):
        await collected(stream.output_item_message(1))  # type: ignore[arg-type]


async def test_sync_stream_refuses_an_async_source() -> None:
    with pytest.raises(TypeError, match="async_generator"):
        list(begun(event_stream.ResponseEventStream).output_item_message(chunked()))  # type: ignore[arg-type]


def test_async_module_names_every_builder_there_is() -> None:
    assert set(builders.__all__) <= set(aio.__all__)


def test_builder_can_be_made_by_hand(stream: ResponseEventStream) -> None:
    item = aio.OutputItemMessageBuilder(stream, 0, "msg_1")
    assert item.emit_added()["item"]["id"] == "msg_1"
