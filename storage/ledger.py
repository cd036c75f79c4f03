"""The ledger of a worker: what it has open, readable by whoever finds it dead.

Format: table `workers`, partition = worker id: a row `worker` (state, revision, epoch), a row `pulse`, and one row per
entry. The epoch is that of the watch message that counts, 0 where there is none; it never becomes less.
The service's timestamp of the row `worker` is the heartbeat; that of `pulse` is a second one, for a worker whose event
loop cannot make transactions: it is no part of the fence, and is there exactly as long as `worker` is.
Concurrency: the etag of the row `worker` is the fence. Every change of the ledger is one transaction that also changes
that row under its etag, so that after `mark_dead` not one change of the worker gets through, and a row that is missing
refuses as well. A worker writes its ledger one transaction at a time. As with rows, each transaction bears a random
mark, and a refusal is checked against it: `PreconditionFailed`, `NotFound` and `AlreadyExists` are final.
"""

import json
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from storage.driver import (
    MAX_OPERATIONS,
    WORKERS,
    Delete,
    Entity,
    Insert,
    StorageDriver,
    TableOperation,
    Update,
    Upsert,
    Value,
)
from storage.errors import AlreadyExists, MalformedRecord, NotFound, PreconditionFailed
from storage.seam import Operation, Seam

WORKER_ROW = "worker"
PULSE_ROW = "pulse"
_OWN_ROWS = (WORKER_ROW, PULSE_ROW)
#: Entries that one transaction can open or close beside the ledger's own rows.
MAX_CHANGES = MAX_OPERATIONS - len(_OWN_ROWS)
#: Bytes of entries that one transaction opens at most, as sent. The service takes 4 MiB in all; with what it closes, a
#: transaction stays below the 1 MiB from which on writing a body holds up the event loop.
MAX_OPENED_BYTES = 896 * 1024
#: What an operation is sent with beside the values: its address, headers, names and types of properties.
OPERATION_BYTES = 1024
#: Data of an entry is kept apart from the columns of the ledger itself.
DATA_PREFIX = "d_"
#: Adopters may wipe the same ledger at once; each of them starts again this often.
WIPE_ROUNDS = 20

type WorkerState = Literal["open", "dead"]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Something open: its row key (`run-{id}`, `adopt-{worker}`, …), what kind it is, flat data."""

    key: str
    kind: str
    data: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as its ledger says; `heartbeat` is None on a record that a write has returned, not a read."""

    worker_id: str
    state: WorkerState
    revision: int
    etag: str
    heartbeat: datetime | None = None
    epoch: int = 0


