"""Accepting a background response: recorded before it is answered (R1).

The start message is sent first, then request and log are stored, and the row is inserted last: the row is what makes
the response exist. So no row lacks a message, and no answered id lacks a row. A crash in between leaves a message
without a row, which its receiver drops, with the request and the empty log: nothing else leads to them yet.

*Eager start.* A process that serves the queue function too inserts the row as its own: claimed, at generation 1,
with the lease acquired and the run open in its ledger before. Its own start message attaches to the run when it
arrives; anybody else's reception of it leaves the run alone, because its owner lives.

*In a chain* the row is inserted together with the chain's row, which decides between any number of turns (see
`resilience.chain`). A turn that has to wait has no owner, and needs no start message: who ends the turn before it
starts it. It gets one all the same, which then starts nothing, where anything of it is stored outside its row.
"""

import asyncio
import logging
import uuid
from dataclasses import dataclass, replace
from typing import Any

from protocol import jsonio
from protocol.errors import ApiError, ConversationLocked, ConversationQueueFull
from protocol.response import fill_response
from resilience import chain as chains
from resilience.abandonment import abandon
from resilience.chain import Joining
from resilience.dispatch import Disposition
from resilience.handler_entry import answer_to
from resilience.history import History
from resilience.idempotency import RequestKey
from resilience.log_end import EMPTY
from resilience.ownership import Ownership
from resilience.placement import tenant_in
from resilience.record import RequestRecord
from resilience.remains import remove_blobs
from resilience.retry import patiently
from resilience.rows import first_row
from resilience.run_context import context_of
from resilience.run_entries import ForegroundEntry, background_entry, close_run
from resilience.runtime import Runtime
from storage.chains import ChainRow
from storage.errors import AlreadyExists, ChainMoved, PreconditionFailed, StorageError, StorageUnavailable
from storage.log import segment_name
from storage.payloads import INLINE_LIMIT, StoredPayload
from storage.rows import ResponseRow, Segment

_log = logging.getLogger("resilience.acceptance")

SLOW_ACCEPTANCE = 10.0
"""Seconds after which the start message may have been given up for lack of a row, and is sent again."""

_NO_REQUEST = StoredPayload(inline=b"")


class InsertUnanswered(StorageUnavailable):
    """Nobody knows whether the row of this response is there, or will be."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was recorded: the row, and the chain if it is a turn of one."""

    row: ResponseRow
    chain: ChainRow | None = None


async def accept(runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition) -> ResponseRow:
    """Record a response for the queue function to run.

    Raises:
        ApiError: Its chain does not take the turn, or the acceptor refused it; nothing is recorded.
        StorageError: It is not recorded; nothing of it will run.
    """
    turn = await _join(runtime, key, record, disposition)
    return await _record_or_abandon(runtime, key, record, disposition, turn)


async def _record_or_abandon(
    runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition, turn: Joining | None
) -> ResponseRow:
    try:
        return await _record(runtime, key, record, disposition, turn)
    except AlreadyExists:
        return await _as_accepted(runtime, key, record)
    except (ApiError, StorageError, asyncio.CancelledError) as error:
        _abandon_soon(runtime, first_row(key, record, disposition, _NO_REQUEST), error)
        raise


async def _as_accepted(runtime: Runtime, key: str, record: RequestRecord) -> ResponseRow:
    """The row under an id that was drawn for this very request, and that nobody else knows: it is ours.

    The reply to its insert was lost, and somebody has claimed it since. What came of it is not for this answer (B10).
    """
    async for attempt in patiently(runtime.settings.finish_patience):
        with attempt:
            row = await runtime.storage.rows.read(key, record.response_id)
            return replace(row, status="in_progress" if row.generation else "queued", snapshot=None)
    raise AssertionError("unreachable: tenacity returns or raises")


def _abandon_soon(
    runtime: Runtime,
    wanted: ResponseRow,
    error: BaseException,
    worker_id: str = "",
    request_key: RequestKey | None = None,
) -> None:
    unanswered = isinstance(error, InsertUnanswered | asyncio.CancelledError)
    abandoning = abandon(runtime, wanted, worker_id, request_key=request_key, unanswered=unanswered)
    runtime.spawn(abandoning, f"abandoning-{wanted.id}")


async def accept_again(runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition) -> ResponseRow:
    """Record a response that others may be recording under the same id: the insert of the row decides (I1).

    Raises:
        AlreadyExists: Another did.
        ApiError: As `accept`.
        StorageUnavailable: It may be recorded or not; made again, it is.
    """
    turn = await _join(runtime, key, record, disposition)
    try:
        return await _record(runtime, key, record, disposition, turn)
    except AlreadyExists:
        # It may even be deleted by now; what was made for it just now must not stay.
        await remove_blobs(runtime, key, record.response_id)
        raise


async def _record(
    runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition, turn: Joining | None
) -> ResponseRow:
    began = asyncio.get_running_loop().time()
    row = await _prepare(runtime, key, record, disposition, turn)
    return (await _insert(runtime, row, record, turn, began)).row


