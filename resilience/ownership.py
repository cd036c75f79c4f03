"""Who may write: the claim of a run, and the `Ownership` that only a won claim gives.

Appends and status writes exist only as methods of `Ownership`. Each append carries the lease id and the append
position, each status write the etag: a worker that was displaced is refused by storage, whatever it believes. A run
that nobody can stream (background without ``stream``) has no log; its etag alone fences it.

The claim, in its order; nobody in this process claims or runs the same response meanwhile:

1. Read the row.
   missing: `Reason.NO_ROW`. A deletion marker: `Reason.DELETED`. Terminal: `Reason.TERMINAL`.
   Owned by another worker whose ledger is open: `Reason.ELSEWHERE`; this makes doubled and late messages harmless.
   No owner, an owner whose ledger is marked or gone, or a run that this process no longer has: on. Only now the run
   is opened in this worker's ledger, before anything is changed, or the death of this worker would hide it.
2. CAS of the row: generation and attempt + 1, this worker, the lease id of this claim.
   Refused: read again, from 1 (to leave here would strand the response: the message is spent, and the winner may
   die). No answer: tried again with the same mark, by which the row tells our own write from another's.
3. If an owner was named: break its lease. From here on its appends are refused.
4. Acquire the lease with the id of step 2. Held by somebody: from 1; while the row names us, we go through it again
   with a break. The log is gone: the response was deleted under us, `Reason.NO_ROW`.
5. Read the row once more. Not ours any longer: release, and from 1 again (who cancelled meanwhile counts on the owner
   for the terminal frame). This catches a challenger that slept between 2 and 4.
6. Read the end of the log.

The first claim of a response skips 5 and 6: the log is empty, its position 0 is known, and the first append is
conditional on it. Should a sleeper hold the lease here although others went by, then either one of them has
written, and position 0 refuses the sleeper, or none has, and its records come before all of theirs.

Leases are infinite, broken by the next claim, and stay on a finished log: nothing can be appended there.
"""

import logging
import uuid
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Protocol

from protocol.response import TERMINAL_STATUSES
from resilience.log_end import EMPTY, LogEnd, read_log_end
from resilience.options import EngineSettings
from resilience.retry import patiently
from storage.connection import Storage
from storage.errors import AlreadyExists, LeaseHeld, NotFound, PreconditionFailed, StorageUnavailable
from storage.log import segment_name
from storage.payloads import StoredPayload
from storage.rows import ResponseRow, Segment

_log = logging.getLogger("resilience.ownership")

CONTINUED = b": continued\n\n"
"""Closes a segment whose successor the row already names. A comment: readers follow it, clients never see it."""


class Reason(Enum):
    """Why a claim was not made."""

    NO_ROW = auto()
    DELETED = auto()
    TERMINAL = auto()
    ELSEWHERE = auto()


@dataclass(frozen=True, slots=True)
class Declined:
    """A claim that was not made; the row as it was found."""

    reason: Reason
    row: ResponseRow | None = None


class OwnershipLost(Exception):
    """Storage refused this worker: the run belongs to another, or its outcome is already decided."""

    def __init__(self, row: ResponseRow | None) -> None:
        super().__init__(self.__doc__)
        self.row = row
        """The row as it stands now; None if the response is gone."""

    @property
    def cancelled(self) -> bool:
        """True if a client's cancel decided the outcome."""
        return self.row is not None and self.row.status == "cancelled"

    def still_names(self, worker_id: str) -> bool:
        """True if the row has no outcome and still names that worker: it may claim again."""
        return self.row is not None and self.row.owner == worker_id and self.row.status not in TERMINAL_STATUSES


class Claimant(Protocol):
    """The worker that claims."""

    async def open_run(self) -> str:
        """Make the run durable in the ledger; the worker id that answers for it."""

    def is_current(self, worker_id: str) -> bool:
        """True for the id that this process has now."""


@dataclass(slots=True)
class ClaimRequest:
    """What is claimed, by whom; one request may be tried several times, and is one claim all the same.

    Attributes:
        lease_id: The lease id of this claim.
        first: True once it was found that nobody claimed the run before.
    """

    partition_key: str
    response_id: str
    claimant: Claimant
    lease_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    first: bool = False


def has_log(row: ResponseRow) -> bool:
    """True if clients may stream this response from storage."""
    return row.background and row.stream


