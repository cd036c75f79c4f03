"""The row of a response, in which all is decided: read, and changed by CAS against its etag.

A write that got no answer is tried again with the same mark, by which a refused one is told from one that was carried
out. A turn of a conversation is changed together with its chain, in one transaction.
"""

import logging
import uuid
from collections.abc import Callable

from protocol.response import TERMINAL_STATUSES
from resilience.retry import patiently
from storage.chains import CHAIN_ROW, ChainRow, own_chain_key
from storage.connection import Storage
from storage.errors import ChainMoved, NotFound, PreconditionFailed
from storage.rows import ResponseRow

_log = logging.getLogger("resilience.row")


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
