"""Conversation chains: who may join one, whose turn it is, and what happens when a turn ends (S1 to S5).

A chain's turns share a partition, so that its row changes in one transaction with the row of the turn that joins or
ends, and that transaction decides every race. A turn takes part in the chain of its partition if it is stored and has
a conversation, or if chains are steerable; every other response is a chain of its own.

- *Join*: the row of the response is inserted together with the chain. Nothing runs: it becomes the active turn.
  Something runs: it is refused (`ConversationLocked`), or waits if chains are steerable.
- *End*: the row gets its outcome together with the chain, and the oldest turn that waits becomes the active one. So an
  active turn has no outcome (but see below), and a waiting one is never forgotten.
- *One handler at a time*: where the outcome comes before the handler of the active turn is gone (a cancel, a handler
  that cleans up after its last event), the chain keeps the turn as `ending`. The next one becomes the active turn, and
  begins when whoever ran the ended one has taken `ending` back.
- *A chain that cannot be read* (damaged, or of a newer version) keeps no turn from its end: the row gets its outcome
  alone. The chain goes on naming the turn, until somebody who can read it takes it out: the receiver of a start message
  of that turn (`revive`), or who would be refused because of it (`unlock`).
- *Start of the next*: a start message for a background turn; a foreground one is looked for by its own request. Who
  ended the turn sends it, after its handler is gone; a crash in between is found through that worker's ledger, whose
  entry is closed after it, and whoever meets a finished turn sends it again (`revive`).
"""

import asyncio
import hashlib
import logging
from dataclasses import dataclass, replace

from protocol.errors import (
    ConversationForkNotSupported,
    ConversationLocked,
    ConversationNotFound,
    ConversationQueueFull,
)
from protocol.response import TERMINAL_STATUSES
from resilience.claim import is_alive
from resilience.dispatch import Disposition
from resilience.options import ResponsesServerOptions
from resilience.placement import tenant_in
from resilience.record import RequestRecord
from resilience.response_row import ChainUnreadable, OwnershipLost, read_chain, read_row, replace_row
from resilience.retry import STORAGE_RETRY_SECONDS
from resilience.runtime import Runtime
from storage.chains import ChainRow
from storage.errors import ChainMoved, MalformedRecord, StorageUnavailable
from storage.rows import ResponseRow

MAX_PENDING = 9
"""Turns that may wait in one chain (S5)."""

_ID_LENGTH = 32

INSURANCE_DELAY = 5.0
"""Seconds until the message is seen that starts the next turn if who takes one out of its chain dies before."""

_LEFT_TO_OTHERS = 60.0
"""Seconds until others are asked for what this process, or its version, cannot do."""

_log = logging.getLogger("resilience.chain")


def takes_part(record: RequestRecord, disposition: Disposition, options: ResponsesServerOptions) -> bool:
    """True for a turn of its partition's chain, false for a response that is a chain of its own."""
    stored = disposition is not Disposition.TRANSIENT
    return stored and (bool(record.conversation) or options.steerable_conversations)


def chain_id(partition_key: str, record: RequestRecord, options: ResponsesServerOptions) -> str:
    """The opaque id that all turns of a chain share (S1), the same in every attempt and on every worker."""
    shared = record.conversation or options.steerable_conversations
    text = partition_key if shared else f"{partition_key}/{record.response_id}"
    return f"chain_{hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]}"


@dataclass(frozen=True, slots=True)
class Joining:
    """A turn's place in its chain, as long as nobody changes the chain."""

    chain: ChainRow
    number: int
    steered: bool
    """True if it is queued behind another turn (S3)."""

    @property
    def waits(self) -> bool:
        """True unless its handler may begin at once."""
        return self.steered or bool(self.chain.ending)


def join(chain: ChainRow, record: RequestRecord, options: ResponsesServerOptions, *, foreground: bool) -> Joining:
    """The chain with this turn.

    Raises:
        ConversationNotFound: The conversation was deleted.
        ConversationForkNotSupported: The turn continues another one than the chain's last (S4).
        ConversationLocked: Another turn runs, and chains are not steerable (S2).
        ConversationQueueFull: `MAX_PENDING` turns wait already (S5).
    """
    if chain.deleted:
        raise ConversationNotFound(record.conversation or None)
    previous = record.previous_response_id
    # A chain that is not stored yet begins with what was made before chains were steerable.
    if previous and chain.turns and previous not in (chain.last, chain.alternate):
        raise ConversationForkNotSupported
    if chain.active is not None:
        if not options.steerable_conversations:
            raise ConversationLocked
        if len(chain.pending) >= MAX_PENDING:
            raise ConversationQueueFull
    own = replace(chain, of_conversation=chain.of_conversation or bool(record.conversation))
    joined = own.with_turn(record.response_id, foreground=foreground, previous=previous)
    return Joining(joined, joined.turns, chain.active is not None)


async def read_for(runtime: Runtime, partition_key: str, record: RequestRecord) -> ChainRow:
    """The chain that a new turn joins; the first turn of a fresh partition needs no look."""
    if record.conversation or record.previous_response_id:
        return await runtime.storage.chains.read(partition_key)
    return ChainRow(partition_key=partition_key)


