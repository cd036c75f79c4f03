"""Adoption: what was open in the ledger of a dead worker is taken care of by whoever learns of its death.

Learned from a watch message that nobody pushed forward for `watch_visibility` seconds, or by the sweep from a
ledger that is too old by the storage service's clock. A worker that lives after all is only disturbed: storage
refuses its old writes, and it takes a new id.

The order, each step repeatable, a crash anywhere found through the adopter's own ledger:

1. open an adoption entry in one's own ledger;
2. mark the ledger dead, by CAS (from here not one transaction of that worker gets through);
3. for each entry: a background run gets a fresh start message, a foreground run its `failed` row unless it has one,
   an unfinished adoption a fresh watch message;
4. note their responses for retention;
5. delete the ledger, the row `worker` last; 6. close the adoption entry.

An entry that could not be taken care of stays in the dead ledger, and the adoption fails when the others are gone from
there: its message comes back.

Which message counts: one of a lower epoch than the open ledger's is superseded, its worker has sent another since
(see `watch`); there is nothing to do. While its worker cannot send another it gives pulses: then the message is put
back, and leads here again. So it is, once, if it lay visible for longer than it takes to receive one (`_OVERDUE`):
while nobody received anything, because storage was away or no process was there, pushes and pulses may have been as
impossible, and a worker that lives needs a moment to send another message. How long it lay there is told by the
service's clock alone: the message says when it became visible, and one that was never pushed was sent when its
ledger last changed. A dead ledger is adopted whatever the epoch, and so is every ledger by the sweep and by a
message without an epoch. An adoption entry, kind ``adoption``: ``{worker, epoch}`` (no `epoch` where the adopter
was told none), keeps what its adopter was told, and the fresh message says the same: if the ledger was marked, it
leads there, and if it was not, it counts exactly if the first one would. It is not put back for its age: whoever
lived when the first one was received has sent another since.

So does one of a kind that is not known here, which was written by a later version, until a process has it that knows
what to do.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from protocol import jsonio
from protocol.response import failed
from resilience.chain import leave_to_others, revive_or_leave, start_active, takes_part
from resilience.dispatch import Disposition
from resilience.incarnation import responses_in
from resilience.placement import tenant_in
from resilience.record import MalformedRecord, RequestRecord
from resilience.remains import remove_blobs
from resilience.response_row import OwnershipLost, read_row, replace_with_outcome
from resilience.rows import first_row, is_unseen
from resilience.run_entries import BACKGROUND, FOREGROUND
from resilience.runtime import Runtime
from resilience.snapshots import stand_in_record
from storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageError, StorageUnavailable
from storage.expiry import MAX_RESPONSES
from storage.ledger import LedgerEntry, WorkerRecord
from storage.payloads import StoredPayload
from storage.queues import WatchMessage
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.adoption")

_OUTAGE = 4
"""Entries in a row for which storage did not answer: no other one would get on either."""

_OVERDUE = 2.0
"""Seconds that a message lies visible at most where somebody receives: the longest pause between two looks of the
queue trigger (1 s), and the whole seconds in which the service tells its time."""

_SECOND_LOOK = 2.0
"""How often as long as a watch message is hidden the sweep waits before it believes an old heartbeat: a worker gives a
pulse with the first push after an outage, which comes up to 4.2 s later if one was hanging."""

ADOPTION = "adoption"
_KINDS = (ADOPTION, BACKGROUND, FOREGROUND)


class UnknownEntries(StorageError):
    """A dead worker's ledger has entries of a kind that this version does not know."""

    def __init__(self, worker_id: str, entries: Sequence[LedgerEntry]) -> None:
        kinds = sorted({entry.kind for entry in entries})
        super().__init__(f"The ledger of {worker_id} has {len(entries)} entries of the unknown kinds {kinds}.")
        self.worker_id = worker_id
        self.kinds = kinds


async def adopt(runtime: Runtime, message: WatchMessage) -> None:
    """Take over what the worker of that message had open; nothing to do if it ended properly.

    A message without an epoch counts in any case.

    Raises:
        StorageUnavailable: It could not be completed; it must be tried again.
        UnknownEntries: What is known was taken care of; somebody else must try the rest.
    """
    worker_id, epoch = message.worker, message.epoch
    if runtime.worker.is_current(worker_id):
        runtime.worker.own_message_received(worker_id, epoch)
        return
    # Before the opening, which may take its time: the message lies there no longer.
    received_at = await runtime.storage.ledger.service_time() if epoch is not None else None
    entry = _adoption_entry(worker_id, epoch)
    own_id = await runtime.worker.open(entry)
    if own_id == worker_id:
        # The message was faster than the ledger that it watches, which is this process's own.
        runtime.worker.own_message_received(worker_id, epoch)
        runtime.worker.close(own_id, entry.key)
        return
    unknown: list[LedgerEntry] = []
    try:
        if await _mark_dead(runtime, message, received_at):
            found = await runtime.storage.ledger.entries(worker_id)
            _log.warning("worker %s is dead: %d open entries", worker_id, len(found))
            runtime.telemetry.adopted.add(1)
            unknown = [each for each in found if each.kind not in _KINDS]
            failures = await _take_care_of_all(runtime, [each for each in found if each.kind in _KINDS])
            # Theirs to note for retention. A background run that goes on is noted anew by its next owner.
            await _note(runtime, [each for each in found if each.kind in _KINDS and each.key not in failures])
            await runtime.storage.ledger.wipe(worker_id, keep=[*failures, *(each.key for each in unknown)])
            if failures:  # what was taken care of is gone from the ledger: the next try has less to do
                raise next(iter(failures.values()))
    except StorageError:
        # It is tried again, here or elsewhere: the message comes back, the sweep finds the ledger.
        runtime.worker.close(own_id, entry.key)
        raise
    # Not in a `finally`: what cuts an adoption off, the death of this process, has to leave it open.
    runtime.worker.close(own_id, entry.key)
    if unknown:
        raise UnknownEntries(worker_id, unknown)