class WorkerLedgers:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def begin(self, worker_id: str, opened: Sequence[LedgerEntry]) -> WorkerRecord:
        """Make the ledger of a new worker, with its first entries (at most `MAX_CHANGES`).

        Raises `AlreadyExists`: a worker id is used once.
        """
        _check_size(len(opened))
        mark = uuid.uuid4().hex
        operations: list[TableOperation] = [
            Insert(worker_id, WORKER_ROW, {"v": 1, "state": "open", "revision": 1, "epoch": 0, "mark": mark}),
            Insert(worker_id, PULSE_ROW, {"v": 1}),
        ]
        operations += [Insert(worker_id, entry.key, _properties(entry)) for entry in opened]
        try:
            etags = await self._seam.run(Operation.LEDGER_BEGIN, self._driver.transact(WORKERS, operations))
        except AlreadyExists:
            etag = await self._confirmed(worker_id, mark)
            if not etag:
                raise
            return WorkerRecord(worker_id, "open", 1, etag)
        return WorkerRecord(worker_id, "open", 1, etags[0])

    async def commit(
        self,
        record: WorkerRecord,
        opened: Sequence[LedgerEntry],
        closed_keys: Sequence[str],
        *,
        epoch: int | None = None,
    ) -> WorkerRecord:
        """Open entries (over any of the same key), close others and beat the heart, in one transaction.

        With `epoch`, the watch messages of lower ones are superseded by it; the one that counts must have been sent.

        At most `MAX_CHANGES` together, no key twice, and only entries that are there can be closed. Both
        `PreconditionFailed` and `NotFound` say that this worker was declared dead.
        """
        _check_size(len(opened) + len(closed_keys))
        mark = uuid.uuid4().hex
        epoch = record.epoch if epoch is None else epoch
        after = replace(record, revision=record.revision + 1, epoch=epoch, heartbeat=None)
        changes: dict[str, Value | None] = {"revision": after.revision, "epoch": epoch, "mark": mark}
        operations: list[TableOperation] = [Update(record.worker_id, WORKER_ROW, changes, record.etag, merge=True)]
        operations += [Upsert(record.worker_id, entry.key, _properties(entry)) for entry in opened]
        operations += [Delete(record.worker_id, key) for key in closed_keys]
        try:
            etags = await self._seam.run(Operation.LEDGER_COMMIT, self._driver.transact(WORKERS, operations))
        except (PreconditionFailed, NotFound):
            etag = await self._confirmed(record.worker_id, mark)
            if not etag:
                raise
            return replace(after, etag=etag)
        return replace(after, etag=etags[0])

    async def end(self, record: WorkerRecord, closed_keys: Sequence[str]) -> None:
        """Close the ledger: the row `worker` and these last entries (as far as they fit) go in one transaction.

        Raises `PreconditionFailed` or `NotFound` when this worker was declared dead; `NotFound` also when the reply
        to a first try was lost.
        """
        keys = list(closed_keys)
        while len(keys) > MAX_CHANGES:
            record = await self.commit(record, [], keys[:MAX_CHANGES])
            del keys[:MAX_CHANGES]
        operations = [
            Delete(record.worker_id, WORKER_ROW, record.etag),
            Delete(record.worker_id, PULSE_ROW),
            *(Delete(record.worker_id, key) for key in keys),
        ]
        await self._seam.run(Operation.LEDGER_END, self._driver.transact(WORKERS, operations))

    async def read(self, worker_id: str) -> WorkerRecord:
        """Raises `NotFound`."""
        call = self._driver.get_entity(WORKERS, worker_id, WORKER_ROW)
        return _record(await self._seam.run(Operation.LEDGER_READ, call))

    async def mark_dead(self, record: WorkerRecord) -> WorkerRecord:
        """Declare a worker dead: from here storage refuses every change by it.

        Raises `PreconditionFailed` when the ledger changed since it was read, `NotFound`.
        """
        mark = uuid.uuid4().hex
        changes: dict[str, Value | None] = {"state": "dead", "revision": record.revision + 1, "mark": mark}
        operation = Update(record.worker_id, WORKER_ROW, changes, record.etag, merge=True)
        try:
            etag = await self._seam.run(Operation.LEDGER_MARK_DEAD, self._driver.update_entity(WORKERS, operation))
        except PreconditionFailed:
            etag = await self._confirmed(record.worker_id, mark)
            if not etag:
                raise
        return replace(record, state="dead", revision=record.revision + 1, etag=etag)

    async def entries(self, worker_id: str) -> list[LedgerEntry]:
        """What the worker has open, ordered by key."""
        found = await self._rows(Operation.LEDGER_ENTRIES, worker_id)
        return [_entry(entity) for entity in found if entity.row_key not in _OWN_ROWS]

    async def is_open(self, worker_id: str, key: str) -> bool:
        """Whether the worker has that entry, dead or alive."""
        try:
            await self._seam.run(Operation.LEDGER_READ, self._driver.get_entity(WORKERS, worker_id, key))
        except NotFound:
            return False
        return True

    async def wipe(self, worker_id: str, *, keep: Collection[str] = ()) -> None:
        """Delete the whole partition, the row `worker` last; what is gone already is fine.

        With entries to `keep`, the ledger's own rows stay as well.
        """
        kept = {*keep, *_OWN_ROWS} if keep else set()
        for _ in range(WIPE_ROUNDS):
            found = await self._rows(Operation.LEDGER_ENTRIES, worker_id)
            keys = sorted(
                (each.row_key for each in found if each.row_key not in kept), key=lambda key: key == WORKER_ROW
            )
            if not keys:
                return
            try:
                for start in range(0, len(keys), MAX_OPERATIONS):
                    operations = [Delete(worker_id, key) for key in keys[start : start + MAX_OPERATIONS]]
                    await self._seam.run(Operation.LEDGER_WIPE, self._driver.transact(WORKERS, operations))
            except NotFound:
                continue
            return
        raise PreconditionFailed("The ledger keeps changing while it is deleted.")

    def pulse_blocking(self, worker_id: str) -> None:
        """Say that the process of a worker lives although its ledger does not change; for a thread.

        Raises `NotFound` when there is no such ledger: a late pulse leaves nothing behind.
        """
        operation = Update(worker_id, PULSE_ROW, {"mark": uuid.uuid4().hex}, "*", merge=True)
        self._seam.run_blocking(Operation.LEDGER_PULSE, lambda: self._driver.update_entity_blocking(WORKERS, operation))

    async def stale(self, before: datetime) -> list[str]:
        """Workers whose ledger last changed before that time of the service's clock: dead, or without a pulse since.

        Their ids only: a row that cannot be read is in nobody's way until it is read by itself.
        """
        call = self._driver.query_entities(WORKERS, row_key=WORKER_ROW, timestamp_before=before)
        found = await self._seam.run(Operation.LEDGER_STALE, call)
        return [
            entity.partition_key
            for entity in found
            if _state(entity) == "dead" or not await self._pulsed(entity.partition_key, before)
        ]

    async def gave_pulse(self, worker_id: str, within: timedelta) -> bool:
        """Whether a worker gave a pulse in so long a time before now, by the service's clock."""
        pulse = await self._pulse(worker_id)
        if pulse is None or "mark" not in pulse.properties:  # it never gave one
            return False
        return pulse.timestamp >= await self.service_time() - within

    async def _pulsed(self, worker_id: str, since: datetime) -> bool:
        pulse = await self._pulse(worker_id)
        return pulse is not None and pulse.timestamp >= since

    async def _pulse(self, worker_id: str) -> Entity | None:
        call = self._driver.get_entity(WORKERS, worker_id, PULSE_ROW)
        try:
            return await self._seam.run(Operation.LEDGER_READ, call)
        except NotFound:
            return None

    async def service_time(self) -> datetime:
        """The storage service's clock, in UTC."""
        return await self._seam.run(Operation.LEDGER_TIME, self._driver.service_time())

    async def _rows(self, name: Operation, worker_id: str) -> list[Entity]:
        return await self._seam.run(name, self._driver.query_entities(WORKERS, partition_key=worker_id))

    async def _confirmed(self, worker_id: str, mark: str) -> str:
        """The etag of the row `worker` if it bears `mark`, else nothing."""
        call = self._driver.get_entity(WORKERS, worker_id, WORKER_ROW)
        try:
            entity = await self._seam.run(Operation.LEDGER_CONFIRM, call)
        except NotFound:
            return ""
        return entity.etag if entity.properties.get("mark") == mark else ""


