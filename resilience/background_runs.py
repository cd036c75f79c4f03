"""The background runs of this process: claimed, started, attached to, claimed again.

One claim per response at a time in a process: start messages of the same response, and its eager acceptance, take
turns. A message that finds its response running here waits for the run's end, so that the platform sees the
invocation working.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from resilience import acceptance, chain
from resilience.background_run import BackgroundRun, RunEnd
from resilience.claim import ClaimRequest, Declined, Reason, claim
from resilience.dispatch import Disposition
from resilience.log_context import start_anew
from resilience.log_repair import complete_log
from resilience.owned_run import OwnedRun, Stay
from resilience.ownership import Ownership
from resilience.placement import tenant_in
from resilience.record import MalformedRecord, RequestRecord
from resilience.remains import remove_blobs
from resilience.response_row import ChainUnreadable, has_log, read_row
from resilience.retry import STORAGE_RETRY_SECONDS
from resilience.run_entries import background_entry, close_run
from resilience.run_watch import RunWatch
from resilience.runtime import Runtime
from resilience.snapshots import record_of, stand_in_record
from resilience.verdict import ATTEMPTS_EXHAUSTED, UNREADABLE, Verdict
from resilience.worker import Worker
from storage.chains import own_chain_key
from storage.errors import NotFound, StorageError, StorageUnavailable
from storage.ledger import LedgerEntry
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.runs")

_FIRST_LOOK = 0.05
_LAST_LOOK = 2.0
"""Seconds between two looks for a row that is still missing."""

_OUTAGE_PATIENCE = 120.0
"""Seconds that one reception of a message waits for a storage that does not answer."""

_ODD_ANSWERS = 5
"""Reads of a request that storage refuses or garbles before it is taken for unreadable."""

_GIVEN_UP_DELAY = 600.0
"""Seconds until somebody looks again for a chain that nobody could read for all of a message's receptions."""

_REMEMBERED = 1024
"""Responses whose end in this process is remembered."""


class _Opener:
    """Opens a run in this worker's ledger when a claim needs it."""

    def __init__(self, worker: Worker, entry: LedgerEntry) -> None:
        self._worker = worker
        self._entry = entry
        self._worker_id = ""

    async def open_run(self) -> str:
        self._worker_id = await self._worker.open(self._entry)
        return self._worker_id

    def is_current(self, worker_id: str) -> bool:
        return self._worker.is_current(worker_id)

    @property
    def opened(self) -> bool:
        """True once the ledger has the run: the row may name this worker."""
        return bool(self._worker_id)

    def close(self) -> None:
        """Forget the run if it was opened."""
        if self._worker_id:
            self._worker.close(self._worker_id, self._entry.key)