async def _take_care_of_all(runtime: Runtime, entries: Sequence[LedgerEntry]) -> dict[str, StorageError]:
    """What could not be taken care of, by key: no entry is in another's way, unless storage is away altogether."""
    failures: dict[str, StorageError] = {}
    unanswered = 0
    for entry in entries:
        try:
            await _take_care(runtime, entry)
        except StorageUnavailable as error:
            failures[entry.key] = error
            unanswered += 1
            if unanswered == _OUTAGE:
                raise
        except StorageError as error:
            _log.exception("ledger entry %s could not be taken care of", entry.key)
            failures[entry.key] = error
        else:
            unanswered = 0
    return failures


async def _note(runtime: Runtime, entries: Sequence[LedgerEntry]) -> None:
    responses = [response for entry in entries for response in responses_in(entry)]
    for start in range(0, len(responses), MAX_RESPONSES):
        await runtime.storage.expiry.note(runtime.now(), responses[start : start + MAX_RESPONSES])


async def sweep(runtime: Runtime) -> None:
    """Adopt the workers whose watch message was lost (their ledgers are few, and old ones fewer).

    It looks twice: after an outage of storage every ledger is old, and those of the living are not for long.

    Raises:
        Exception: The first of those that adoptions failed with; the others were made all the same.
    """
    ledger, settings = runtime.storage.ledger, runtime.settings
    before = await ledger.service_time() - timedelta(seconds=settings.stale_after)
    if not await ledger.stale(before):
        return
    await asyncio.sleep(_SECOND_LOOK * settings.watch_visibility)
    failures: list[Exception] = []
    for worker_id in await ledger.stale(before):
        if runtime.worker.is_current(worker_id):
            continue
        try:
            await adopt(runtime, WatchMessage(worker_id))
        except Exception as error:
            _log.exception("worker %s could not be adopted", worker_id)
            failures.append(error)
    if failures:
        raise failures[0]


def _adoption_entry(worker_id: str, epoch: int | None) -> LedgerEntry:
    """Messages of different epochs may be received at once; each has an entry of its own."""
    if epoch is None:
        return LedgerEntry(f"adopt-{worker_id}", ADOPTION, {"worker": worker_id})
    return LedgerEntry(f"adopt-{worker_id}-{epoch}", ADOPTION, {"worker": worker_id, "epoch": epoch})


async def _mark_dead(runtime: Runtime, message: WatchMessage, received_at: datetime | None) -> bool:
    """False if there is nothing to adopt: the worker closed its ledger, another adopter has finished, the message is
    superseded, or the worker lives, or has yet to be given the time to show it.
    """
    worker_id, epoch = message.worker, message.epoch
    while True:
        try:
            record = await runtime.storage.ledger.read(worker_id)
            if record.state == "dead":
                return True
            if epoch is not None and record.epoch > epoch:
                _log.info("a superseded watch message of worker %s", worker_id)
                return False
            if received_at is not None:
                overdue = not message.again and _is_overdue(runtime, message, record, received_at)
                if overdue:
                    _log.warning("the watch message of worker %s lay there for long: it is received again", worker_id)
                if overdue or await _is_beating(runtime, worker_id):
                    await _put_back(runtime, message, received_at, again=overdue)
                    return False
            await runtime.storage.ledger.mark_dead(record)
        except NotFound:
            return False
        except PreconditionFailed:
            continue  # it changed at this moment: look again
        else:
            return True


def _is_overdue(runtime: Runtime, message: WatchMessage, record: WorkerRecord, received_at: datetime) -> bool:
    """True if nobody received that message when it became visible."""
    settings = runtime.settings
    known = message.hidden_until
    if known is None and record.heartbeat is not None:
        known = record.heartbeat.timestamp() + settings.watch_visibility
    # What is known is until when it was hidden before the last push.
    return known is not None and received_at.timestamp() - known > settings.watch_push_interval + _OVERDUE


async def _put_back(runtime: Runtime, message: WatchMessage, received_at: datetime, *, again: bool) -> None:
    delay = runtime.settings.watch_visibility
    hidden_until = received_at.timestamp() + delay
    await runtime.storage.watch.send(
        message.worker, delay=delay, epoch=message.epoch, hidden_until=hidden_until, again=again
    )