def fitting(entries: Sequence[LedgerEntry]) -> int:
    """How many of these, from the first on, one transaction opens; at least one."""
    room = MAX_OPENED_BYTES
    for count, entry in enumerate(entries[:MAX_CHANGES]):
        room -= OPERATION_BYTES + sum(map(_bytes_sent, entry.data.values()))
        if room < 0:
            return max(count, 1)
    return min(len(entries), MAX_CHANGES)


def _bytes_sent(value: Value) -> int:
    """A value's bytes in the request: base64 for bytes, escaped for text."""
    if isinstance(value, bytes):
        return 4 * -(-len(value) // 3)
    return len(json.dumps(value)) if isinstance(value, str) else 0


def _check_size(changes: int) -> None:
    if changes > MAX_CHANGES:
        raise ValueError(f"{changes} changes; one transaction takes {MAX_CHANGES}.")


def _properties(entry: LedgerEntry) -> dict[str, Value | None]:
    properties: dict[str, Value | None] = {"kind": entry.kind}
    properties.update((f"{DATA_PREFIX}{name}", value) for name, value in entry.data.items())
    return properties


def _entry(entity: Entity) -> LedgerEntry:
    return LedgerEntry(entity.row_key, str(entity.properties.get("kind", "")), dict(_data(entity)))


def _data(entity: Entity) -> Iterable[tuple[str, Value]]:
    for name, value in entity.properties.items():
        if name.startswith(DATA_PREFIX):
            yield name.removeprefix(DATA_PREFIX), value


def _record(entity: Entity) -> WorkerRecord:
    revision, epoch = entity.properties.get("revision"), entity.properties.get("epoch", 0)
    if not isinstance(revision, int) or not isinstance(epoch, int):
        raise MalformedRecord(f"The ledger of {entity.partition_key} has no usable revision or epoch.")
    return WorkerRecord(entity.partition_key, _state(entity), revision, entity.etag, entity.timestamp, epoch)


def _state(entity: Entity) -> WorkerState:
    return "open" if entity.properties.get("state") == "open" else "dead"
