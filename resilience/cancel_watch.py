"""How an owner learns of a cancel by another process: one look per second at the rows of the runs of this process.

It runs only while there are background runs here. A look that fails is no harm: the next write of the run is
refused anyway.
"""

import asyncio
import logging

from resilience.ownership import read_row
from resilience.runtime import Runtime
from storage.errors import StorageError

_log = logging.getLogger("resilience.cancel")


class CancelWatch:
    """Looks at the rows of this process's background runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._keys: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, key: str, response_id: str) -> None:
        """Watch a run."""
        self._keys[response_id] = key
        if self._task is None or self._task.done():
            self._task = self._runtime.spawn(self._look_forever(), "cancel-watch")

    def remove(self, response_id: str) -> None:
        """Stop to watch a run."""
        self._keys.pop(response_id, None)

    async def _look_forever(self) -> None:
        while self._keys:
            await asyncio.sleep(self._runtime.settings.cancel_poll_interval)
            await asyncio.gather(*(self._look(key, response_id) for response_id, key in list(self._keys.items())))

    async def _look(self, key: str, response_id: str) -> None:
        try:
            row = await read_row(self._runtime.storage, key, response_id)
        except StorageError as error:
            _log.info("response %s: row not read: %s", response_id, error)
            return
        running = self._runtime.running.get(response_id)
        if row is not None and row.status == "cancelled" and running is not None:
            running.cancelled(row)
