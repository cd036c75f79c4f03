"""Where every storage call passes: it is counted here, and tests make it fail here.

The names are stable: dashboards, budgets and fault patterns use them. A fault is data: which operations (an fnmatch
pattern), how, how often. With neither faults nor hooks a call costs one lock and one addition.

Concurrency: counts and faults may be used from any thread; hooks run only for asynchronous calls.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Literal

from storage.errors import StorageError, StorageUnavailable


class Operation(StrEnum):
    LOG_CREATE = "log.create"
    LOG_APPEND = "log.append"
    LOG_READ = "log.read"
    LOG_INFO = "log.info"
    LOG_ACQUIRE = "log.acquire"
    LOG_BREAK = "log.break"
    LOG_RELEASE = "log.release"
    LOG_LIST = "log.list"
    LOG_DELETE = "log.delete"
    PAYLOAD_PUT = "payload.put"
    PAYLOAD_GET = "payload.get"
    PAYLOAD_LIST = "payload.list"
    PAYLOAD_DELETE = "payload.delete"
    ROW_INSERT = "row.insert"
    ROW_READ = "row.read"
    ROW_REPLACE = "row.replace"
    ROW_CONFIRM = "row.confirm"
    ROW_LIST = "row.list"
    ROW_DELETE = "row.delete"
    CHAIN_READ = "chain.read"
    CHAIN_REPLACE = "chain.replace"
    CHAIN_CONFIRM = "chain.confirm"
    CHAIN_DELETE = "chain.delete"
    LEDGER_BEGIN = "ledger.begin"
    LEDGER_COMMIT = "ledger.commit"
    LEDGER_CONFIRM = "ledger.confirm"
    LEDGER_END = "ledger.end"
    LEDGER_READ = "ledger.read"
    LEDGER_MARK_DEAD = "ledger.mark_dead"
    LEDGER_ENTRIES = "ledger.entries"
    LEDGER_WIPE = "ledger.wipe"
    LEDGER_STALE = "ledger.stale"
    LEDGER_PULSE = "ledger.pulse"
    LEDGER_TIME = "ledger.time"
    QUEUE_SEND_START = "queue.send_start"
    QUEUE_SEND_WATCH = "queue.send_watch"
    QUEUE_PUSH_WATCH = "queue.push_watch"
    QUEUE_DELETE_WATCH = "queue.delete_watch"
    QUEUE_DEPTH = "queue.depth"
    EXPIRY_NOTE = "expiry.note"
    EXPIRY_DUE = "expiry.due"
    EXPIRY_DONE = "expiry.done"
    KEY_CLAIM = "key.claim"
    KEY_READ = "key.read"
    KEY_REPLACE = "key.replace"
    KEY_RELEASE = "key.release"
    KEY_TIME = "key.time"
    PING = "storage.ping"


type FaultKind = Literal["before", "after", "delay", "hang"]
type Moment = Literal["before", "after"]
type Hook = Callable[[str, Moment], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What shall go wrong.

    `before` fails without reaching storage, `after` fails although storage did it (a lost reply), `delay` waits
    `delay` seconds first, `hang` waits until the fault is removed or the caller is cancelled. The first `after`
    matching calls are spared, then each fails with `probability`, at most `times` times.
    """

    operation: str
    kind: FaultKind
    error: Callable[[], Exception] = StorageUnavailable
    probability: float = 1.0
    times: int | None = None
    delay: float = 0.0
    after: int = 0


class InjectedFault:
    """A fault in force. `hits` counts the calls it changed, `names` which operations they were."""

    def __init__(self, seam: "Seam", fault: Fault) -> None:
        self.fault = fault
        self.hits = 0
        self.names: Counter[str] = Counter()
        self._seen = 0
        self._seam = seam
        self._removed = threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def remove(self) -> None:
        """End the fault; calls that hang in it go on. Removing it twice is fine."""
        self._seam._drop(self)
        self._removed.set()
        waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)

    def _fires(self, name: str, chance: random.Random) -> bool:
        fault = self.fault
        if not fnmatchcase(name, fault.operation):
            return False
        self._seen += 1
        if self._seen <= fault.after or (fault.times is not None and self.hits >= fault.times):
            return False
        if fault.probability < 1.0 and chance.random() >= fault.probability:
            return False
        self.hits += 1
        self.names[name] += 1
        return True

    async def _hang(self) -> None:
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        # Checked after the entry is in the list, or a removal in between would go unnoticed.
        if not self._removed.is_set():
            await event.wait()

    def _hang_blocking(self) -> None:
        self._removed.wait()


class Seam:
    """Counts the calls that pass it and applies the faults that were injected."""

    def __init__(self, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        #: Called around every asynchronous call; what a hook raises is raised in place of the call's result.
        self.hooks: list[Hook] = []
        self._faults: list[InjectedFault] = []
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    def inject(self, fault: Fault) -> InjectedFault:
        injected = InjectedFault(self, fault)
        with self._lock:
            self._faults.append(injected)
        return injected

    def _drop(self, injected: InjectedFault) -> None:
        with self._lock:
            if injected in self._faults:
                self._faults.remove(injected)

    def reset(self) -> None:
        """Forget the counts; faults and hooks stay."""
        with self._lock:
            self.counts.clear()

    def total(self) -> int:
        """All calls since the last reset."""
        with self._lock:
            return self.counts.total()

    def _enter(self, name: str) -> list[InjectedFault]:
        with self._lock:
            self.counts[name] += 1
            return [each for each in self._faults if each._fires(name, self._chance)] if self._faults else []

    async def run[T](self, name: str, call: Coroutine[Any, Any, T]) -> T:
        """Await `call` as the operation `name`; a `StorageError` out of it learns that name."""
        try:
            faults = self._enter(name)
            for hook in self.hooks:
                await hook(name, "before")
            for each in faults:
                if each.fault.kind == "delay":
                    await asyncio.sleep(each.fault.delay)
                elif each.fault.kind == "hang":
                    await each._hang()
                elif each.fault.kind == "before":
                    raise each.fault.error()
            result = await call
            for each in faults:
                if each.fault.kind == "after":
                    raise each.fault.error()
            for hook in self.hooks:
                await hook(name, "after")
        except StorageError as error:
            error.operation = error.operation or name
            raise
        else:
            return result
        finally:
            # A call that was never reached would be reported as never awaited.
            call.close()

    def run_blocking[T](self, name: str, call: Callable[[], T]) -> T:
        """`run` for a thread; hooks are not called."""
        try:
            faults = self._enter(name)
            for each in faults:
                if each.fault.kind == "delay":
                    time.sleep(each.fault.delay)
                elif each.fault.kind == "hang":
                    each._hang_blocking()
                elif each.fault.kind == "before":
                    raise each.fault.error()
            result = call()
            for each in faults:
                if each.fault.kind == "after":
                    raise each.fault.error()
        except StorageError as error:
            error.operation = error.operation or name
            raise
        else:
            return result
