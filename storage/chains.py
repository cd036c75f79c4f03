"""The chain row: whose turn it is in a conversation chain, and what its turns keep for one another.

Format: table `responses`, partition of the chain's responses, row `chain` for the chain of that partition (its
turns share it) or `chain-{response id}` for a response that is a chain of its own. Properties: `v`, `last`,
`alternate` and `ending` (response ids, "" for none), `turns` (how many were ever admitted), `active` and `pending`
(JSON lists of `[id, number, foreground, previous]`, oldest first; `active` has at most one), `metadata` (the handlers'
values, JSON), `of_conversation`, `deleted` and `deleted_by` (see `storage.conversations`).
Concurrency: every change is a compare-and-swap on the etag, and goes with the change of the response that causes it
in one transaction: both are stored or neither. Each write carries a mark, by which a refused repetition of a write
that was stored is known (see `storage.rows`).
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

import orjson

from storage.driver import RESPONSES, Delete, Entity, Insert, StorageDriver, TableOperation, Update, Value
from storage.errors import AlreadyExists, ChainMoved, MalformedRecord, NotFound, PreconditionFailed, StorageRejected
from storage.rows import ResponseRow, row_from_entity, row_key, row_properties
from storage.seam import Operation, Seam

CHAIN_VERSION = 1
CHAIN_ROW = "chain"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that runs or waits. `previous` is the chain's last turn when this one was admitted."""

    id: str
    number: int
    foreground: bool
    previous: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRow:
    """A chain as stored; without an etag it is not stored yet.

    Attributes:
        last: The newest turn, which the next one has to continue.
        alternate: A turn that may be continued as well: it was the newest, and its client may never have heard of it.
        ending: A turn that has its outcome while its handler may not be gone yet.
        active: The turn whose handler may run, as soon as no other is ending.
        pending: The turns that wait for it, in their order.
        turns: How many turns were ever admitted, counted together with what was put into the conversation.
        of_conversation: A turn with a conversation has joined, or items were put into one. It goes with that one.
        deleted: The conversation was deleted; no turn joins any more.
        deleted_by: The mark of the write that deleted it.
    """

    partition_key: str
    key: str = CHAIN_ROW
    etag: str = ""
    last: str = ""
    alternate: str = ""
    ending: str = ""
    active: Turn | None = None
    pending: tuple[Turn, ...] = ()
    turns: int = 0
    metadata: bytes = b""
    of_conversation: bool = False
    deleted: bool = False
    deleted_by: str = ""

    def with_turn(self, response_id: str, *, foreground: bool, previous: str = "") -> "ChainRow":
        """The chain with one more turn: it runs if nothing else does, else it waits.

        `previous`: the turn that it continues, where that is not the newest one.
        """
        turn = Turn(response_id, self.turns + 1, foreground, previous or self.last)
        joined = replace(self, last=response_id, alternate="", turns=turn.number)
        if self.active is None:
            return replace(joined, active=turn)
        return replace(joined, pending=(*self.pending, turn))

    def without_turn(self, response_id: str, *, retract: bool = False, runs_on: bool = False) -> "ChainRow":
        """The chain after a turn ended; if it ran, the oldest that waits may.

        `retract`: its client may not know of it. So the one before it can be continued again, if nothing followed.
        `runs_on`: its handler is not gone yet. The next one has to wait until it is (`wound_down`).
        """
        turn = self.turn(response_id)
        if turn is None:
            return self
        chain = self
        if retract and self.last == response_id:
            chain = replace(chain, last=turn.previous, alternate=response_id)
        if self.active == turn:
            chain = replace(chain, ending=response_id if runs_on else chain.ending)
            return replace(chain, active=self.pending[0] if self.pending else None, pending=self.pending[1:])
        return replace(chain, pending=tuple(each for each in self.pending if each != turn))

    def without_trace(self, response_id: str) -> "ChainRow":
        """The chain after a turn that nothing is left of: what came before it can be continued again."""
        turn = self.turn(response_id)
        if turn is None:
            return self
        return self.without_turn(response_id).continued_from(turn.previous, instead_of=response_id)

    def continued_from(self, before: str, *, instead_of: str) -> "ChainRow":
        """The chain when a turn that has ended is not to be continued any more, but the one before it."""

        def previous(turn: Turn) -> Turn:
            return replace(turn, previous=before) if turn.previous == instead_of else turn

        return replace(
            self,
            last=before if self.last == instead_of else self.last,
            alternate="" if self.alternate == instead_of else self.alternate,
            active=None if self.active is None else previous(self.active),
            pending=tuple(map(previous, self.pending)),
        )

    def wound_down(self, response_id: str) -> "ChainRow":
        """The chain after the handler of a turn that had ended is gone."""
        return replace(self, ending="") if self.ending == response_id else self

    def may_start(self, response_id: str) -> bool:
        """True if it is this turn's time."""
        return self.active is not None and self.active.id == response_id and not self.ending

    def turn(self, response_id: str) -> Turn | None:
        """The turn of that response, if it runs or waits."""
        return next((turn for turn in self.unfinished if turn.id == response_id), None)

    @property
    def unfinished(self) -> tuple[Turn, ...]:
        """The turns that run or wait, in their order."""
        return self.pending if self.active is None else (self.active, *self.pending)