async def claim(storage: Storage, request: ClaimRequest, settings: EngineSettings) -> "Ownership | Declined":
    """Try to become the owner of a run.

    Raises:
        StorageUnavailable: It is not known who owns the run; the message must come back.
    """
    worker_id = ""
    while True:
        row = await read_row(storage, request.partition_key, request.response_id)
        reason = await _reason_to_leave(storage, row, request)
        if row is None or reason is not None:
            return Declined(reason or Reason.NO_ROW, row)
        if not request.claimant.is_current(worker_id):
            worker_id = await request.claimant.open_run()
        claimed = await _take_row(storage, row, worker_id, request.lease_id, settings)
        if claimed is None:
            continue
        request.first = request.first or row.generation == 0
        if not has_log(claimed):
            return Ownership(storage, settings, claimed, EMPTY, recovery=not request.first)
        outcome = await _take_log(storage, claimed, displace=bool(row.owner), first=row.generation == 0)
        if isinstance(outcome, LogEnd):
            return Ownership(storage, settings, claimed, outcome, recovery=not request.first)
        if outcome is not None:
            return Declined(outcome, claimed)


async def _reason_to_leave(storage: Storage, row: ResponseRow | None, request: ClaimRequest) -> Reason | None:
    if row is None:
        return Reason.NO_ROW
    if row.deleted:
        return Reason.DELETED
    if row.status in TERMINAL_STATUSES:
        return Reason.TERMINAL
    if row.owner and not request.claimant.is_current(row.owner) and await _is_alive(storage, row.owner):
        return Reason.ELSEWHERE
    return None


async def _is_alive(storage: Storage, worker_id: str) -> bool:
    try:
        return (await storage.ledger.read(worker_id)).state == "open"
    except NotFound:
        return False


async def _take_row(
    storage: Storage, row: ResponseRow, worker_id: str, lease_id: str, settings: EngineSettings
) -> ResponseRow | None:
    """Step 2; None when another was faster. Coming by again, with a row that is ours, is not another attempt."""
    wanted = replace(
        row,
        status="in_progress",
        generation=row.generation + 1,
        attempt=row.attempt + (row.lease_id != lease_id),
        owner=worker_id,
        lease_id=lease_id,
    )
    try:
        return await replace_row(storage, wanted, settings.finish_patience)
    except OwnershipLost:
        return None


async def _take_log(storage: Storage, row: ResponseRow, *, displace: bool, first: bool) -> LogEnd | Reason | None:
    """Steps 3 to 6; None means once more from the top."""
    name = row.segments[-1].name
    try:
        if displace:
            await storage.log.break_lease(name)
        await storage.log.acquire(name, row.lease_id)
        if first:
            return EMPTY
        if not await _still_ours(storage, row):
            await storage.log.release(name, row.lease_id)
            return None
        return await read_log_end(storage.log, row)
    except (LeaseHeld, PreconditionFailed):  # the latter: the release met a successor that has broken our lease
        return None
    except NotFound:
        return Reason.NO_ROW


async def _still_ours(storage: Storage, row: ResponseRow) -> bool:
    now = await read_row(storage, row.partition_key, row.id)
    return now is not None and now.generation == row.generation and now.status not in TERMINAL_STATUSES


async def replace_row(storage: Storage, wanted: ResponseRow, patience: float) -> ResponseRow:
    """CAS of a row against its etag, knowing its own success behind a lost reply.

    Raises:
        OwnershipLost: The row was changed by another; the error holds it as it is now.
        StorageUnavailable: No answer for `patience` seconds; the outcome is unknown.
    """
    mark = uuid.uuid4().hex
    async for attempt in patiently(patience):
        with attempt:
            try:
                return await storage.rows.replace(wanted, mark=mark)
            except (PreconditionFailed, NotFound) as refusal:
                _log.warning(
                    "response %s: storage refused a status write of generation %d", wanted.id, wanted.generation
                )
                raise OwnershipLost(await read_row(storage, wanted.partition_key, wanted.id)) from refusal
    raise AssertionError("unreachable: tenacity returns or raises")


async def read_row(storage: Storage, partition_key: str, response_id: str) -> ResponseRow | None:
    """The row as it stands, or None."""
    try:
        return await storage.rows.read(partition_key, response_id)
    except NotFound:
        return None


