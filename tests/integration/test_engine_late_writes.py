"""An owner's writes that come behind its own outcome: a checkpoint, a flush (V1, V6, S7)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from protocol import jsonio
from protocol.aio import ResponseEventStream
from resilience.context import ResponseContext
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, background, fleet, key_of, until
from tests.support.invariants import check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop


async def impatient(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
    """Its own timeout falls into a slow checkpoint, whose snapshot is stored beside the row."""
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    async for event in stream.output_item_message("x" * 40_000):
        yield event
    async with asyncio.timeout(2):
        yield stream.checkpoint()
    yield stream.emit_completed()


async def test_a_checkpoint_under_way_does_not_overwrite_the_outcome() -> None:
    async with fleet(impatient) as hosts:
        host = hosts.host()
        host.seam.inject(Fault(operation="payload.put", kind="delay", delay=4.0, times=1))
        reader = await host.stream(background())
        response_id = await reader.response_id()
        assert (await hosts.finished(response_id)).status == "failed"
        await asyncio.sleep(30)
        assert (await host.get(response_id))["status"] == "failed"
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=1)


async def test_the_log_can_be_completed_after_a_late_checkpoint() -> None:
    """The terminal frame is lost, and has to be made from the snapshot."""
    async with fleet(impatient) as hosts:
        host = hosts.host()
        host.seam.inject(Fault(operation="payload.put", kind="delay", delay=4.0, times=1))
        reader = await host.stream(background())
        response_id = await reader.response_id()
        await until(lambda: len(reader.frames) >= 8)
        await asyncio.sleep(1)
        host.seam.inject(Fault(operation="log.append", kind="before"))  # from before the outcome to the end
        await asyncio.sleep(10)
        await host.crash()
        other = hosts.host().serve_timer()
        await asyncio.sleep(120)
        replay = await other.replay(response_id)
        await asyncio.sleep(60)
        assert replay.types[-1] == "response.failed"


async def test_a_flush_under_way_does_not_undo_the_metadata_of_the_outcome() -> None:
    flushes = []

    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Any]:
        metadata = context.conversation_chain_metadata
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        metadata["step"] = 1
        flushes.append(asyncio.create_task(metadata.flush()))
        await asyncio.sleep(0)
        async for event in stream.output_item_message("text"):
            yield event
        metadata["step"] = 2
        yield stream.emit_completed()

    async with fleet(handler) as hosts:
        host = hosts.host()
        host.seam.inject(Fault(operation="log.append", kind="delay", delay=1.0))
        reader = await host.stream(background(conversation="talk"))
        response_id = await reader.response_id()
        await hosts.finished(response_id)
        await asyncio.sleep(30)
        chain = await hosts.storage.chains.read(key_of(response_id))
        assert jsonio.loads(chain.metadata) == {"": {"step": 2}}
