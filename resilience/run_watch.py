"""How the runs of this process learn what others decided: one look per second at their rows and chains.

A client's cancel stands in the row of a background run, and so does the claim of another worker; or there is no such
row any more. A run whose handler is silent makes no write that would be refused. A newer turn stands in the chain
(S3), which is looked at only where chains are steerable. The watch runs only while there is something to watch. A
look that fails is no harm: the next write of a cancelled run is refused anyway.
"""

import asyncio
import logging
from dataclasses import dataclass

from resilience import chain
from resilience.log_context import start_anew
from resilience.response_row import read_row
from resilience.runtime import Runtime
from storage.errors import StorageError

_log = logging.getLogger("resilience.watch")


@dataclass(frozen=True, slots=True)
class _Watched:
    partition_key: str
    cancellable: bool
    steerable: bool


class RunWatch:
    """Looks at what concerns the runs of this process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watched: dict[str, _Watched] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, partition_key: str, response_id: str, *, background: bool, in_chain: bool) -> None:
        """Watch a run, if others can decide anything about it."""
        watched = _Watched(partition_key, background, in_chain and self._runtime.app.options.steerable_conversations)
        if not (watched.cancellable or watched.steerable):
            return
        self._watched[response_id] = watched
        if self._task is None or self._task.done():
            self._task = self._runtime.spawn(self._look_forever(), "run-watch")

    def remove(self, response_id: str) -> None:
        """Stop to watch a run."""
        self._watched.pop(response_id, None)

    async def _look_forever(self) -> None:
        start_anew()
        while self._watched:
            await asyncio.sleep(self._runtime.settings.cancel_poll_interval)
            looks = list(self._watched.items())
            await asyncio.gather(
                *(self._look_at_row(watched.partition_key, key) for key, watched in looks if watched.cancellable),
                *(self._look_at_chain(watched.partition_key, key) for key, watched in looks if watched.steerable),
            )

    async def _look_at_row(self, partition_key: str, response_id: str) -> None:
        running = self._runtime.running.get(response_id)  # before: the row is not about a run that begins meanwhile
        if running is None:
            return
        try:
            row = await read_row(self._runtime.storage, partition_key, response_id)
        except StorageError as error:
            _log.info("response %s: row not read: %s", response_id, error)
            return
        if row is not None and row.status == "cancelled":
            running.cancelled(row)
        else:
            running.claimed(row)

    async def _look_at_chain(self, partition_key: str, response_id: str) -> None:
        try:
            chain.steer(self._runtime, await self._runtime.storage.chains.read(partition_key))
        except StorageError as error:
            _log.info("response %s: chain not read: %s", response_id, error)
