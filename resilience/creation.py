"""Making a response: admitted, then run here in the foreground, or accepted for the background.

Once per idempotency key.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from protocol import ids
from protocol.errors import ApiError, PreviousResponseNotFound, ResponseDeleted
from protocol.response import strip_internal
from resilience import acceptance, chain
from resilience.background_runs import BackgroundRuns
from resilience.conversations import refuse_deleted
from resilience.dispatch import Disposition, decide
from resilience.foreground_record import ForegroundRecord
from resilience.foreground_run import ForegroundRun
from resilience.idempotency import RequestKey, hash_of
from resilience.log_context import bound
from resilience.outcome import terminal_frames
from resilience.placement import partition_key, tenant_of
from resilience.record import RequestRecord
from resilience.response_row import has_log, read_row
from resilience.rows import is_unseen
from resilience.run_entries import ForegroundEntry, close_run, open_foreground
from resilience.run_watch import RunWatch
from resilience.runtime import Runtime
from resilience.snapshots import snapshot_of
from resilience.turn_record import TurnRecord
from storage.errors import AlreadyExists
from storage.rows import ResponseRow

_REMADE_AFTER = 2.0
"""Seconds after which a background response that its key promises, and that is not there, is made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A validated ``POST /responses``.

    Attributes:
        request: The body.
        principal: Who sends it.
        client_headers: Its ``x-client-*`` headers, names in lower case.
        query_parameters: Its query.
        idempotency_key: Its ``Idempotency-Key``, "" for none (I1).
        trace_headers: Its ``traceparent`` and ``tracestate``, as far as there are any.
    """

    request: dict[str, Any]
    principal: str
    client_headers: Mapping[str, str]
    query_parameters: Mapping[str, str]
    idempotency_key: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that may become a response, and where that would lie."""

    record: RequestRecord
    disposition: Disposition
    tenant: str
    request_key: RequestKey | None
    leave_at: float
    """Loop time at which its run has to leave: the platform counts from the request, whatever it waited for (R13)."""

    @property
    def partition_key(self) -> str:
        return partition_key(self.tenant, self.record.response_id)


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A background response that was recorded just now."""

    row: ResponseRow
    record: RequestRecord


@dataclass(frozen=True, slots=True)
class _Known:
    """The response that an idempotency key stands for already."""

    row: ResponseRow


type _Made = ForegroundRun | _Accepted | _Known


class Creation:
    """Makes the responses of a process."""

    def __init__(self, runtime: Runtime, background: BackgroundRuns, watch: RunWatch) -> None:
        self._runtime = runtime
        self._watch = watch
        self._background = background
        self._draining = False

    def drain(self) -> None:
        """What begins from now on has to leave at once."""
        self._draining = True

    async def answer(self, call: Call, disconnected: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The response for a client that does not stream: final in the foreground, accepted in the background."""
        made = await self._make_once(await self._admit(call))
        if isinstance(made, ForegroundRun):
            return await self._result(made, disconnected)
        if isinstance(made, _Known):
            return strip_internal(await snapshot_of(self._runtime, _undeleted(made.row)))
        if made.row.snapshot is not None:  # the acceptor's answer
            return strip_internal(await snapshot_of(self._runtime, made.row))
        # B10: whatever came of it meanwhile, this answer is about its acceptance.
        return strip_internal(made.record.snapshot(self._runtime.app.options.default_model, made.row.status))

    async def stream(self, call: Call) -> AsyncGenerator[bytes]:
        """The frames of the response for a client that streams."""
        made = await self._make_once(await self._admit(call))
        if isinstance(made, ForegroundRun):
            return _frames_of(made)
        if isinstance(made, _Accepted) or has_log(_undeleted(made.row)):
            return self._runtime.tails.follow(made.row, -1)
        return _ended(await snapshot_of(self._runtime, made.row))

    async def _admit(self, call: Call) -> _Admitted:
        request = call.request
        disposition = decide(
            store=request.get("store") is not False,
            background=bool(request.get("background")),
            resilient_background=self._runtime.app.options.resilient_background,
        )
        tenant = tenant_of(call.principal)
        record = RequestRecord(
            response_id=_new_id(request),
            created_at=self._runtime.now(),
            principal=call.principal,
            request=request,
            client_headers=dict(call.client_headers),
            query_parameters=dict(call.query_parameters),
            agent_reference=request.get("agent_reference"),
            request_key=hash_of(call.idempotency_key),
            trace_context=self._runtime.telemetry.accept(call.trace_headers),
        )
        if record.conversation and disposition is Disposition.TRANSIENT:  # it joins no chain that could refuse it
            await refuse_deleted(self._runtime, partition_key(tenant, record.response_id), record.conversation)
        # What is not stored cannot be answered with again: there a key has nothing to stand for.
        keyed = call.idempotency_key and disposition is not Disposition.TRANSIENT
        key = RequestKey(self._runtime, tenant, call.idempotency_key, request) if keyed else None
        leave_at = asyncio.get_running_loop().time() + self._runtime.settings.handover_after
        return _Admitted(record, disposition, tenant, key, leave_at)

    async def _make_once(self, admitted: _Admitted) -> _Made:
        with bound(response_id=admitted.record.response_id):
            return await self._make_by_key(admitted)

    async def _make_by_key(self, admitted: _Admitted) -> _Made:
        try:
            await self._check_predecessor(admitted)
        except PreviousResponseNotFound:
            # The response may have been made when its predecessor was still there (I1).
            known = await self._made_before(admitted)
            if known is None:
                raise
            return known
        if admitted.request_key is None:
            return await self._make(admitted)
        if admitted.disposition.runs_in_background:
            return await self._accept_once(admitted, admitted.request_key)
        return await self._run_once(admitted, admitted.request_key)

    async def _check_predecessor(self, admitted: _Admitted) -> None:
        previous = admitted.record.previous_response_id
        if not previous:
            return
        row = await read_row(self._runtime.storage, partition_key(admitted.tenant, previous), previous)
        steerable = self._runtime.app.options.steerable_conversations
        if row is None or row.deleted or (is_unseen(row) and not steerable):
            raise PreviousResponseNotFound(previous)

    async def _make(self, admitted: _Admitted) -> _Made:
        if not admitted.disposition.runs_in_background:
            return await self._begin_foreground(admitted)
        record = admitted.record
        if self._runtime.settings.eager_start and self._background.has_room():
            row = await self._background.accept(admitted.partition_key, record, admitted.disposition)
        else:
            row = await acceptance.accept(self._runtime, admitted.partition_key, record, admitted.disposition)
        return _Accepted(row, record)

    # -- with an idempotency key ------------------------------------------------------------------------------------

    async def _accept_once(self, admitted: _Admitted, key: RequestKey) -> _Made:
        """Whoever inserts the row made the response; the id is the claim's.

        So that all try to insert the same one.
        """
        standing = await key.claim(admitted.partition_key, admitted.record.response_id)
        record = admitted.record if standing is None else replace(admitted.record, response_id=standing)
        where = partition_key(admitted.tenant, record.response_id)
        while True:
            if standing is not None:
                row = await key.row(where, record.response_id, patience=_REMADE_AFTER)
                if row is not None:
                    return _Known(row)
            try:
                row = await acceptance.accept_again(self._runtime, where, record, admitted.disposition)
                return _Accepted(row, record)
            except AlreadyExists:
                standing = record.response_id
            except ApiError:
                # Its chain goes on from it: another made it meanwhile. Or it was refused: the claim stays, for another
                # may be making it at this moment, and the insert of its row has to decide between all who try.
                known = await read_row(self._runtime.storage, where, record.response_id)
                if known is not None:
                    return _Known(known)
                raise

    async def _made_before(self, admitted: _Admitted) -> _Known | None:
        """The response that its key stands for, without making one."""
        key = admitted.request_key
        standing = await key.standing() if key is not None else None
        if key is None or standing is None:
            return None
        if admitted.disposition.runs_in_background:
            row = await key.row(partition_key(admitted.tenant, standing), standing, patience=_REMADE_AFTER)
        else:
            row = await self._await_foreground(admitted, key, standing)
        return None if row is None else _Known(row)

    async def _run_once(self, admitted: _Admitted, key: RequestKey) -> _Made:
        """The ledger's entry is older than the claim: a claim without a response always gets one, or is given up."""
        while True:
            entry = await open_foreground(self._runtime, admitted.partition_key, admitted.record)
            try:
                standing = await key.claim(admitted.partition_key, admitted.record.response_id, entry.worker_id)
            except BaseException:  # it may be claimed: whoever finds it so would wait for ever
                await self._withdraw(admitted, entry)
                raise
            if standing is None:
                return await self._begin_foreground(admitted, entry)
            close_run(self._runtime, entry.worker_id, admitted.record.response_id)
            if entry.request.blob is not None:
                await self._runtime.storage.payloads.delete_all(admitted.partition_key, admitted.record.response_id)
            row = await self._await_foreground(admitted, key, standing)
            if row is not None:
                return _Known(row)
            # An id is claimed for once: a claim of it that comes late is nobody's.
            admitted = replace(admitted, record=replace(admitted.record, response_id=_new_id(admitted.record.request)))

    async def _await_foreground(self, admitted: _Admitted, key: RequestKey, response_id: str) -> ResponseRow | None:
        where = partition_key(admitted.tenant, response_id)
        return await key.foreground_row(where, response_id, until=admitted.leave_at)

    # -- in the foreground ------------------------------------------------------------------------------------------

    async def _begin_foreground(self, admitted: _Admitted, entry: ForegroundEntry | None = None) -> ForegroundRun:
        """Start a foreground run, as a turn of its chain if it takes part in one.

        The ledger's entry is older than the turn: a turn whose worker dies always leaves its chain.
        """
        runtime, key, record = self._runtime, admitted.partition_key, admitted.record
        if not chain.takes_part(record, admitted.disposition, runtime.app.options):
            stored = ForegroundRecord(
                runtime, key, record, admitted.disposition, entry=entry, request_key=admitted.request_key
            )
            return self._start_foreground(admitted, stored)
        entry = entry or await open_foreground(runtime, key, record)
        try:
            turn = await acceptance.join_foreground(runtime, key, record, entry, admitted.request_key)
        except ApiError:
            await self._withdraw(admitted, entry)
            raise
        assert turn.chain is not None
        stored = TurnRecord(runtime, record, turn.row, turn.chain, entry, admitted.request_key)
        return self._start_foreground(admitted, stored)

    async def _withdraw(self, admitted: _Admitted, entry: ForegroundEntry) -> None:
        """Nothing came of the request: its key is free again, and only then its entry is closed."""
        refused = ForegroundRecord(
            self._runtime,
            admitted.partition_key,
            admitted.record,
            admitted.disposition,
            entry=entry,
            request_key=admitted.request_key,
        )
        try:
            await refused.drop()
        finally:
            await refused.leave()

    def _start_foreground(self, admitted: _Admitted, stored: ForegroundRecord) -> ForegroundRun:
        response_id = admitted.record.response_id
        run = ForegroundRun(
            self._runtime,
            admitted.partition_key,
            admitted.record,
            admitted.disposition,
            stored,
            admitted.leave_at,
        )
        if self._draining:
            run.hand_over()  # it was on its way in when the drain began: nobody else would tell it
        self._runtime.running[response_id] = run
        self._watch.add(admitted.partition_key, response_id, background=False, in_chain=isinstance(stored, TurnRecord))
        self._runtime.spawn(self._execute(run, response_id, admitted.leave_at), f"run-{response_id}")
        return run

    async def _execute(self, run: ForegroundRun, response_id: str, leave_at: float) -> None:
        # The platform would end the whole process at its time limit, and with it this run (R13).
        time_limit = asyncio.get_running_loop().call_at(leave_at, run.hand_over)
        try:
            await run.execute()
        finally:
            time_limit.cancel()
            self._watch.remove(response_id)
            self._runtime.running.pop(response_id, None)

    async def _result(self, run: ForegroundRun, disconnected: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The run's result; a client that goes away meanwhile cancels it (B17)."""
        result = asyncio.ensure_future(run.result())
        while not result.done():
            await asyncio.wait({result}, timeout=self._runtime.settings.disconnect_poll_interval)
            if not result.done() and await disconnected():
                run.disconnect()
                break
        return await result


async def _frames_of(run: ForegroundRun) -> AsyncGenerator[bytes]:
    try:
        async for frame in run.frames():
            yield frame
    finally:
        # Whether the client went away or the stream is over: after the end it changes nothing.
        run.disconnect()


async def _ended(snapshot: dict[str, Any]) -> AsyncGenerator[bytes]:
    """The shortest stream of a foreground response that has ended: it has no log to replay."""
    for _, frame in terminal_frames(snapshot, -1):
        yield frame


def _undeleted(row: ResponseRow) -> ResponseRow:
    if row.deleted:
        raise ResponseDeleted(row.id)
    return row


def _new_id(request: Mapping[str, Any]) -> str:
    """The id of a new response."""
    return ids.new_response_id(_partition(request))


def _partition(request: Mapping[str, Any]) -> str:
    """Where a new response lies: with its conversation, with its predecessor, or anywhere."""
    conversation, previous = request.get("conversation"), str(request.get("previous_response_id") or "")
    if conversation:
        return ids.derived_partition(str(conversation["id"]) if isinstance(conversation, dict) else str(conversation))
    return ids.partition_of(previous) if previous else ids.new_partition()