async def accept_and_own(
    runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition
) -> Ownership | ResponseRow:
    """Record a response as this process's own run; only its row, if it has to wait for its turn.

    Raises:
        ApiError: As `accept`.
        StorageError: It is not recorded; nothing of it will run.
    """
    began = asyncio.get_running_loop().time()
    turn = await _join(runtime, key, record, disposition)
    if turn is not None and turn.waits:
        return await _record_or_abandon(runtime, key, record, disposition, turn)
    opening = asyncio.ensure_future(runtime.worker.open(background_entry(key, record.response_id)))
    worker_id, lease_id = "", str(uuid.uuid4())
    try:
        prepared, opened = await asyncio.gather(
            _prepare(runtime, key, record, disposition, turn, lease_id=lease_id),
            opening,
            return_exceptions=True,
        )
        worker_id = opened if isinstance(opened, str) else ""
        row = replace(_both_good(prepared, opened), owner=worker_id)
        accepted = await _insert(runtime, row, record, turn, began)
    except ApiError:
        close_run(runtime, worker_id, record.response_id)
        raise
    except AlreadyExists:  # this worker was declared dead, and another has claimed the run
        close_run(runtime, worker_id, record.response_id)
        return await _as_accepted(runtime, key, record)
    except (StorageError, asyncio.CancelledError) as error:  # the latter: the request was ended, and what it began
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            worker_id = opening.result()
        wanted = replace(first_row(key, record, disposition, _NO_REQUEST), lease_id=lease_id)
        _abandon_soon(runtime, wanted, error, worker_id)
        raise
    if not accepted.row.owner:  # meanwhile others joined: it waits
        close_run(runtime, worker_id, record.response_id)
        return accepted.row
    return Ownership(runtime.storage, runtime.settings, accepted.row, EMPTY, recovery=False, chain=accepted.chain)


async def join_foreground(
    runtime: Runtime, key: str, record: RequestRecord, entry: ForegroundEntry, request_key: RequestKey | None = None
) -> Accepted:
    """Record a foreground turn of a chain, whose run is open in the ledger already; it runs or waits here.

    Raises:
        ApiError: Its chain does not take the turn; nothing is recorded.
        StorageError: It is not recorded.
    """
    row = first_row(key, record, Disposition.FOREGROUND, entry.request, status="in_progress")
    try:
        turn = await _join(runtime, key, record, Disposition.FOREGROUND)
        return await _insert(runtime, row, record, turn, asyncio.get_running_loop().time())
    except AlreadyExists as error:  # this worker was declared dead, and the turn with it
        raise StorageUnavailable from error
    except (StorageError, asyncio.CancelledError) as error:
        _abandon_soon(runtime, row, error, entry.worker_id, request_key)
        raise


async def _join(runtime: Runtime, key: str, record: RequestRecord, disposition: Disposition) -> Joining | None:
    """The turn's place in its chain as it is now; None for a response that is a chain of its own."""
    options = runtime.app.options
    if not chains.takes_part(record, disposition, options):
        return None
    foreground = not disposition.runs_in_background
    return await _place_in(runtime, await chains.read_for(runtime, key, record), record, foreground=foreground)


async def _place_in(runtime: Runtime, chain: ChainRow, record: RequestRecord, *, foreground: bool) -> Joining:
    """The turn's place in that chain; a turn that stands in its way has to be one that runs."""
    while True:
        try:
            return chains.join(chain, record, runtime.app.options, foreground=foreground)
        except (ConversationLocked, ConversationQueueFull):
            if not await chains.unlock(runtime, chain):
                raise
            chain = await runtime.storage.chains.read(chain.partition_key)


def _both_good(row: ResponseRow | BaseException, opened: str | BaseException) -> ResponseRow:
    if isinstance(row, BaseException):
        raise row
    if isinstance(opened, BaseException):
        raise opened
    return row


async def _prepare(
    runtime: Runtime,
    key: str,
    record: RequestRecord,
    disposition: Disposition,
    turn: Joining | None,
    lease_id: str = "",
) -> ResponseRow:
    """The row to insert, with its start message sent and all it points to in place; owned if there is a lease id."""
    storage = runtime.storage
    data = record.to_bytes()
    if turn is None or not turn.waits or bool(record.request.get("stream")) or len(data) > INLINE_LIMIT:
        await storage.work.send_start(tenant_in(key), record.response_id)
    request = await storage.payloads.put(key, record.response_id, "request", data)
    row = first_row(key, record, disposition, request)
    if lease_id:
        row = replace(row, status="in_progress", generation=1, attempt=1, lease_id=lease_id)
    if not row.stream:
        return row
    name = segment_name(key, record.response_id, 0, row.generation)
    await storage.log.ensure(name)  # another may be recording the same response
    if lease_id:
        await storage.log.acquire(name, lease_id)
    return replace(row, segments=(Segment(name=name, first_sequence=0),))


