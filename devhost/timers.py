"""Timer triggers.

One run at a time, the next one due after the last has ended. On the platform a lease lets one instance run a timer;
here a lock file of this machine does, one per app folder, storage account and function. It goes with its process, so
another host takes over at its next due time. A host that is frozen, not dead, keeps the lock.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from devhost.functions import Function
from devhost.messages import TypedData
from devhost.ncrontab import Schedule
from devhost.runtime import Outcome

_SET_BACK = timedelta(seconds=1)

_log = logging.getLogger("devhost.timer")

type Run = Callable[[Function, TypedData, dict[str, TypedData]], Awaitable[Outcome]]


class Singleton:
    """The right to run a timer on this machine, once won kept until the process ends."""

    def __init__(self, *identity: str) -> None:
        name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        self._path = Path(tempfile.gettempdir()) / f"devhost-timers-{os.getuid()}" / name
        self._file: int | None = None

    def won(self) -> bool:
        """Whether this process has the right, or gets it now."""
        if self._file is not None:
            return True
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True


class TimerListener:
    """Serves one timer function."""

    def __init__(
        self, function: Function, schedule: Schedule, singleton: Singleton, run: Run, *, run_on_startup: bool
    ) -> None:
        self._function = function
        self._schedule = schedule
        self._singleton = singleton
        self._run = run
        self._run_on_startup = run_on_startup
        self._last: datetime | None = None
        self._stop = asyncio.Event()
        # Set once the schedule is followed.
        self.ready = asyncio.Event()

    async def listen(self) -> None:
        """Runs the function when it is due, until `stop`."""
        self.ready.set()
        if self._run_on_startup:
            await self._fire()
        due = datetime.now(UTC)
        while not self._stop.is_set():
            # Once for each time it is due: the wall clock may be set back a little while the loop's own goes on.
            now = datetime.now(UTC)
            due = self._schedule.after(max(now, due) if due - now < _SET_BACK else now)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), (due - datetime.now(UTC)).total_seconds())
                return
            await self._fire()

    def stop(self) -> None:
        """Fires no more; a run goes on."""
        self._stop.set()

    async def quiesce(self) -> None:
        """Fires no more."""
        self.stop()

    async def release(self) -> None:
        """There is nothing to give back: a run that is cut off is not made up for."""

    async def _fire(self) -> None:
        if not self._singleton.won():
            _log.debug("%s is run by another host.", self._function.name)
            return
        now = datetime.now(UTC)
        await self._run(self._function, payload(self._last, self._schedule.after(now)), {})
        self._last = now


def payload(last: datetime | None, due: datetime | None) -> TypedData:
    """What a timer function receives: the last run and the next one."""
    status = {
        "Last": (last or datetime.min.replace(tzinfo=UTC)).isoformat(),
        "Next": (due or datetime.min.replace(tzinfo=UTC)).isoformat(),
        "LastUpdated": (last or datetime.min.replace(tzinfo=UTC)).isoformat(),
    }
    content = {"Schedule": {"AdjustForDST": True}, "ScheduleStatus": status, "IsPastDue": False}
    return TypedData(json=json.dumps(content))
