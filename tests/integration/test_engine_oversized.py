"""Output that is larger than one append can carry fails, once, and its stream comes to an end (B30, V1, V7)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from protocol.event_stream import ResponseEventStream
from resilience import stamper
from resilience.context import ResponseContext
from storage.driver import StorageDriver
from storage.errors import StorageRejected
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, background, fleet
from tests.support.handlers import Teller
from tests.support.invariants import check_response
from tests.support.stream_oracle import assert_whole
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

type Handler = Callable[..., AsyncIterator[Any]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 200 kB in place of 64 MiB, and the limits in proportion."""
    monkeypatch.setattr("storage.driver.MAX_BLOCK", 200_000)
    monkeypatch.setattr(stamper, "MAX_RESPONSE", 75_000)
    monkeypatch.setattr(stamper, "MAX_FRAME", 100_000)
    monkeypatch.setattr(stamper, "MEASURED_EVERY", 3_000)


def speaker(items: int, characters: int, piece: int | None = None, character: str = "x") -> Handler:
    """Says so many items of so many characters, in pieces of that size."""

    async def handler(request: dict[str, Any], context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for _ in range(items):
            size = piece or characters
            for event in stream.output_item_message([character * size] * (characters // size)):
                yield event
        yield stream.emit_completed()

    return handler


async def outcome_in_the_terminal_event(
    request: dict[str, Any], context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[Any]:
    yield {"type": "response.created", "response": {}}
    part = {"type": "output_text", "text": "x" * 90_000}
    message = {"type": "message", "role": "assistant", "content": [part]}
    yield {"type": "response.completed", "response": {"output": [message]}}


TOO_MUCH: dict[str, Handler] = {
    "many items": speaker(6, 20_000),
    "a long text": speaker(1, 90_000, 500),
    "a text that a frame escapes": speaker(1, 35_000, 500, "\x85"),
    "one large event": speaker(1, 150_000),
    "the outcome": outcome_in_the_terminal_event,
}


@pytest.mark.parametrize("mode", ["eager", "background", "polled", "foreground"])
@pytest.mark.parametrize("kind", sorted(TOO_MUCH))
async def test_an_output_that_is_too_large_fails_in_one_entry_and_ends_its_stream(kind: str, mode: str) -> None:
    async with fleet(TOO_MUCH[kind]) as hosts:
        host = hosts.host(eager_start=mode == "eager", append_bytes=100_000)
        if mode == "polled":
            response_id = (await host.create(background(stream=False)))["id"]
            assert (await hosts.finished(response_id)).status == "failed"
        else:
            reader = await host.stream({"input": "hi"} if mode == "foreground" else background())
            await reader.whole()
            assert assert_whole(reader.events)["status"] == "failed"
            response_id = await reader.response_id()
        await hosts.quiet()
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)


async def test_an_output_that_is_as_large_as_allowed_is_told_and_kept() -> None:
    async with fleet(speaker(3, 20_000, 2_000)) as hosts:
        host = hosts.host(append_bytes=100_000)
        reader = await host.stream(background())
        await reader.whole()
        assert assert_whole(reader.events)["status"] == "completed"


class _Particular:
    """A line to a storage that does not take one kind of event."""

    def __init__(self, inner: StorageDriver, refused: str) -> None:
        self._inner = inner
        self._refused = f"event: {refused}\n".encode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append_block(self, container: str, name: str, data: bytes, **conditions: Any) -> Any:
        if self._refused in data:
            raise StorageRejected(413)
        return await self._inner.append_block(container, name, data, **conditions)


def particular(refused: str) -> Callable[[StorageDriver], StorageDriver]:
    return lambda driver: cast("StorageDriver", _Particular(driver, refused))


async def test_a_log_whose_end_storage_refuses_is_not_tried_without_end() -> None:
    line = particular("response.completed")
    async with fleet(Teller(3)) as hosts:
        api, worker = hosts.host(queues=False, line=line), hosts.host(line=line)
        response_id = await (await api.stream(background())).response_id()
        assert (await hosts.finished(response_id)).status == "completed"
        await asyncio.sleep(60)
        before = len(worker.calls)
        await asyncio.sleep(300)
        assert len(worker.calls) == before
        assert hosts.entered(response_id) == 1


@pytest.mark.parametrize("eager", [True, False])
async def test_readers_of_a_log_whose_end_storage_refuses_are_told_that_it_is_over(eager: bool) -> None:
    line = particular("response.completed")
    async with fleet(Teller(3)) as hosts:
        host = hosts.host(line=line, eager_start=eager)
        other = hosts.host(queues=False, line=line)
        reader = await host.stream(background())
        response_id = await reader.response_id()
        readers = [reader, await other.replay(response_id)]
        for each in readers:
            await each.whole(seconds=60)
        late = await other.replay(response_id)
        await late.whole(seconds=60)
        for each in (*readers, late):
            assert each.types[-1] == "response.output_item.done"
        assert (await host.get(response_id))["status"] == "completed"
        before = len(other.calls)
        await asyncio.sleep(300)
        assert len(other.calls) == before
        await hosts.quiet()


@pytest.mark.parametrize("eager", [True, False])
async def test_an_event_that_storage_rejects_fails_the_response_in_one_entry(eager: bool) -> None:
    line = particular("response.output_text.done")
    async with fleet(Teller(3)) as hosts:
        host = hosts.host(line=line, eager_start=eager)
        reader = await host.stream(background())
        await reader.whole()
        response_id = await reader.response_id()
        row = await hosts.finished(response_id)
        assert (row.status, row.error_code, hosts.entered(response_id)) == ("failed", "storage_error", 1)
        assert reader.types[-1] == "response.failed"
        assert [event["sequence_number"] for event in reader.events] == list(range(len(reader.events)))
        assert reader.events[-1]["response"] == await host.get(response_id)
        await hosts.quiet()


async def test_an_outcome_that_storage_rejects_fails_the_response_in_one_entry() -> None:
    async with fleet(speaker(1, 40_000)) as hosts:  # more than a row has room for
        host = hosts.host(append_bytes=100_000)
        rejected = host.seam.inject(
            Fault(operation="payload.put", kind="before", error=lambda: StorageRejected(413), times=1)
        )
        reader = await host.stream(background())
        await reader.whole()
        response_id = await reader.response_id()
        row = await hosts.finished(response_id)
        assert (row.status, row.error_code, rejected.hits) == ("failed", "storage_error", 1)
        assert reader.events[-1]["response"] == await host.get(response_id)
        await hosts.quiet()
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)


async def test_readers_of_a_log_whose_end_was_lost_with_its_snapshot_are_told_that_it_is_over() -> None:
    async with fleet(speaker(1, 40_000)) as hosts:
        host = hosts.host(line=particular("response.completed"), append_bytes=100_000)
        response_id = await (await host.stream(background())).response_id()
        row = await hosts.finished(response_id)
        assert row.snapshot is not None
        assert row.snapshot.blob is not None
        await hosts.storage.payloads.delete(row.snapshot)
        late = await hosts.host(queues=False).replay(response_id)
        await late.whole(seconds=60)
        assert late.types[-1] == "response.output_item.done"
