"""The claim of a run: how a worker becomes the one that may write.

In its order; nobody in this process claims or runs the same response meanwhile:

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

import uuid
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

from protocol.response import TERMINAL_STATUSES
from resilience.log_end import EMPTY, LogEnd, read_log_end
from resilience.options import EngineSettings
from resilience.ownership import Ownership
from resilience.response_row import ChainUnreadable, OwnershipLost, has_log, read_chain, read_row, replace_row
from storage.chains import ChainRow
from storage.connection import Storage
from storage.errors import LeaseHeld, NotFound, PreconditionFailed
from storage.rows import ResponseRow


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
        without_chain: Claim a turn even if its chain cannot be read, so that nobody knows whose turn it is: no handler
            is entered then before somebody does. Not one that had to wait when it was admitted, unless it was its time
            when this claim began (`opened`): who ends the turn before it starts it, whatever becomes of a message.
    """

    partition_key: str
    response_id: str
    claimant: Claimant
    lease_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    first: bool = False
    without_chain: bool = False
    opened: bool = False


async def claim(storage: Storage, request: ClaimRequest, settings: EngineSettings) -> "Ownership | Declined":
    """Try to become the owner of a run.

    Raises:
        StorageUnavailable: It is not known who owns the run; the message must come back.
        ChainUnreadable: It is not known whether it is the turn's time; nothing was changed.
    """
    worker_id = ""
    while True:
        row = await read_row(storage, request.partition_key, request.response_id)
        reason = await _reason_to_leave(storage, row, request)
        if row is None or reason is not None:
            return Declined(reason or Reason.NO_ROW, row)
        chain: ChainRow | None = None
        if row.turn and row.generation == 0:
            chain = await _chain_of(storage, row, request)
            if chain is not None and not chain.may_start(row.id):
                return Declined(Reason.WAITING, row)
        if not request.claimant.is_current(worker_id):
            worker_id = await request.claimant.open_run()
            request.opened = True
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


async def _chain_of(storage: Storage, row: ResponseRow, request: ClaimRequest) -> ChainRow | None:
    try:
        return await read_chain(storage, row.partition_key)
    except ChainUnreadable:
        if not request.without_chain or (row.steered and not request.opened):
            raise
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