def steer(runtime: Runtime, chain: ChainRow) -> None:
    """Tell the active turn, if it runs in this process, that others wait behind it (S3)."""
    if chain.active is None:
        return
    running = runtime.running.get(chain.active.id)
    if running is not None:
        running.steered(len(chain.pending))


async def start_active(runtime: Runtime, chain: ChainRow | None) -> None:
    """Start the turn that may run now. Sent twice it does no harm: a claim decides."""
    if chain is None or chain.active is None or chain.ending:
        return
    if chain.active.foreground:
        runtime.turns.tell(chain.active.id)
        return
    await runtime.storage.work.send_start(tenant_in(chain.partition_key), chain.active.id)
    runtime.start_soon(chain.partition_key, chain.active.id)


async def is_wound_down_elsewhere(runtime: Runtime, row: ResponseRow) -> bool:
    """True while the worker that ended this turn lives: it starts the next one, after its handler is gone."""
    if not row.owner or runtime.worker.is_current(row.owner):
        return False
    return await is_alive(runtime.storage, row.owner)


async def revive(runtime: Runtime, partition_key: str, gone: str, *, ended: bool = False) -> None:
    """Start the active turn of a chain one of whose turns was found finished: who ended it may have died before.

    `gone` is that turn; its handler does not run any more. `ended`: its row has an outcome, so it leaves the chain here
    if it is still there: who ended it could not read the chain.

    Raises:
        ChainUnreadable: This one cannot, either.
    """
    while True:
        chain = await read_chain(runtime.storage, partition_key)
        left = (_without_ended(chain, gone) if ended else chain).wound_down(gone)
        if left != chain:
            try:
                left = await runtime.storage.chains.replace(left)
            except ChainMoved:
                continue
        if left.active is None or left.active.id != gone:  # else its message would lead here again
            await start_active(runtime, left)
        return


async def unlock(runtime: Runtime, chain: ChainRow) -> bool:
    """Take out an active turn that has ended, of which the chain was not told; false if it has not, or is in a handler.

    True also if others changed the chain meanwhile.
    """
    if chain.active is None:
        return False
    ended = chain.active.id
    try:
        row = await read_row(runtime.storage, chain.partition_key, ended)
    except MalformedRecord:
        return False
    # A row that is gone went after this chain was written, or never was told to it: the etag tells.
    if row is not None and (row.status not in TERMINAL_STATUSES or await _is_in_handler(runtime, row)):
        return False
    # First: nothing else leads to the next turn if this process dies behind the write.
    await runtime.storage.work.send_start(tenant_in(chain.partition_key), ended, delay=INSURANCE_DELAY, late=True)
    try:
        left = await runtime.storage.chains.replace(_without_ended(chain, ended))
    except ChainMoved:
        return True
    await start_active(runtime, left)
    return True


def _without_ended(chain: ChainRow, ended: str) -> ChainRow:
    """The chain without a turn that it was not told the end of.

    Nor is it known whether the client of a foreground one was: it may go on from that, or from the one before.
    """
    turn = chain.turn(ended)
    return chain.without_turn(ended, retract=turn is not None and turn.foreground)


async def _is_in_handler(runtime: Runtime, row: ResponseRow) -> bool:
    """True while the handler of a turn that has its outcome may clean up."""
    return row.id in runtime.running or await is_wound_down_elsewhere(runtime, row)


async def revive_or_leave(runtime: Runtime, partition_key: str, gone: str, *, ended: bool = False) -> None:
    """`revive`; a chain that cannot be read here is left to whoever receives a message later."""
    try:
        await revive(runtime, partition_key, gone, ended=ended)
    except ChainUnreadable:
        _log.exception("response %s: its chain cannot be read, the next turn is left to others", gone)
        await leave_to_others(runtime, partition_key, gone)


async def leave_to_others(runtime: Runtime, partition_key: str, gone: str, *, delay: float = _LEFT_TO_OTHERS) -> None:
    """Ask others, of another version maybe, to begin the turn behind a finished one, whose handler is gone.

    Its row names nobody any more, for whom they would wait.
    """
    row = await read_row(runtime.storage, partition_key, gone)
    while row is not None and row.owner and row.status in TERMINAL_STATUSES:
        try:
            row = await replace_row(runtime.storage, replace(row, owner=""), runtime.settings.finish_patience)
        except OwnershipLost as lost:
            row = lost.row  # deleted at this moment: its marker names the same worker
    await runtime.storage.work.send_start(tenant_in(partition_key), gone, delay=delay, late=True)


async def revive_stubbornly(runtime: Runtime, partition_key: str, gone: str, *, ended: bool = False) -> None:
    """`revive_or_leave`, however long storage does not answer."""
    while True:
        try:
            await revive_or_leave(runtime, partition_key, gone, ended=ended)
            return
        except StorageUnavailable:
            await asyncio.sleep(STORAGE_RETRY_SECONDS)
