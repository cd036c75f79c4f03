"""Who may write: the claim of a run, and the `Ownership` that only a won claim gives.

Appends and status writes exist only as methods of `Ownership`. Each append carries the lease id and the append
position, each status write the etag: a worker that was displaced is refused by storage, whatever it believes. A run
that nobody can stream (background without ``stream``) has no log; its etag alone fences it.

The claim, in its order; nobody in this process claims or runs the same response meanwhile:

1. Read the row.
   missing: `Reason.NO_ROW`. A deletion marker: `Reason.DELETED`. Terminal: `Reason.TERMINAL`.
   Owned by another worker whose ledger is open: `Reason.ELSEWHERE`; this makes doubled and late messages harmless.
   A foreground turn in flight, too: its request runs it.
   A turn of a chain that never ran, while another one is the chain's active turn, or ends: `Reason.WAITING`; who ends
   that one starts the next.
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

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Protocol

from protocol.response import TERMINAL_STATUSES
from resilience.log_end import EMPTY, LogEnd, read_log_end
from resilience.options import EngineSettings
from resilience.retry import patiently
from storage.chains import CHAIN_ROW, ChainRow, own_chain_key
from storage.connection import Storage
from storage.errors import (
    ChainMoved,
    LeaseHeld,
    NotFound,
    PreconditionFailed,
    StorageError,
    StorageUnavailable,
)
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
    WAITING = auto()


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
        chain: ChainRow | None = None
        if row.turn and row.generation == 0:
            chain = await storage.chains.read(row.partition_key)
            if not chain.may_start(row.id):
                return Declined(Reason.WAITING, row)
        if not request.claimant.is_current(worker_id):
            worker_id = await request.claimant.open_run()
        if row.lease_id != request.lease_id:  # else it is this very claim's, of whose success nobody heard
            request.first = row.generation == 0
        claimed = await _take_row(storage, row, worker_id, request.lease_id, settings)
        if claimed is None:
            continue
        if not has_log(claimed):
            return Ownership(storage, settings, claimed, EMPTY, recovery=not request.first, chain=chain)
        outcome = await _take_log(storage, claimed, displace=bool(row.owner), first=row.generation == 0)
        if isinstance(outcome, LogEnd):
            return Ownership(storage, settings, claimed, outcome, recovery=not request.first, chain=chain)
        if outcome is not None:
            return Declined(outcome, claimed)


async def _reason_to_leave(storage: Storage, row: ResponseRow | None, request: ClaimRequest) -> Reason | None:
    if row is None:
        return Reason.NO_ROW
    if row.deleted:
        return Reason.DELETED
    if row.status in TERMINAL_STATUSES:
        return Reason.TERMINAL
    if not row.background:  # a turn that its own request runs
        return Reason.ELSEWHERE
    if row.owner and not request.claimant.is_current(row.owner) and await is_alive(storage, row.owner):
        return Reason.ELSEWHERE
    return None


async def is_alive(storage: Storage, worker_id: str) -> bool:
    """True while nobody declared that worker dead; it may have stopped all the same."""
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
        if await _still_ours(storage, row):
            # Nobody deleted the response: who gave up waiting for its row (R2) was slow to clean up behind it.
            await storage.log.ensure(name)
        return None


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


async def replace_with_chain(
    storage: Storage,
    wanted: ResponseRow,
    change: Callable[[ChainRow], ChainRow],
    patience: float,
    *,
    known: ChainRow | None = None,
) -> tuple[ResponseRow, ChainRow]:
    """CAS of a row together with its chain, which may change any number of times before; both as they are then.

    `known` is the chain as last read, if it was.

    Raises:
        OwnershipLost: The row was changed by another; the error holds it as it is now.
        StorageUnavailable: No answer for `patience` seconds; the outcome is unknown.
    """
    mark = uuid.uuid4().hex
    chain = known
    async for attempt in patiently(patience):
        with attempt:
            while True:
                if chain is None:
                    chain = await storage.chains.read(wanted.partition_key, chain_key(wanted))
                try:
                    return await storage.chains.replace_row(wanted, change(chain), mark=mark)
                except ChainMoved:
                    chain = None
                except (PreconditionFailed, NotFound) as refusal:
                    _log.warning(
                        "response %s: storage refused a status write of generation %d", wanted.id, wanted.generation
                    )
                    raise OwnershipLost(await read_row(storage, wanted.partition_key, wanted.id)) from refusal
    raise AssertionError("unreachable: tenacity returns or raises")


def chain_key(row: ResponseRow) -> str:
    """The chain of a response: its partition's, or its own."""
    return CHAIN_ROW if row.turn else own_chain_key(row.id)


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
        self,
        storage: Storage,
        settings: EngineSettings,
        row: ResponseRow,
        end: LogEnd,
        *,
        recovery: bool,
        chain: ChainRow | None = None,
    ) -> None:
        self._storage = storage
        self._settings = settings
        self.row = row
        self.position = end.position
        self.blocks = end.blocks
        self.last_sequence = end.last_sequence
        self.log_closed = end.closed
        self.chain = chain
        """The chain as this owner last saw it."""
        self._superseded: StoredPayload | None = None
        self._writing = asyncio.Lock()  # a write begins from the etag of the one before it
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
                await self._storage.log.ensure(name)
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
        """Persist a snapshot to resume from (R11): the old one or the new one is found, never a mixture.

        Growing snapshots must not add up, so the one before the last is deleted; whoever has just read the row still
        finds the last.
        """
        last = self.row.snapshot
        await self._write(snapshot=await self._put("snapshot", snapshot))
        unneeded, self._superseded = self._superseded, last
        if unneeded is not None:
            try:
                await self._storage.payloads.delete(unneeded)
            except StorageError as error:  # it goes with the response
                _log.info("response %s: a superseded snapshot is left: %s", self.row.id, error)

    async def read_chain(self) -> ChainRow:
        """The chain of this response, read if this owner did not yet."""
        if self.chain is None:
            self.chain = await self._storage.chains.read(self.row.partition_key, chain_key(self.row))
        return self.chain

    async def keep(self, metadata: bytes) -> None:
        """Store what the turns of the chain keep for one another (S7); refused like every status write."""
        await self._write_with_chain(lambda chain: replace(chain, metadata=metadata))

    async def finish(
        self,
        status: str,
        snapshot: bytes,
        *,
        completed_at: int | None,
        error_code: str,
        metadata: bytes | None = None,
        runs_on: bool = False,
    ) -> None:
        """Decide the outcome, once (V1), and with it whose turn is next. The lease stays ours.

        The terminal frame follows with `append`. `metadata` is stored with the outcome. `runs_on`: the handler is
        not gone yet; the next turn begins when `chain.revive` is told that it is.
        """
        changes = {
            "status": status,
            "snapshot": await self._put("snapshot", snapshot),
            "completed_at": completed_at,
            "error_code": error_code,
            "last_sequence": self.last_sequence,
        }
        if not self.row.turn:  # a chain of its own is over
            await self._write(**changes)
            return

        def leave(chain: ChainRow) -> ChainRow:
            left = chain.without_turn(self.row.id, runs_on=runs_on)
            return left if metadata is None else replace(left, metadata=metadata)

        await self._write_with_chain(leave, **changes)

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
        async with self._writing:
            while True:
                wanted = replace(self.row, **changes)
                try:
                    self.row = await replace_row(self._storage, wanted, self._settings.finish_patience)
                except OwnershipLost as lost:
                    self.row = self._own_row(lost)
                else:
                    return

    def _own_row(self, lost: OwnershipLost) -> ResponseRow:
        """The row as an earlier write of this owner left it, of which nobody heard; else it is lost."""
        row = lost.row
        if row is None or row.status in TERMINAL_STATUSES:
            raise lost
        if (row.owner, row.generation, row.lease_id) != (self.row.owner, self.row.generation, self.row.lease_id):
            raise lost
        return row

    async def _write_with_chain(self, change: Callable[[ChainRow], ChainRow], **changes: Any) -> None:
        async with self._writing:
            self.row, self.chain = await replace_with_chain(
                self._storage,
                replace(self.row, **changes),
                change,
                self._settings.finish_patience,
                known=self.chain,
            )
