"""The loop of the other tests."""

import asyncio
import time

import pytest

from resilience.retry import patiently
from storage.errors import StorageUnavailable
from tests.support.virtual_time import EPOCH, LoopClock, NothingWillHappen, VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop


async def test_a_day_passes_at_once() -> None:
    began = asyncio.get_running_loop().time()
    real = time.monotonic()
    order: list[int] = []

    async def wait(seconds: int) -> None:
        await asyncio.sleep(seconds)
        order.append(seconds)

    await asyncio.gather(wait(86_400), wait(3), wait(7))
    assert order == [3, 7, 86_400]
    assert asyncio.get_running_loop().time() - began == pytest.approx(86_400)
    assert LoopClock().now() == pytest.approx(EPOCH + asyncio.get_running_loop().time())
    assert time.monotonic() - real < 5


async def test_patience_ends_in_virtual_time() -> None:
    began, real, tries = asyncio.get_running_loop().time(), time.monotonic(), 0

    async def never_answered() -> None:
        nonlocal tries
        async for attempt in patiently(30):
            with attempt:
                tries += 1
                raise StorageUnavailable

    with pytest.raises(StorageUnavailable):
        await never_answered()
    assert tries > 10
    assert 28 < asyncio.get_running_loop().time() - began < 33
    assert time.monotonic() - real < 5


def test_a_wait_that_nothing_can_end_fails() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, pytest.raises(NothingWillHappen):
        runner.run(wait())
