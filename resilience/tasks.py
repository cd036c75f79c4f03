"""Tasks of the event loop that nobody waits for, or only for their end."""

import asyncio
from collections.abc import Coroutine
from typing import Any

_in_background: set[asyncio.Task[Any]] = set()


def in_background(work: Coroutine[Any, Any, Any]) -> None:
    """Run it; the loop alone would not keep it alive."""
    task = asyncio.get_running_loop().create_task(work)
    _in_background.add(task)
    task.add_done_callback(_in_background.discard)


async def settled(task: asyncio.Task[Any]) -> None:
    """Wait for a task's end and look at what became of it, so that it is not reported as never looked at."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
