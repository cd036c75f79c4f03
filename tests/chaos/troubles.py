"""What is done to the hosts and their queues, drawn from one seed."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson

from resilience.placement import tenant_of
from storage.connection import Storage
from storage.driver import WATCH_QUEUE, WORK_QUEUE, WORKERS
from storage.ledger import WORKER_ROW
from tests.chaos.hosts import KILL, Slot, Trouble
from tests.chaos.line import Weather
from tests.support.host import until

PRINCIPAL = "local"
"""Who every client of a local host is."""

MEAN_PAUSE = 2.2
"""Seconds between two troubles, in the mean."""

LEAST_UP = 3
"""Hosts that must be up for one of them to be disturbed."""

WEIGHTS = {
    "kill": 52,
    "held_then_killed": 8,
    "held_then_frozen": 4,
    "freeze": 8,
    "leave": 6,
    "storm": 7,
    "partition": 5,
    "watch_lost": 4,
    "suspicion": 4,
    "noise": 6,
}

GARBAGE = (
    "",
    "no json",
    "{}",
    '{"v":1}',
    '{"v":2,"tenant":"t","id":"i"}',
    '{"v":1,"tenant":"../x","id":"resp_1"}',
    "[]",
)
OVERSIZED = 40_000
STOP_SECONDS = 30.0


class Troubles:
    """Disturbs the slots until told to stop; every trouble is noted."""

    def __init__(
        self,
        slots: Sequence[Slot],
        storage: Storage,
        chance: random.Random,
        known: Callable[[], Sequence[str]],
        note: Callable[[Trouble], None],
    ) -> None:
        self.done: Counter[str] = Counter()
        self._slots = slots
        self._storage = storage
        self._chance = chance
        self._known = known
        self._note = note
        self._under_way: set[asyncio.Task[None]] = set()

    async def make(self, until: float) -> None:
        """Make trouble until that loop time; afterwards the sky is clear and nobody is frozen."""
        loop = asyncio.get_running_loop()
        while (left := until - loop.time()) > 0:
            await asyncio.sleep(min(left, self._chance.expovariate(1 / MEAN_PAUSE)))
            kind = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            up = [slot for slot in self._slots if slot.up]
            slots = [slot for slot in up if slot.line.weather == Weather()]
            # Hosts that are only ever started would do no work that could be disturbed.
            if slots and len(up) >= LEAST_UP:
                weights = [1 if slot.role.serves_http else 2 for slot in slots]
                self._start(kind, self._chance.choices(slots, weights)[0])
        await asyncio.gather(*self._under_way)

    def _start(self, kind: str, slot: Slot) -> None:
        self.done[kind] += 1
        task = asyncio.create_task(self._one(kind, slot), name=kind)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _one(self, kind: str, slot: Slot) -> None:
        host = slot.host
        began = time.time()
        pid = 0 if host is None or kind in ("suspicion", "noise") else host.pid
        await getattr(self, f"_{kind}")(slot)
        if kind != KILL:  # the slot notes the end of a process itself, at its moment
            self._note(Trouble(kind, slot.role.name, pid, began, time.time()))

    async def _kill(self, slot: Slot) -> None:
        slot.kill()

    async def _leave(self, slot: Slot) -> None:
        host = slot.host
        slot.leave()
        await until(lambda: host is None or not host.running, STOP_SECONDS)

    async def _freeze(self, slot: Slot) -> None:
        host = slot.host
        if host is None or not host.running:
            return
        host.freeze()
        try:
            await asyncio.sleep(self._chance.choice((0.5, 3.0, 8.0, 14.0)))
        finally:
            if host.running:
                host.thaw()

    async def _storm(self, slot: Slot) -> None:
        await self._weather(slot, Weather(storm=0.2), self._chance.uniform(3, 10))

    async def _partition(self, slot: Slot) -> None:
        slot.line.partition()
        await self._weather(slot, Weather(partitioned=True), self._chance.choice((1.0, 4.0, 9.0)))

    async def _watch_lost(self, slot: Slot) -> None:
        await self._weather(slot, Weather(watch_lost=True), self._chance.uniform(6, 12))

    async def _held_then_killed(self, slot: Slot) -> None:
        """Its last writes arrive when others have taken over."""
        await self._weather(slot, Weather(hold=self._chance.uniform(8, 12)), self._chance.uniform(0.1, 0.6))
        slot.kill()

    async def _held_then_frozen(self, slot: Slot) -> None:
        await self._weather(slot, Weather(hold=self._chance.uniform(8, 12)), self._chance.uniform(0.1, 0.6))
        await self._freeze(slot)

    async def _weather(self, slot: Slot, weather: Weather, seconds: float) -> None:
        slot.line.weather = weather
        try:
            await asyncio.sleep(seconds)
        finally:
            slot.line.weather = Weather()

    async def _suspicion(self, _: Slot) -> None:
        """A living worker is said to be dead, and one that never was."""
        workers = await self._storage.driver.query_entities(WORKERS, row_key=WORKER_ROW)
        for worker in [*(each.partition_key for each in workers[:2]), "w0"]:
            await self._storage.watch.send(worker, delay=0)

    async def _noise(self, _: Slot) -> None:
        """Messages that come twice, late, out of order, damaged or too large."""
        ids = list(self._known())
        for response_id in self._chance.sample(ids, min(6, len(ids))):
            delay = self._chance.choice((0, 0, 5, 15))
            await self._storage.work.send_start(tenant_of(PRINCIPAL), response_id, delay=delay)
        for queue in (WORK_QUEUE, WATCH_QUEUE):
            await self._storage.driver.send_message(queue, self._chance.choice(GARBAGE))
        large = {"v": 1, "tenant": tenant_of(PRINCIPAL), "id": (ids or ["x"])[-1], "more": "x" * OVERSIZED}
        await self._storage.driver.send_message(WORK_QUEUE, orjson.dumps(large).decode())


def merged(troubles: Sequence[Trouble]) -> list[Trouble]:
    """In the order in which they began."""
    return sorted((replace(each) for each in troubles), key=lambda each: each.began)