class BackgroundRuns:
    """Claims and executes background responses."""

    def __init__(self, runtime: Runtime, watch: RunWatch) -> None:
        self._runtime = runtime
        self._watch = watch
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        self._ended_here: OrderedDict[str, None] = OrderedDict()
        self._draining = False

    def has_room(self) -> bool:
        """True if another run may start here without a queue's invocation."""
        return not self._draining and len(self._runtime.running) < self._runtime.settings.eager_limit

    def drain(self) -> None:
        """Start nothing any more."""
        self._draining = True

    async def accept(self, key: str, record: RequestRecord, disposition: Disposition) -> ResponseRow:
        """Record a response and start it at once.

        Raises:
            StorageError: It is not recorded; nothing of it will run.
        """
        async with self._turn(record.response_id):
            accepted = await acceptance.accept_and_own(self._runtime, key, record, disposition)
            if not isinstance(accepted, Ownership):
                return accepted  # it waits for its turn
            self._start(accepted, record, None)
        return accepted.row

    async def run(self, key: str, response_id: str, *, late: bool = False) -> None:
        """Run a response unless somebody does or did; returns when this process is done with it.

        `late`: it was not on record when somebody looked before; what is not by now never will be.

        Raises:
            StorageError: It is not known who owns it: try again.
        """
        await self._run(key, response_id, None, late=late)

    def start_soon(self, key: str, response_id: str) -> None:
        """Run a response whose start message was just sent without waiting for it.

        Where this process may (eager start).
        """
        if self._runtime.settings.eager_start and self.has_room():
            self._runtime.spawn(self.run(key, response_id), f"starting-{response_id}")

    async def clean_up(self, key: str, response_id: str, *, late: bool = False) -> None:
        """Complete a deletion that was interrupted (V10).

        `late`: it had not come to its marker when somebody looked before; by now it has, or never will.
        """
        if await remove_blobs(self._runtime, key, response_id):
            await self._runtime.storage.chains.delete(key, own_chain_key(response_id))
        elif not late:
            # Who deletes it may be slower still, and may die right behind the marker: then no message would be left.
            delay = self._runtime.settings.last_look_after
            await self._runtime.storage.work.send_cleanup(tenant_in(key), response_id, delay=delay, late=True)

    async def give_up(self, key: str, response_id: str) -> None:
        """Fail a response whose start message failed too often, unless somebody runs it (R5)."""
        try:
            await self._run(key, response_id, ATTEMPTS_EXHAUSTED, late=True)
        except ChainUnreadable:
            # It, or the one behind it, waits for somebody who can read their chain, as long as it is on record.
            if await read_row(self._runtime.storage, key, response_id) is not None:
                await chain.leave_to_others(self._runtime, key, response_id, delay=_GIVEN_UP_DELAY)

    async def _run(self, key: str, response_id: str, verdict: Verdict | None, *, late: bool) -> None:
        if response_id in self._ended_here:
            return
        start_anew(response_id=response_id)
        loop = asyncio.get_running_loop()
        leave_at = loop.time() + self._runtime.settings.handover_after  # the platform counts from here
        # A run that was lost may have been so before this message was sent: for the death of who took it, say.
        while (stay := await self._attach_or_start(key, response_id, verdict, late=late)) is not None:
            limit = loop.call_at(leave_at, stay.run.hand_over)
            try:
                await stay.until_over(self._runtime.worker)
            finally:
                limit.cancel()
            if stay.run.is_over and not stay.run.lost:
                return

    async def _attach_or_start(self, key: str, response_id: str, verdict: Verdict | None, *, late: bool) -> Stay | None:
        """At the run that this process has or could claim; None if there is nothing to do here."""
        async with self._turn(response_id):
            run = await self._attach(response_id)
            if run is not None:
                return Stay(run, attached=True)
            if self._draining:
                await self._runtime.storage.work.send_start(tenant_in(key), response_id)
                return None
            run = await self._claim_and_start(key, response_id, verdict, late=late)
            return None if run is None else Stay(run, attached=False)

    async def _attach(self, response_id: str) -> OwnedRun | None:
        """The run that this process has, unless it has to be claimed anew.

        Its worker id was declared dead: then it is stopped. It is leaving: then the message may be the one that is
        to start it again, whoever receives it.
        """
        run = self._runtime.running.get(response_id)
        if not isinstance(run, OwnedRun):
            return None
        if not run.leaving:
            if self._runtime.worker.is_current(run.worker_id):
                return run
            run.displace()
        await run.ended()
        return None

    async def _claim_and_start(
        self, key: str, response_id: str, verdict: Verdict | None, *, late: bool
    ) -> OwnedRun | None:
        ownership = await self._claim(key, response_id, late=late, give_up=verdict is not None)
        if ownership is None:
            return None
        return self._start(ownership, *await self._read_record(ownership, verdict))

    async def _read_record(self, ownership: Ownership, verdict: Verdict | None) -> tuple[RequestRecord, Verdict | None]:
        """The record, or an empty one with the verdict that it is unreadable (R3)."""
        odd = 0
        try:
            while True:
                try:
                    return await record_of(self._runtime, ownership.row), verdict
                except NotFound:
                    raise
                except StorageError as error:  # it is ours: nobody else would go on
                    odd += not isinstance(error, StorageUnavailable)
                    if odd == _ODD_ANSWERS:
                        raise
                    await asyncio.sleep(_LAST_LOOK)
        except (MalformedRecord, StorageError):
            _log.exception("response %s: its record cannot be read", ownership.row.id)
            return stand_in_record(ownership.row), UNREADABLE

    async def _claim(self, key: str, response_id: str, *, late: bool = True, give_up: bool = False) -> Ownership | None:
        """Claim a run that this process does not have; None if there is nothing to do here.

        `give_up`: it is claimed to be ended, which needs no chain.

        Raises:
            ChainUnreadable: It is not known whether it is the turn's time, or what comes after it.
            StorageUnavailable: Nothing was changed; once the row may name this process, it goes on until it knows.
        """
        claimant = _Opener(self._runtime.worker, background_entry(key, response_id))
        request = ClaimRequest(key, response_id, claimant, without_chain=give_up)
        outcome: Ownership | Declined | None = None
        loop_time = asyncio.get_running_loop().time
        give_up_at = loop_time() + _OUTAGE_PATIENCE
        try:
            while outcome is None:
                found: Ownership | Declined | None = None
                try:
                    patience = 0.0 if late else self._runtime.settings.missing_row_patience
                    found = await self._claim_patiently(request, patience)
                    if isinstance(found, Declined):
                        await self._after_decline(found, key, response_id, late=late)
                    outcome = found
                except Exception as error:
                    # What is declined is not ours: where storage would refuse ever again, its message has to tell.
                    hopeless = found is not None and not isinstance(error, StorageUnavailable)
                    patient = isinstance(error, StorageError) and not self._draining and loop_time() < give_up_at
                    # A message comes back five times only: an outage must not spend them within half a minute. And
                    # once the row may name us, nobody else would go on, whatever it was that broke the claim off.
                    if hopeless or not (claimant.opened or patient):
                        raise
                    if isinstance(error, ChainUnreadable) and not patient:
                        request.without_chain = True  # its run gives it away, which costs an attempt
                    if isinstance(error, StorageUnavailable):
                        _log.warning("response %s: storage does not answer, the claim goes on later", response_id)
                    else:
                        _log.exception("response %s: the claim broke off, it goes on later", response_id)
                    await asyncio.sleep(_LAST_LOOK)
            return outcome if isinstance(outcome, Ownership) else None
        finally:
            if not isinstance(outcome, Ownership):
                claimant.close()

    async def _claim_patiently(self, request: ClaimRequest, patience: float) -> Ownership | Declined:
        """Claim; a message may be faster than its row (it is sent first).

        So a missing one is looked for again (R2).
        """
        loop_time = asyncio.get_running_loop().time
        give_up_at = loop_time() + patience
        pause = _FIRST_LOOK
        while True:
            outcome = await claim(self._runtime.storage, request, self._runtime.settings)
            missing = isinstance(outcome, Declined) and outcome.reason is Reason.NO_ROW
            if not missing or loop_time() >= give_up_at:
                return outcome
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_LOOK)

    async def _after_decline(self, declined: Declined, key: str, response_id: str, *, late: bool) -> None:
        if declined.reason is Reason.TERMINAL and declined.row is not None:
            await complete_log(self._runtime.storage, declined.row)
            if declined.row.turn and not await chain.is_wound_down_elsewhere(self._runtime, declined.row):
                await chain.revive(self._runtime, key, response_id, ended=True)
        elif declined.reason is Reason.NO_ROW and not late:
            # Who accepts it may be slower still, and may die right behind the insert: then no message would be left.
            delay = self._runtime.settings.last_look_after
            await self._runtime.storage.work.send_start(tenant_in(key), response_id, delay=delay, late=True)
        elif declined.reason in (Reason.NO_ROW, Reason.DELETED):
            _log.info("response %s: nothing to run (%s)", response_id, declined.reason.name)
            await remove_blobs(self._runtime, key, response_id)
            if declined.row is None or not await chain.is_wound_down_elsewhere(self._runtime, declined.row):
                # It may have left its chain before it was removed.
                await chain.revive(self._runtime, key, response_id, ended=declined.row is not None)

    def _start(self, ownership: Ownership, record: RequestRecord, verdict: Verdict | None) -> OwnedRun:
        row = ownership.row
        run = OwnedRun(self._new_run(ownership, record, verdict))
        if self._draining:
            run.hand_over()  # claimed while the drain began: nobody else would tell it
        self._runtime.running[row.id] = run
        self._watch.add(row.partition_key, row.id, background=True, in_chain=bool(row.turn))
        self._runtime.spawn(self._own(run, ownership, record, verdict), f"run-{row.id}")
        return run

    def _new_run(self, ownership: Ownership, record: RequestRecord, verdict: Verdict | None) -> BackgroundRun:
        feed = self._runtime.tails.feed(record.response_id) if has_log(ownership.row) else None
        return BackgroundRun(self._runtime, ownership, record, feed, verdict)

    async def _own(self, run: OwnedRun, ownership: Ownership, record: RequestRecord, verdict: Verdict | None) -> None:
        """Execute until this process has no part in the response any more."""
        response_id = record.response_id
        time_limit = asyncio.get_running_loop().call_later(self._runtime.settings.handover_after, run.hand_over)
        try:
            while (end := await self._execute(run.current)) is RunEnd.RECLAIM:
                # Refused, but nobody else took it: we have to go on, nobody else would.
                claimed = await self._claim_again(ownership.row.partition_key, response_id)
                if claimed is None:
                    self._close(run.current)
                    return
                run.go_on_with(self._new_run(claimed, record, verdict))
            run.lost = end is RunEnd.LOST
            if end is RunEnd.ENDED:
                self._remember(response_id)
        finally:
            time_limit.cancel()
            self._watch.remove(response_id)
            if self._runtime.running.get(response_id) is run:
                del self._runtime.running[response_id]
            self._runtime.tails.release(response_id)
            run.over()

    async def _execute(self, run: BackgroundRun) -> RunEnd:
        """One claim's run. While it is not known how it left, it is ours to look after: the ledger keeps it open."""
        try:
            end = await run.execute()
        except Exception:
            # Storage was silent for too long, or the engine is at fault; attempts are bounded either way (R5).
            _log.exception("response %s: the run broke off", run.response_id)
            await asyncio.sleep(STORAGE_RETRY_SECONDS)  # an attempt each: not all of them within one hiccup
            return RunEnd.RECLAIM
        if end is not RunEnd.RECLAIM:
            self._close(run)
        return end

    def _close(self, run: BackgroundRun) -> None:
        close_run(self._runtime, run.worker_id, run.response_id)

    async def _claim_again(self, key: str, response_id: str) -> Ownership | None:
        while True:
            try:
                try:
                    return await self._claim(key, response_id)
                except ChainUnreadable:
                    await chain.leave_to_others(self._runtime, key, response_id)
                    return None
            except StorageError:
                _log.warning("response %s: storage does not answer, it is claimed again later", response_id)
                await asyncio.sleep(_LAST_LOOK)

    def _remember(self, response_id: str) -> None:
        """Its start message may come only now: nothing is left to do for it, not even a look."""
        self._ended_here[response_id] = None
        while len(self._ended_here) > _REMEMBERED:
            self._ended_here.popitem(last=False)

    @asynccontextmanager
    async def _turn(self, response_id: str) -> AsyncGenerator[None]:
        lock, users = self._turns.get(response_id, (asyncio.Lock(), 0))
        self._turns[response_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns[response_id]
            if users == 1:
                del self._turns[response_id]
            else:
                self._turns[response_id] = (lock, users - 1)