async def _insert(
    runtime: Runtime, row: ResponseRow, record: RequestRecord, turn: Joining | None, began: float
) -> Accepted:
    mark = uuid.uuid4().hex
    insert = _insert_alone if turn is None else _insert_turn
    try:
        accepted = await insert(runtime, row, record, turn, mark)
    except StorageUnavailable:
        # The outcome is unknown: the same mark tells an insert that did happen from one that did not.
        try:
            accepted = await insert(runtime, row, record, turn, mark)
        except StorageUnavailable as error:
            raise InsertUnanswered from error
    if accepted.row.background and asyncio.get_running_loop().time() - began > SLOW_ACCEPTANCE:
        await _send_again(runtime, accepted.row)
    return accepted


async def _insert_alone(
    runtime: Runtime, row: ResponseRow, record: RequestRecord, turn: Joining | None, mark: str
) -> Accepted:
    return Accepted(await runtime.storage.rows.insert(row, mark=mark))


async def _insert_turn(
    runtime: Runtime, row: ResponseRow, record: RequestRecord, turn: Joining | None, mark: str
) -> Accepted:
    """Insert the row with its chain, which may change any number of times before."""
    waiting: ResponseRow | None = None
    started = turn is not None and not turn.waits
    while True:
        if turn is None:
            chain = await runtime.storage.chains.read(row.partition_key)
            turn = await _place_in(runtime, chain, record, foreground=not row.background)
        if turn.waits:
            row, started = await _disowned(runtime, row), False
        elif not started and row.background:
            await _send_again(runtime, row)
            started = True
        if turn.steered and waiting is None:
            waiting = await _waiting_row(runtime, row, record)
            row = replace(row, request=waiting.request)
        wanted = replace(waiting if turn.steered and waiting else row, turn=turn.number, steered=turn.steered)
        try:
            inserted, chain = await runtime.storage.chains.insert_row(wanted, turn.chain, mark=mark)
        except ChainMoved:
            turn = None
            continue
        chains.steer(runtime, chain)
        runtime.telemetry.waiting_turns.record(len(chain.pending))
        return Accepted(inserted, chain)


async def _disowned(runtime: Runtime, row: ResponseRow) -> ResponseRow:
    """The row of a response that this process meant to run itself, as nobody's."""
    if not row.owner:
        return row
    if row.segments:
        try:
            await runtime.storage.log.release(row.segments[-1].name, row.lease_id)
        except PreconditionFailed:
            pass  # an earlier try has released it
    return replace(row, status="queued", generation=0, attempt=0, owner="", lease_id="")


async def _waiting_row(runtime: Runtime, row: ResponseRow, record: RequestRecord) -> ResponseRow:
    """The row of a turn that has to wait, as the acceptor wants it to look (S3)."""
    loop_time = asyncio.get_running_loop().time
    asked_at = loop_time()
    snapshot = await _accepted_snapshot(runtime, row, record) if row.background else None
    if row.request.blob is not None and loop_time() - asked_at > SLOW_ACCEPTANCE:
        # The message that was sent before it led to no row for so long that its request may have been removed (R2).
        await _send_again(runtime, row)
        request = await runtime.storage.payloads.put(row.partition_key, row.id, "request", record.to_bytes())
        row = replace(row, request=request)
    if snapshot is None:
        return row
    data = jsonio.dumps(snapshot)
    if len(data) > INLINE_LIMIT:
        # First: nothing else leads to its blob if the chain refuses the turn now, or this process dies before the row
        # (V10). Not even a message that was sent before: the acceptor may have taken longer than that one waits.
        await _send_again(runtime, row)
    stored = await runtime.storage.payloads.put(row.partition_key, row.id, "snapshot", data)
    return replace(row, snapshot=stored)


async def _accepted_snapshot(runtime: Runtime, row: ResponseRow, record: RequestRecord) -> dict[str, Any] | None:
    """What the app's acceptor answers for a turn that waits; None for the usual answer.

    Raises:
        ApiError: It refused the turn, or failed.
    """
    acceptor = runtime.app.acceptor
    if acceptor is None:
        return None
    disposition = Disposition(row.disposition)
    context = context_of(
        record,
        disposition,
        History(runtime.storage, row.partition_key, record, row.turn),
        chain_id=chains.chain_id(row.partition_key, record, runtime.app.options),
        is_steered_turn=True,
    )
    try:
        answer = await acceptor(jsonio.copy(record.request), context)
    except Exception as error:
        _log.exception("response %s: the acceptor failed", row.id)
        raise answer_to(error) from error
    if answer is None:
        return None
    base = record.snapshot(runtime.app.options.default_model, "queued")
    return {**fill_response(answer, base, status="queued"), "output": []}


async def _send_again(runtime: Runtime, row: ResponseRow) -> None:
    await runtime.storage.work.send_start(tenant_in(row.partition_key), row.id)
