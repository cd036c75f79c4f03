"""A response that this process owns, and the messages that stay at it until it is over."""

import asyncio
from dataclasses import dataclass

from resilience.background_run import BackgroundRun
from resilience.worker import Worker
from storage.rows import ResponseRow


class OwnedRun:
    """A response that this process owns, over as many claims as it takes."""

    def __init__(self, first: BackgroundRun) -> None:
        self.current = first
        self.lost = False
        """True once another worker was found to own it."""
        self._must_leave = False
        self._over = asyncio.Event()

    @property
    def worker_id(self) -> str:
        return self.current.worker_id

    def cancelled(self, row: ResponseRow) -> None:
        self.current.cancelled(row)

    def claimed(self, row: ResponseRow | None) -> None:
        self.current.claimed(row)

    def steered(self, pending: int) -> None:
        self.current.steered(pending)

    @property
    def leaving(self) -> bool:
        """True once it is given up for another claim."""
        return self.current.leaving

    def hand_over(self) -> None:
        self._must_leave = True
        self.current.hand_over()

    def go_on_with(self, run: BackgroundRun) -> None:
        """The next claim's run; what was told to leave still has to."""
        self.current = run
        if self._must_leave:
            run.hand_over()

    def displace(self) -> None:
        """Stop without another write."""
        self.current.displace()

    def over(self) -> None:
        """This process has nothing more to do with it."""
        self._over.set()

    @property
    def is_over(self) -> bool:
        """True once this process has nothing more to do with it."""
        return self._over.is_set()

    async def ended(self) -> None:
        await self._over.wait()


@dataclass(frozen=True, slots=True)
class Stay:
    """A message's stay at a run, which lasts as long as the run does.

    `attached`: the run was there before the message came. Then the message may be the one that others sent when they
    declared this worker dead, of which it has not heard yet. When it does, the run has to be claimed anew: no ledger
    has it any more, and there is no other message.
    """

    run: OwnedRun
    attached: bool

    async def until_over(self, worker: Worker) -> None:
        """Return when the run is over here, or has to be claimed anew."""
        ends = [self.run.ended()]
        if self.attached:
            ends.append(worker.until_over(self.run.worker_id))
        waiting = [asyncio.ensure_future(end) for end in ends]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
