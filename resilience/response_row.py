"""The row of a response, in which all is decided: read, and changed by CAS against its etag.

A write that got no answer is tried again with the same mark, by which a refused one is told from one that was carried
out. A turn of a conversation is changed together with its chain, in one transaction.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from protocol.response import TERMINAL_STATUSES
from resilience.retry import STORAGE_RETRY_SECONDS, patiently
from storage.chains import CHAIN_ROW, ChainRow, own_chain_key
from storage.connection import Storage
from storage.errors import ChainMoved, MalformedRecord, NotFound, PreconditionFailed, StorageRejected
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.row")

_CHAIN_READS = 3
"""Times that a chain is read before an outcome is stored without it."""


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


class ChainUnreadable(MalformedRecord):
    """The chain of the response cannot be read: it is damaged, or a newer version wrote it, which can."""


def has_log(row: ResponseRow) -> bool:
    """True if clients may stream this response from storage."""
    return row.background and row.stream


def chain_key(row: ResponseRow) -> str:
    """The chain of a response: its partition's, or its own."""
    return CHAIN_ROW if row.turn else own_chain_key(row.id)


async def read_row(storage: Storage, partition_key: str, response_id: str) -> ResponseRow | None:
    """The row as it stands, or None."""
    try:
        return await storage.rows.read(partition_key, response_id)
    except NotFound:
        return None


async def read_chain(storage: Storage, partition_key: str, key: str = CHAIN_ROW) -> ChainRow:
    """The chain of a partition's turns, or of the response that `key` names (`chain_key`).

    Raises:
        ChainUnreadable: At best another version can.
        StorageUnavailable: No answer.
    """
    try:
        return await storage.chains.read(partition_key, key)
    except (MalformedRecord, StorageRejected) as error:
        raise ChainUnreadable from error


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
        ChainUnreadable: Nothing was changed.
        StorageUnavailable: No answer for `patience` seconds; the outcome is unknown.
    """
    mark = uuid.uuid4().hex
    chain = known
    async for attempt in patiently(patience):
        with attempt:
            while True:
                if chain is None:
                    chain = await read_chain(storage, wanted.partition_key, chain_key(wanted))
                try:
                    return await storage.chains.replace_row(wanted, change(chain), mark=mark)
                except MalformedRecord as error:  # it was stored, behind a lost reply: the next try finds it
                    raise ChainUnreadable from error
                except ChainMoved:
                    chain = None
                except (PreconditionFailed, NotFound) as refusal:
                    _log.warning(
                        "response %s: storage refused a status write of generation %d", wanted.id, wanted.generation
                    )
                    raise OwnershipLost(await read_row(storage, wanted.partition_key, wanted.id)) from refusal
    raise AssertionError("unreachable: tenacity returns or raises")


async def replace_with_outcome(
    storage: Storage,
    wanted: ResponseRow,
    leave: Callable[[ChainRow], ChainRow],
    patience: float,
    *,
    known: ChainRow | None = None,
    owner: str = "",
) -> tuple[ResponseRow, ChainRow | None]:
    """`replace_with_chain`, for a row that has its outcome; alone, and without a chain, where that cannot be read.

    For an outcome does not wait for its chain, which goes on naming the turn until somebody finds it there who can
    read it (`chain.revive`, `chain.unlock`): nobody may, while the worker that the row names is alive, for the chain
    does not tell that its handler cleans up. `owner`: the worker that runs a turn whose row names none.
    """
    again = AsyncRetrying(
        retry=retry_if_exception_type(ChainUnreadable),
        wait=wait_fixed(STORAGE_RETRY_SECONDS),
        stop=stop_after_attempt(_CHAIN_READS),
        reraise=True,
    )
    try:
        async for attempt in again:
            with attempt:
                return await replace_with_chain(storage, wanted, leave, patience, known=known)
    except ChainUnreadable:
        _log.exception("response %s: its chain cannot be read, the outcome is stored without it", wanted.id)
    return await replace_row(storage, replace(wanted, owner=owner or wanted.owner), patience), None
