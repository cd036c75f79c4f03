"""When a silent stream gets a comment, by the intervals of production (B28)."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from api.reply import Reply
from protocol import sse
from resilience import ResponsesServerOptions
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}
TERMINAL = sse.encode({"type": "response.completed", "sequence_number": 0})


async def silent(seconds: float) -> AsyncGenerator[bytes]:
    """A stream that says nothing for a while, and then its last word."""
    await asyncio.sleep(seconds)
    yield TERMINAL


async def comments(options: ResponsesServerOptions, seconds: float) -> list[float]:
    """When comments were sent, in seconds since the beginning of that silence."""
    now = asyncio.get_running_loop().time
    began, sent = now(), []

    async def receive() -> Message:
        await asyncio.sleep(10 * seconds)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body") == sse.KEEP_ALIVE:
            sent.append(round(now() - began, 3))

    await Reply("req_1", options).stream(silent(seconds))(SCOPE, receive, send)
    return sent


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(None, [15.0, 30.0, 45.0]), (20, [20.0, 40.0]), (0, [])],
    ids=["default", "chosen", "off"],
)
async def test_silence_gets_a_comment_after_each_interval(interval: float | None, expected: list[float]) -> None:
    options = ResponsesServerOptions(sse_keep_alive_interval_seconds=interval)
    assert await comments(options, 59) == expected
    assert await comments(options, 14) == []
