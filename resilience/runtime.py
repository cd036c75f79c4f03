"""What every run of a process shares."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from resilience.app import ResponsesApp
from resilience.options import EngineSettings
from resilience.tail import Tails
from resilience.telemetry import Telemetry, shared
from resilience.worker import Worker
from storage.connection import Storage
from storage.rows import ResponseRow

_log = logging.getLogger("resilience")


class Running(Protocol):
    """A run of this process, as the rest of the engine sees it."""

    @property
    def worker_id(self) -> str:
        """The worker id it is owned under, "" if nothing is recorded of it."""

    def cancelled(self, row: ResponseRow) -> None:
        """Its outcome was decided by a client's cancel."""

    def claimed(self, row: ResponseRow | None) -> None:
        """Its row, not cancelled: where it is of a later claim, or gone, the run has to stop here."""

    def steered(self, pending: int) -> None:
        """So many turns of its chain wait behind it (S3)."""

    def hand_over(self) -> None:
        """It has to leave this process: within its grace it ends, or another worker goes on."""

    async def ended(self) -> None:
        """Wait until this process has nothing more to do with it."""


class AwaitedTurns:
    """Foreground turns of this process that wait for their chain: told at once when a turn before them ends here."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Event] = {}

    async def wait(self, response_id: str, timeout: float) -> None:
        """Wait until that turn is told, or the seconds are over; either way the chain's row has to be looked at."""
        event = self._waiting.setdefault(response_id, asyncio.Event())
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(response_id, None)

    def tell(self, response_id: str) -> None:
        """It may be that turn's time."""
        event = self._waiting.get(response_id)
        if event is not None:
            event.set()


def never(key: str, response_id: str) -> None:
    """Start no run here ahead of its start message."""


def unix_time() -> int:
    """Seconds since the epoch, for what clients are shown; nothing is decided by it."""
    return int(time.time())


@dataclass(slots=True)
class Runtime:
    """The parts of a process's engine. Everything runs on one event loop."""

    storage: Storage
    settings: EngineSettings
    app: ResponsesApp
    worker: Worker
    tails: Tails
    now: Callable[[], int] = unix_time
    telemetry: Telemetry = field(default_factory=shared)
    running: dict[str, Running] = field(default_factory=dict)
    """Runs of this process by response id."""
    turns: AwaitedTurns = field(default_factory=AwaitedTurns)
    start_soon: Callable[[str, str], None] = never
    """Runs a response, given its partition key and id, ahead of the start message that was sent for it."""
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def spawn[T](self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run something that outlives the request that asked for it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._settle)
        return task

    async def stop_tasks(self) -> None:
        """End everything spawned; for tests and clean exits, nothing depends on it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _settle(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)
