"""What a run asks its storage by itself: whether it is there, so that nobody answers for a silence of the emulator.

The emulator is one process with one loop, and every ten minutes it collects what is no longer referred to without a
pause: in a long run nobody is answered for half a minute. The hosts rightly take that for an outage (R14).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from storage.errors import StorageUnavailable
from tests.chaos.hosts import Trouble

SILENCE = "silence"
LEAST_SECONDS = 5.0
"""A shorter one nobody has to notice: the least patience of a host with a single call is longer."""

PAUSE = 0.5


@contextlib.asynccontextmanager
async def silences_noted(ask: Callable[[], Awaitable[object]], note: Callable[[Trouble], None]) -> AsyncIterator[None]:
    """While the block runs, a storage that does not answer `ask` for `LEAST_SECONDS` is noted as a trouble of all."""
    lookout = asyncio.create_task(_look(ask, note), name=SILENCE)
    try:
        yield
    finally:
        lookout.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await lookout


async def _look(ask: Callable[[], Awaitable[object]], note: Callable[[Trouble], None]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        began, start = time.time(), clock()
        try:
            await _answer(ask)
        finally:  # also when nobody waits for its end any more
            lasted = clock() - start
            if lasted >= LEAST_SECONDS:
                note(Trouble(SILENCE, "", 0, began, began + lasted))
        await asyncio.sleep(PAUSE)


async def _answer(ask: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await ask()
        except StorageUnavailable:
            await asyncio.sleep(PAUSE)
        else:
            return