def own_chain_key(response_id: str) -> str:
    """The RowKey of the chain that one response is for itself."""
    return f"{CHAIN_ROW}-{response_id}"


def chain_properties(chain: ChainRow) -> dict[str, Value | None]:
    """A chain as table properties."""
    return {
        "v": CHAIN_VERSION,
        "last": chain.last,
        "alternate": chain.alternate,
        "ending": chain.ending,
        "turns": chain.turns,
        "active": _listed(() if chain.active is None else (chain.active,)),
        "pending": _listed(chain.pending),
        "metadata": chain.metadata,
        "of_conversation": chain.of_conversation,
        "deleted": chain.deleted,
        "deleted_by": chain.deleted_by,
    }


def chain_from_entity(entity: Entity) -> ChainRow:
    """A table row as a `ChainRow`. Raises `MalformedRecord`."""
    properties: Mapping[str, Value] = entity.properties
    metadata = properties.get("metadata", b"")
    turns = properties.get("turns", 0)
    try:
        active = _turns(properties.get("active", "[]"))
        pending = _turns(properties.get("pending", "[]"))
    except (ValueError, TypeError) as error:
        raise MalformedRecord(f"The chain {entity.partition_key}/{entity.row_key} has unusable turns.") from error
    if not isinstance(metadata, bytes) or not isinstance(turns, int):
        raise MalformedRecord(f"The chain {entity.partition_key}/{entity.row_key} cannot be used.")
    return ChainRow(
        partition_key=entity.partition_key,
        key=entity.row_key,
        etag=entity.etag,
        last=str(properties.get("last", "")),
        alternate=str(properties.get("alternate", "")),
        ending=str(properties.get("ending", "")),
        active=active[0] if active else None,
        pending=pending,
        turns=turns,
        metadata=metadata,
        of_conversation=properties.get("of_conversation") is True,
        deleted=properties.get("deleted") is True,
        deleted_by=str(properties.get("deleted_by", "")),
    )


def _listed(turns: tuple[Turn, ...]) -> str:
    return orjson.dumps([[turn.id, turn.number, turn.foreground, turn.previous] for turn in turns]).decode()


def _turns(text: Value) -> tuple[Turn, ...]:
    return tuple(
        Turn(str(response_id), int(number), bool(foreground), str(previous))
        for response_id, number, foreground, previous in orjson.loads(str(text))
    )


