"""A silence of the emulator is found by asking it; in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from storage.errors import StorageRejected, StorageUnavailable
from tests.chaos.hosts import Trouble
from tests.chaos.silences import LEAST_SECONDS, PAUSE, SILENCE, silences_noted
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop
WATCHED = 100.0


def silent(*, begin: float, seconds: float, timeout: float = 20.0) -> Callable[[], Awaitable[None]]:
    """A storage that answers nobody for so long; its callers lose their patience after `timeout`."""
    clock = asyncio.get_running_loop().time
    begins = clock() + begin

    async def ask() -> None:
        left = begins + seconds - clock()
        if clock() >= begins and left > 0:
            await asyncio.sleep(min(left, timeout))
            if left > timeout:
                raise StorageUnavailable

    return ask


async def noted(ask: Callable[[], Awaitable[object]]) -> list[Trouble]:
    found: list[Trouble] = []
    async with silences_noted(ask, found.append):
        await asyncio.sleep(WATCHED)
    return found


@pytest.mark.parametrize("seconds", [LEAST_SECONDS + 2 * PAUSE, 38.0])
async def test_a_silence_is_a_trouble_of_no_process_from_its_begin_to_its_end(seconds: float) -> None:
    (found,) = await noted(silent(begin=10, seconds=seconds))
    assert (found.kind, found.pid) == (SILENCE, 0)
    assert found.ended - found.began == pytest.approx(seconds, abs=2 * PAUSE)


async def test_a_short_wait_is_none() -> None:
    assert not await noted(silent(begin=10, seconds=LEAST_SECONDS - 2 * PAUSE))


async def test_a_silence_that_nobody_heard_the_end_of_is_noted_too() -> None:
    (found,) = await noted(silent(begin=WATCHED - 30, seconds=60))
    assert found.ended - found.began == pytest.approx(30, abs=PAUSE)


async def test_an_error_that_is_no_silence_comes_out() -> None:
    async def ask() -> None:
        raise StorageRejected(400)

    with pytest.raises(StorageRejected):
        await noted(ask)