class Ownership:
    """The right to write one response, won by a claim; lost the moment storage refuses a write.

    Every method raises `OwnershipLost` when refused, and `StorageUnavailable` when storage stays silent for too long.
    """

    def __init__(
        self, storage: Storage, settings: EngineSettings, row: ResponseRow, end: LogEnd, *, recovery: bool
    ) -> None:
        self._storage = storage
        self._settings = settings
        self.row = row
        self.position = end.position
        self.blocks = end.blocks
        self.last_sequence = end.last_sequence
        self.log_closed = end.closed
        self.is_recovery = recovery
        """True if a handler may have been entered for this response before."""

    async def append(self, data: bytes, last_sequence: int) -> None:
        """Append whole frames, the last of which has that number, to the newest segment (R8)."""
        name = self.row.segments[-1].name
        async for attempt in patiently(self._settings.finish_patience):
            with attempt:
                try:
                    result = await self._storage.log.append(
                        name, data, position=self.position, lease_id=self.row.lease_id
                    )
                    self.blocks = result.blocks
                except (PreconditionFailed, NotFound) as refusal:
                    if not await self._is_stored(name, data):
                        _log.warning(
                            "response %s: storage refused an append of generation %d at %d",
                            self.row.id,
                            self.row.generation,
                            self.position,
                        )
                        row = await read_row(self._storage, self.row.partition_key, self.row.id)
                        raise OwnershipLost(row) from refusal
                    self.blocks += 1
        self.position += len(data)
        self.last_sequence = last_sequence

    async def _is_stored(self, name: str, data: bytes) -> bool:
        """Tell a lost reply from a lost lease: are just these bytes at our position?"""
        try:
            return await self._storage.log.read(name, self.position, len(data)) == data
        except NotFound:
            return False

    async def roll_over(self) -> None:
        """Go on in a new segment: created and leased first, effective by CAS.

        Then the old one is closed for its readers.
        """
        row = self.row
        old = row.segments[-1]
        name = segment_name(row.partition_key, row.id, len(row.segments), row.generation)
        async for attempt in patiently(self._settings.finish_patience):
            with attempt:
                try:
                    await self._storage.log.create(name)
                except AlreadyExists:  # an earlier try of this very generation
                    pass
                await self._storage.log.acquire(name, row.lease_id)
        closed = replace(old, length=self.position)
        await self._write(
            segments=(*row.segments[:-1], closed, Segment(name=name, first_sequence=self.last_sequence + 1))
        )
        try:
            await self._storage.log.append(old.name, CONTINUED, position=self.position, lease_id=row.lease_id)
        except (PreconditionFailed, NotFound, StorageUnavailable):
            pass  # readers find the successor in the row, a little later
        self.position = 0
        self.blocks = 0

    async def checkpoint(self, snapshot: bytes) -> None:
        """Persist a snapshot to resume from (R11): the old one or the new one is found, never a mixture."""
        await self._write(snapshot=await self._put("snapshot", snapshot))

    async def finish(self, status: str, snapshot: bytes, *, completed_at: int | None, error_code: str) -> None:
        """Decide the outcome, once (V1). The terminal frame follows with `append`: the lease stays ours."""
        await self._write(
            status=status,
            snapshot=await self._put("snapshot", snapshot),
            completed_at=completed_at,
            error_code=error_code,
            last_sequence=self.last_sequence,
        )

    async def hand_over(self, *, graceful: bool) -> None:
        """Leave the run to whoever claims next, at once and without suspicion.

        A graceful one was no failed attempt (R5).
        """
        await self._write(owner="", attempt=self.row.attempt - graceful)
        if has_log(self.row):
            try:
                await self._storage.log.release(self.row.segments[-1].name, self.row.lease_id)
            except (PreconditionFailed, NotFound, StorageUnavailable):
                pass  # a claim that finds it held goes through the row, and breaks it

    async def _put(self, kind: str, data: bytes) -> StoredPayload:
        async for attempt in patiently(self._settings.finish_patience):
            with attempt:
                return await self._storage.payloads.put(self.row.partition_key, self.row.id, kind, data)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _write(self, **changes: Any) -> None:
        self.row = await replace_row(self._storage, replace(self.row, **changes), self._settings.finish_patience)