class Chains:
    """The chain rows, and the changes of a response and its chain in one transaction."""

    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def read(self, partition_key: str, key: str = CHAIN_ROW) -> ChainRow:
        """The chain; an empty one where none is stored. Raises `MalformedRecord`."""
        call = self._driver.get_entity(RESPONSES, partition_key, key)
        try:
            return chain_from_entity(await self._seam.run(Operation.CHAIN_READ, call))
        except NotFound:
            return ChainRow(partition_key=partition_key, key=key)

    async def replace(self, chain: ChainRow) -> ChainRow:
        """Write a chain alone if its etag is still `chain.etag`. Raises `ChainMoved`."""
        mark = uuid.uuid4().hex
        try:
            etags = await self._seam.run(
                Operation.CHAIN_REPLACE, self._driver.transact(RESPONSES, [_chain_operation(chain, mark)])
            )
            return replace(chain, etag=etags[0])
        except (AlreadyExists, PreconditionFailed, NotFound) as refusal:
            call = self._driver.get_entity(RESPONSES, chain.partition_key, chain.key)
            try:
                entity = await self._seam.run(Operation.CHAIN_CONFIRM, call)
            except NotFound:
                raise ChainMoved from refusal
            if entity.properties.get("mark") != mark:
                raise ChainMoved from refusal
            return replace(chain, etag=entity.etag)

    async def insert_row(self, row: ResponseRow, chain: ChainRow, *, mark: str) -> tuple[ResponseRow, ChainRow]:
        """Insert a response and write its chain, both or neither; both with their new etags.

        Raises `AlreadyExists` when the response is there already, `ChainMoved` when the chain was changed.
        """
        operation = Insert(row.partition_key, row_key(row.id), row_properties(row) | {"mark": mark})
        return await self._change(Operation.ROW_INSERT, operation, row, chain, mark)

    async def replace_row(self, row: ResponseRow, chain: ChainRow, *, mark: str) -> tuple[ResponseRow, ChainRow]:
        """Write a response and its chain, both or neither; both with their new etags.

        Raises `PreconditionFailed` when the response was changed, `NotFound` when it is gone, `ChainMoved` when only
        the chain was changed.
        """
        operation = Update(row.partition_key, row_key(row.id), row_properties(row) | {"mark": mark}, row.etag)
        return await self._change(Operation.ROW_REPLACE, operation, row, chain, mark)

    async def delete_row(self, row: ResponseRow, chain: ChainRow) -> None:
        """Delete a response and write its chain, both or neither.

        Raises `PreconditionFailed`, `NotFound`, `ChainMoved` as `replace_row` does.
        """
        operation = Delete(row.partition_key, row_key(row.id), row.etag)
        await self._change(Operation.ROW_DELETE, operation, row, chain, uuid.uuid4().hex)

    async def delete_turn(self, row: ResponseRow, chain: ChainRow) -> None:
        """Delete the row of an ended turn, and its chain if nothing is left that runs, waits or can be continued.

        A chain that stays does not name the turn any more, and is written in any case: who found the turn there and
        is about to name it is refused. The chain of a conversation stays as it is: it goes with the conversation.

        Raises `PreconditionFailed`, `NotFound`, `ChainMoved` as `replace_row` does.
        """
        operation = Delete(row.partition_key, row_key(row.id), row.etag)
        if chain.of_conversation or chain.deleted or not chain.etag:
            await self._seam.run(Operation.ROW_DELETE, self._driver.delete_entity(RESPONSES, operation))
            return
        left = chain.continued_from("", instead_of=row.id)
        if left.unfinished or left.last or left.alternate:
            await self.delete_row(row, left)
            return
        both = [operation, Delete(chain.partition_key, chain.key, chain.etag)]
        try:
            await self._seam.run(Operation.ROW_DELETE, self._driver.transact(RESPONSES, both))
        except (PreconditionFailed, NotFound) as refusal:
            await self._told_apart(operation, row, chain, "", refusal)

    async def delete(self, partition_key: str, key: str) -> None:
        """Delete a chain, if there is one."""
        call = self._driver.delete_entity(RESPONSES, Delete(partition_key, key))
        try:
            await self._seam.run(Operation.CHAIN_DELETE, call)
        except NotFound:
            pass

    async def _change(
        self, name: Operation, operation: TableOperation, row: ResponseRow, chain: ChainRow, mark: str
    ) -> tuple[ResponseRow, ChainRow]:
        operations = [operation, _chain_operation(chain, mark)]
        try:
            etags = await self._seam.run(name, self._driver.transact(RESPONSES, operations))
            return replace(row, etag=etags[0]), replace(chain, etag=etags[1])
        except (AlreadyExists, PreconditionFailed, NotFound) as refusal:
            return await self._told_apart(operation, row, chain, mark, refusal)

    async def _told_apart(
        self,
        operation: TableOperation,
        row: ResponseRow,
        chain: ChainRow,
        mark: str,
        refusal: AlreadyExists | PreconditionFailed | NotFound,
    ) -> tuple[ResponseRow, ChainRow]:
        """What a refused transaction means: done already, the response was changed, or only the chain was."""
        call = self._driver.get_entity(RESPONSES, row.partition_key, row_key(row.id))
        try:
            entity = await self._seam.run(Operation.ROW_CONFIRM, call)
        except NotFound:
            if isinstance(operation, Insert):
                raise ChainMoved from refusal
            raise
        if entity.properties.get("mark") == mark:
            # Not `row`: an earlier try under this mark may have stored it in another form.
            try:
                return row_from_entity(entity), await self.read(chain.partition_key, chain.key)
            except StorageRejected as error:
                raise MalformedRecord("Stored, but its chain cannot be read.") from error
        if isinstance(operation, Insert):
            raise AlreadyExists from refusal
        if entity.etag != row.etag:
            raise PreconditionFailed from refusal
        raise ChainMoved from refusal


def _chain_operation(chain: ChainRow, mark: str) -> TableOperation:
    properties = chain_properties(chain) | {"mark": mark}
    if not chain.etag:
        return Insert(chain.partition_key, chain.key, properties)
    return Update(chain.partition_key, chain.key, properties, chain.etag)
