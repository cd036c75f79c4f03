"""Who may write: the `Ownership` that only a won claim gives (`resilience.claim`).

Appends and status writes exist only as its methods. Each append carries the lease id and the append position, each
status write the etag: a worker that was displaced is refused by storage, whatever it believes. A run that nobody can
stream (background without ``stream``) has no log; its etag alone fences it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from protocol.response import TERMINAL_STATUSES
from resilience.log_end import LogEnd
from resilience.options import EngineSettings
from resilience.response_row import (
    OwnershipLost,
    chain_key,
    has_log,
    read_chain,
    read_row,
    replace_row,
    replace_with_chain,
    replace_with_outcome,
)
from resilience.retry import patiently
from storage.chains import ChainRow
from storage.connection import Storage
from storage.errors import NotFound, PreconditionFailed, StorageError, StorageUnavailable
from storage.log import segment_name
from storage.payloads import StoredPayload
from storage.rows import ResponseRow, Segment

_log = logging.getLogger("resilience.ownership")

CONTINUED = b": continued\n\n"
"""Closes a segment whose successor the row already names. A comment: readers follow it, clients never see it."""


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
        self.deleted = False
        """True once a write was refused because the response was deleted: what was stored just before has to go."""
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
                        self.deleted = row is None or row.deleted
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
        """The chain of this response, read if this owner did not yet.

        Raises:
            ChainUnreadable: Another version may do better.
        """
        if self.chain is None:
            async for attempt in patiently(self._settings.finish_patience):
                with attempt:
                    self.chain = await read_chain(self._storage, self.row.partition_key, chain_key(self.row))
        assert self.chain is not None
        return self.chain

    async def keep(self, metadata: bytes) -> None:
        """Store what the turns of the chain keep for one another (S7); refused like every status write."""

        async def write(row: ResponseRow) -> None:
            patience = self._settings.finish_patience
            self.row, self.chain = await replace_with_chain(self._storage, row, change, patience, known=self.chain)

        def change(chain: ChainRow) -> ChainRow:
            return replace(chain, metadata=metadata)

        await self._over_own(write, {})

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
        not gone yet; the next turn begins when `chain.revive` is told that it is. Where the chain cannot be read it is
        None afterwards, goes on naming the turn, and is for whoever can read it.
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

        async def write(row: ResponseRow) -> None:
            patience = self._settings.finish_patience
            self.row, self.chain = await replace_with_outcome(self._storage, row, leave, patience, known=self.chain)

        await self._over_own(write, changes)

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
        async def write(row: ResponseRow) -> None:
            self.row = await replace_row(self._storage, row, self._settings.finish_patience)

        await self._over_own(write, changes)

    async def _over_own(self, write: Callable[[ResponseRow], Awaitable[None]], changes: dict[str, Any]) -> None:
        """Make the changes, over an earlier write of this owner of which nobody heard."""
        async with self._writing:
            while True:
                if self.row.status in TERMINAL_STATUSES or not self.row.owner:
                    raise OwnershipLost(self.row)  # by this owner itself: it has ended the run, or given it away
                try:
                    await write(replace(self.row, **changes))
                except OwnershipLost as lost:
                    self.row = self._own_row(lost)
                else:
                    return

    def _own_row(self, lost: OwnershipLost) -> ResponseRow:
        """The row as an earlier write of this owner left it, of which nobody heard; else it is lost."""
        row = lost.row
        self.deleted = row is None or row.deleted
        if row is None or row.status in TERMINAL_STATUSES:
            raise lost
        if (row.owner, row.generation, row.lease_id) != (self.row.owner, self.row.generation, self.row.lease_id):
            raise lost
        return row
