"""What storage has of a foreground turn of a chain.

Its row was inserted when it joined, and nobody is shown it before its end. The outcome leaves the chain in the same
transaction. The ledger's entry is closed after the next turn was started, so that a crash in between is found.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from protocol.response import TERMINAL_STATUSES
from resilience import chain as chains
from resilience.dispatch import Disposition
from resilience.foreground_record import ForegroundRecord
from resilience.idempotency import RequestKey
from resilience.record import RequestRecord
from resilience.response_row import OwnershipLost, read_row, replace_with_chain, replace_with_outcome
from resilience.retry import STORAGE_RETRY_SECONDS, patiently
from resilience.run_entries import ForegroundEntry
from resilience.runtime import Runtime
from storage.chains import ChainRow
from storage.errors import (
    ChainMoved,
    MalformedRecord,
    NotFound,
    PreconditionFailed,
    StorageError,
    StorageRejected,
    StorageUnavailable,
)
from storage.rows import ResponseRow

_ODD_LOOKS = 3
"""Looks at a chain in a row that are refused or garbled before a turn that waits for it fails."""

_TURN_POLL = 0.25
"""Seconds between two looks at the chain by a turn that waits for one of another process."""


class TurnRecord(ForegroundRecord):
    """The stored side of a foreground run that is a turn of a chain."""

    def __init__(
        self,
        runtime: Runtime,
        record: RequestRecord,
        row: ResponseRow,
        chain: ChainRow,
        entry: ForegroundEntry,
        request_key: RequestKey | None = None,
    ) -> None:
        super().__init__(
            runtime, row.partition_key, record, Disposition.FOREGROUND, entry=entry, request_key=request_key
        )
        self.row = row
        self.chain = chain
        self.unkept: bytes | None = None
        """The chain's metadata that goes with the outcome."""
        self.runs_on = False
        """True if the handler is not gone with the outcome: the next turn has to wait for that."""
        self._has_left = False
        self._next: ChainRow | None = None
        """The chain as this turn left it; None while it has to be looked at."""
        self._odd_looks = 0
        self._writing = asyncio.Lock()  # a write begins from the etag of the one before it

    @property
    def is_active(self) -> bool:
        """True once it is this turn's turn."""
        return self.chain.may_start(self.row.id)

    async def look(self) -> dict[str, Any] | None:
        """Wait a little for this turn's turn; the response, if its outcome was decided elsewhere meanwhile."""
        await self._runtime.turns.wait(self.row.id, _TURN_POLL)
        try:
            chain = await self._runtime.storage.chains.read(self._key)
            self._odd_looks = 0
            has_left = chain.turn(self.row.id) is None
            if not has_left and self._runtime.worker.is_current(self.worker_id):
                self.chain = chain
                return None
            # This worker was declared dead, and the turn with it; its chain may not have been told.
            row = await read_row(self._runtime.storage, self._key, self.row.id)
        except StorageUnavailable:
            return None  # it is looked at again in a moment
        except (MalformedRecord, StorageRejected):
            self._odd_looks += 1
            if self._odd_looks == _ODD_LOOKS:
                raise
            await asyncio.sleep(STORAGE_RETRY_SECONDS)
            return None
        if self._is_decided(row):
            self._has_left = self._is_settled = True
            return await self.as_decided(row)
        if has_left:
            self._has_left = self._is_settled = True
            raise StorageError("A turn left its chain without an outcome.")
        self.chain = chain
        return None

    def _is_decided(self, row: ResponseRow | None) -> bool:
        return row is None or super()._is_decided(row)  # the row of a turn is older than its run

    async def keep(self, metadata: bytes) -> None:
        """Store what the turns of the chain keep for one another (S7); refused once another decided the outcome."""

        def change(chain: ChainRow) -> ChainRow:
            return replace(chain, metadata=metadata)

        # Never cut off: the etag of a write whose reply nobody read would refuse the outcome.
        await asyncio.shield(self._runtime.spawn(self._replace({}, change), f"keeping-{self.row.id}"))

    async def _replace(self, changes: dict[str, Any], change: Callable[[ChainRow], ChainRow]) -> bool:
        """Write this turn's row with its chain; only an outcome that another decided refuses it.

        The row was changed without one: by an earlier write of this very turn, whose reply was lost. False if the chain
        could not be told of the outcome.
        """
        store = partial(replace_with_outcome, owner=self.worker_id) if "status" in changes else replace_with_chain
        async with self._writing:
            while True:
                try:
                    self.row, chain = await store(
                        self._runtime.storage,
                        replace(self.row, **changes),
                        change,
                        self._runtime.settings.finish_patience,
                        known=self.chain,
                    )
                    self.chain = chain or self.chain
                except OwnershipLost as lost:
                    if lost.row is None or lost.row.status in TERMINAL_STATUSES:
                        raise
                    self.row = lost.row
                else:
                    return chain is not None

    async def _drop(self) -> None:
        async with self._writing:
            while not self._has_left:
                chain = self.chain.without_trace(self.row.id)
                try:
                    await self._runtime.storage.chains.delete_row(self.row, chain)
                    self._has_left = True
                except ChainMoved:
                    self.chain = await self._runtime.storage.chains.read(self._key)
                except NotFound:  # by an earlier try
                    self._has_left = True
                except PreconditionFailed:
                    row = await read_row(self._runtime.storage, self._key, self.row.id)
                    # With an outcome another took it out of the chain, without one it was this turn's own write.
                    self._has_left = row is None or row.status in TERMINAL_STATUSES
                    self.row = row or self.row
        await super()._drop()

    async def _close(self) -> None:
        """Start the next turn; the entry stays open until that is done."""
        while self._next is not None:
            try:
                await chains.start_active(self._runtime, self._next)
                break
            except StorageUnavailable:
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
        else:
            await chains.revive_stubbornly(self._runtime, self._key, self.row.id, ended=self._is_settled)
        await super()._close()

    async def _write(
        self, snapshot: dict[str, Any], last_sequence: int, mark: str, patience: float, seen: bool
    ) -> dict[str, Any]:
        ran = False

        def leave(chain: ChainRow) -> ChainRow:
            nonlocal ran
            ran = chain.may_start(self.row.id)
            left = chain.without_turn(self.row.id, retract=not seen, runs_on=self.runs_on)
            return left if self.unkept is None else replace(left, metadata=self.unkept)

        async for attempt in patiently(patience):
            with attempt:
                changes = await self._outcome(snapshot, last_sequence)
        try:
            told = await self._replace(changes, leave)
        except OwnershipLost as lost:
            self._has_left = self._is_settled = True
            if lost.row is None:
                raise
            return await self._snapshot_in(lost.row)
        self._has_left = self._is_settled = True
        if told and self.chain.ending != self.row.id:  # who only waited starts nobody
            self._next = self.chain if ran else replace(self.chain, active=None)
        return snapshot
