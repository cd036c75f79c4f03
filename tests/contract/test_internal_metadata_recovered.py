"""A handler's internal metadata outlives its process, and is for the next entry alone (R10, R12)."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol import jsonio
from resilience import ResponseContext, ResponseEventStream
from tests.contract.test_internal_metadata import CANARY, ON_CALL, ON_MESSAGE, ON_RESPONSE, noted
from tests.support.engines import PRINCIPAL, background, fleet
from tests.support.invariants import read_stored
from tests.support.virtual_time import VirtualTimeLoop

type Json = dict[str, Any]

EVENT_LOOP = VirtualTimeLoop


async def test_recovered_handler_gets_its_notes_back(caplog: pytest.LogCaptureFixture) -> None:
    """They are what the next entry in another process goes by; with every log turned on they are in none."""
    entries: list[ResponseContext] = []
    held = asyncio.Event()

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Json]:
        entries.append(context)
        if context.persisted_response is None:
            stream = ResponseEventStream(response_id=context.response_id, request=request)
            yield stream.emit_created()
            yield stream.emit_in_progress()
            for event in noted(stream):
                yield event
            yield stream.checkpoint()
            held.set()
            await asyncio.Event().wait()
        stream = ResponseEventStream(response=context.persisted_response)
        yield stream.emit_in_progress()
        yield stream.emit_completed()

    with caplog.at_level(logging.INFO):
        async with fleet(handler) as hosts:
            owner = hosts.host()
            reader = await owner.stream(background())
            response_id = await reader.response_id()
            await held.wait()
            other = hosts.host()
            await owner.crash()
            await hosts.finished(response_id)
            replay = await other.replay(response_id)
            seen = b"".join([*reader.frames, *await replay.whole()])
            shown = jsonio.dumps(await other.get(response_id))
            stored = await read_stored(hosts.storage, PRINCIPAL, response_id)
    persisted = entries[1].persisted_response
    assert persisted is not None
    assert persisted["internal_metadata"] == {"note": {"deep": [ON_RESPONSE]}}
    assert [item["internal_metadata"]["note"] for item in persisted["output"]] == [ON_MESSAGE, ON_CALL]
    assert stored.snapshot is not None
    assert [item["internal_metadata"]["note"] for item in stored.snapshot["output"]] == [ON_MESSAGE, ON_CALL]
    assert CANARY.encode() not in seen + shown
    assert CANARY not in caplog.text