async def _is_beating(runtime: Runtime, worker_id: str) -> bool:
    """True for a process that lost the hold of its watch message, and whose event loop is blocked."""
    within = timedelta(seconds=runtime.settings.watch_visibility)
    return await runtime.storage.ledger.gave_pulse(worker_id, within)


async def _take_care(runtime: Runtime, entry: LedgerEntry) -> None:
    data = entry.data
    if entry.kind == ADOPTION:
        epoch = data.get("epoch")
        await runtime.storage.watch.send(
            str(data.get("worker")), delay=0, epoch=epoch if isinstance(epoch, int) else None, again=True
        )
    elif entry.kind == BACKGROUND:
        key, response_id = str(data.get("key")), str(data.get("id"))
        await runtime.storage.work.send_start(tenant_in(key), response_id)
        runtime.start_soon(key, response_id)
    elif entry.kind == FOREGROUND:
        await _record_failure(runtime, data)
    else:
        _log.error("ledger entry %s is of the unknown kind %r", entry.key, entry.kind)


async def _record_failure(runtime: Runtime, data: Mapping[str, Any]) -> None:
    """Row 3, path C: the response failed, unless its worker stored an outcome before it died."""
    key, response_id = str(data["key"]), str(data["id"])
    inline, blob = data.get("record"), data.get("record_blob")
    request = StoredPayload(
        inline=inline if isinstance(inline, bytes) else None, blob=blob if isinstance(blob, str) else None
    )
    storage = runtime.storage
    record = await _record_in(runtime, key, response_id, request)
    if record is None:
        await revive_or_leave(runtime, key, response_id)  # it may have left its chain before it was removed
        return
    while True:
        row = await read_row(storage, key, response_id)
        if row is None:
            if await _insert_failure(runtime, key, record, request):
                if takes_part(record, Disposition.FOREGROUND, runtime.app.options):
                    # It may have left its chain, and its row, before its worker died.
                    await revive_or_leave(runtime, key, response_id)
                return
        elif not is_unseen(row):
            if row.deleted:
                await remove_blobs(runtime, key, response_id)  # a snapshot was stored for it too late
            if row.turn or takes_part(record, Disposition.FOREGROUND, runtime.app.options):
                # Whoever ended it may have died before it started the next one.
                await revive_or_leave(runtime, key, response_id, ended=True)
            return
        else:
            try:
                await _fail_turn(runtime, row, record)
            except OwnershipLost:
                continue
            return


async def _record_in(runtime: Runtime, key: str, response_id: str, request: StoredPayload) -> RequestRecord | None:
    """The record of an entry; None if it cannot be read, and there is no turn in flight that has to end."""
    try:
        return RequestRecord.from_bytes(await runtime.storage.payloads.get(request))
    except NotFound as error:
        # As a rule it was refused or taken back, and its worker died before the entry was closed.
        unreadable: Exception = error
    except MalformedRecord as error:
        unreadable = error
    row = await read_row(runtime.storage, key, response_id)
    if row is not None and is_unseen(row):
        _log.error("response %s: its record cannot be read", response_id, exc_info=unreadable)
        return stand_in_record(row)
    _log.info("response %s: nothing of it is left to be ended: %s", response_id, unreadable)
    return None


async def _fail_turn(runtime: Runtime, row: ResponseRow, record: RequestRecord) -> None:
    """The turn leaves its chain; its client, who may not know of it, can go on from the one before."""
    snapshot = _failure(runtime, record)
    stored = await runtime.storage.payloads.put(row.partition_key, row.id, "snapshot", jsonio.dumps(snapshot))
    _, chain = await replace_with_outcome(
        runtime.storage,
        replace(row, status="failed", snapshot=stored, generation=1, attempt=1, error_code="server_error"),
        lambda chain: chain.without_turn(row.id, retract=True),
        runtime.settings.finish_patience,
    )
    runtime.telemetry.count_outcome(snapshot, row.disposition)
    if chain is None:
        await leave_to_others(runtime, row.partition_key, row.id)
    await start_active(runtime, chain)


def _failure(runtime: Runtime, record: RequestRecord) -> dict[str, Any]:
    return failed(
        record.snapshot(runtime.app.options.default_model, "in_progress"),
        "server_error",
        "The worker of this response stopped.",
        "crash_recovery",
    )


async def _insert_failure(runtime: Runtime, key: str, record: RequestRecord, request: StoredPayload) -> bool:
    """Also where a turn's worker died before it joined its chain: from here it cannot any more."""
    snapshot, storage = _failure(runtime, record), runtime.storage
    stored = await storage.payloads.put(key, record.response_id, "snapshot", jsonio.dumps(snapshot))
    row = first_row(key, record, Disposition.FOREGROUND, request, status="failed")
    try:
        await storage.rows.insert(replace(row, snapshot=stored, generation=1, attempt=1, error_code="server_error"))
    except AlreadyExists:
        return False
    runtime.telemetry.count_outcome(snapshot, Disposition.FOREGROUND)
    return True
