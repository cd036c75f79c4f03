"""How much one instance takes on, and one tenant of it. What is over a limit is refused before anything is stored.

Runs are counted in memory, for each process by itself: with N instances the whole allows N times as much. A run counts
from the moment its request is let in until this process has no part in it any more; per tenant only the runs that
this process let in. Runs that wait for another process count in the queue's depth, which the queue service
estimates: it is asked at most every `DEPTH_SECONDS`, and what was let in since is added. It counts a message until its
run is over, so background responses that run are in it too.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from api.settings import ApiSettings
from protocol import sse
from protocol.errors import PayloadTooLarge, RateLimitExceeded
from resilience.engine import Engine
from resilience.foreground_run import ForegroundRun

DEPTH_SECONDS = 5.0
RETRY_RUNS = 1
RETRY_QUEUE = 10
"""Seconds after which a client may try again."""


def check_items(request: Mapping[str, Any], limit: int) -> None:
    """Raise `PayloadTooLarge` for an input of more items than `limit` (0: none)."""
    items = request.get("input")
    if limit and isinstance(items, list) and len(items) > limit:
        raise PayloadTooLarge(f"The input has {len(items)} items; at most {limit} are allowed.", param="input")


class Place:
    """A run's place among those of its process: the request's until its response has an id, then the run's."""

    def __init__(self, limits: "RunLimits", principal: str) -> None:
        self._limits = limits
        self._principal = principal
        self._held = True
        limits.held[principal] += 1

    def give_to(self, response_id: str) -> None:
        """From here on the place is taken as long as this process runs that response."""
        if self._held:
            self._limits.runs[response_id] = self._principal
            self.free()

    def free(self) -> None:
        """The request came to nothing, or is over. Twice is fine."""
        if self._held:
            self._held = False
            self._limits.held[self._principal] -= 1
            self._limits.held += Counter()  # without the zeros

    async def kept_by(self, frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """The frames; the first of them names the response."""
        try:
            async for frame in frames:
                if self._held:
                    response = sse.decode(frame).get("response")
                    if response:
                        self.give_to(response["id"])
                yield frame
        finally:
            self.free()
            await frames.aclose()


class RunLimits:
    """Counts the runs of a process. Used on one event loop."""

    def __init__(self, settings: ApiSettings) -> None:
        self.held: Counter[str] = Counter()
        """Requests by principal, as long as their responses have no id."""
        self.runs: dict[str, str] = {}
        """The principal of each response that this process let in and runs."""
        self._settings = settings
        self._depth = _Depth()

    async def admit(self, engine: Engine, principal: str, *, background: bool) -> Place:
        """Take a place for a new run.

        Raises:
            RateLimitExceeded: There is none.
            StorageError: The queue could not be asked for its depth.
        """
        settings = self._settings
        if background and settings.max_queue_depth and await self._depth.over(engine, settings.max_queue_depth):
            raise RateLimitExceeded("Too many background responses are waiting.", retry_after=RETRY_QUEUE)
        # Nothing is awaited from here to the place: two requests cannot both take the last one.
        if settings.max_runs and self._all(engine) >= settings.max_runs:
            raise RateLimitExceeded("This server is at its limit of concurrent responses.", retry_after=RETRY_RUNS)
        if settings.max_runs_per_tenant and self._of(engine, principal) >= settings.max_runs_per_tenant:
            raise RateLimitExceeded("You are at your limit of concurrent responses.", retry_after=RETRY_RUNS)
        if background:
            self._depth.count_one()
        return Place(self, principal)

    def _of(self, engine: Engine, principal: str) -> int:
        self._forget_ended(engine)
        return self.held[principal] + sum(1 for owner in self.runs.values() if owner == principal)

    def _all(self, engine: Engine) -> int:
        """Also what came through the queue. The request of a foreground run that is not among ours holds a place."""
        self._forget_ended(engine)
        others = sum(
            1
            for response_id, run in engine.runtime.running.items()
            if response_id not in self.runs and not isinstance(run, ForegroundRun)
        )
        return self.held.total() + len(self.runs) + others

    def _forget_ended(self, engine: Engine) -> None:
        running = engine.runtime.running
        for response_id in [each for each in self.runs if each not in running]:
            del self.runs[response_id]


class _Depth:
    """The work queue's depth, as it was some seconds ago, and what was let in since."""

    def __init__(self) -> None:
        self._counted = 0
        self._since = 0
        self._asked_at: float | None = None
        self._asking: asyncio.Task[int] | None = None

    def count_one(self) -> None:
        self._since += 1

    async def over(self, engine: Engine, limit: int) -> bool:
        """Whether the queue has as many messages as `limit` allows."""
        now = asyncio.get_running_loop().time()
        if self._asked_at is None or now - self._asked_at >= DEPTH_SECONDS:
            await self._ask(engine, now)
        return self._counted + self._since >= limit

    async def _ask(self, engine: Engine, now: float) -> None:
        """All who want to know meanwhile wait for one answer: storage that is slow is not asked by each of them."""
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(engine.runtime.storage.work.depth(), name="depth")
            self._asking.add_done_callback(lambda task: self._settle(task, now))
        await asyncio.shield(self._asking)

    def _settle(self, task: asyncio.Task[int], now: float) -> None:
        self._asking = None
        if not task.cancelled() and task.exception() is None:
            self._counted, self._since, self._asked_at = task.result(), 0, now
