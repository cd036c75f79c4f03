"""What a conversation has besides its responses: its own row, items that were put into it, items that were taken out.

Format: table `responses`, partition of the conversation's responses. All rows carry `v` and, from their last write,
`mark`:

- `conversation`: `id`, `created_at` (Unix seconds), `metadata` (JSON). A conversation that a response began by naming
  it has none until its metadata is set: its chain is its proof.
- `items-{number:010}`: items that were put in together, as one payload; the number is their place among the turns,
  from the counter `turns` of the chain. `put_by` is the mark of the write that put them in, which stays when one of
  them is taken out.
- `gone-{digest}`: the item of a turn with an id of that digest is no longer part of the conversation.
- `chain` (see `storage.chains`), with `of_conversation` true once a turn with the conversation joined or items were
  put in; with `deleted` true the conversation is gone for good, and this is the only row of it that stays. `deleted_by`
  is the mark of the write that deleted it.

Payloads over the limit are blobs `{partition}/conversation/items-{random}`.

Concurrency: every write but that of metadata goes with a write of the chain under its etag, in one transaction. So
it is refused once the conversation is deleted, and deleting is refused once a turn has joined. Metadata are a
compare-and-swap on the conversation's row, which the deletion takes away. A refused write reads its own row: if that
bears its mark, the refusal only answered the repetition of a write that was stored. Where others may have written that
row since, the mark stands in a property that they keep.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from storage.chains import CHAIN_ROW, CHAIN_VERSION, ChainRow, chain_from_entity, chain_properties
from storage.driver import (
    MAX_OPERATIONS,
    PAYLOADS,
    RESPONSES,
    Delete,
    Entity,
    Insert,
    StorageDriver,
    TableOperation,
    Update,
)
from storage.errors import AlreadyExists, ChainMoved, MalformedRecord, NotFound, PreconditionFailed
from storage.payloads import StoredPayload
from storage.rows import ROW_PREFIX, ResponseRow, row_from_entity
from storage.seam import Operation, Seam

CONVERSATION_VERSION = 1
CONVERSATION_ROW = "conversation"
ITEMS_PREFIX = "items-"
GONE_PREFIX = "gone-"

#: Common to the keys `chain` and `conversation`, so that one query reads both.
_HEAD_PREFIX = "c"


class ConversationOperation(StrEnum):
    READ = "conversation.read"
    INSERT = "conversation.insert"
    REPLACE = "conversation.replace"
    APPEND = "conversation.append"
    REMOVE = "conversation.remove"
    DELETE = "conversation.delete"
    CONFIRM = "conversation.confirm"
    CLEAN_UP = "conversation.clean_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRow:
    """A conversation as stored; without an etag it is not stored yet. `metadata` is JSON."""

    partition_key: str
    id: str
    created_at: int
    metadata: bytes = b"{}"
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemBatch:
    """Items that were put in together. `number` is their place among the turns, `put_by` the mark of that write."""

    partition_key: str
    number: int
    items: StoredPayload
    put_by: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What says whether there is such a conversation.

    Attributes:
        chain: Its chain; an empty one where none is stored.
        changed_at: When the chain was last written, by the service's clock; None if it never was.
    """

    chain: ChainRow
    changed_at: datetime | None = None
    conversation: ConversationRow | None = None
    deleted: bool = False

    @property
    def exists(self) -> bool:
        """True for a conversation that can be used."""
        return not self.deleted and (self.conversation is not None or bool(self.chain.etag))


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """All that a partition holds, as one query found it."""

    head: Head
    rows: tuple[ResponseRow, ...]
    batches: tuple[ItemBatch, ...]
    gone: frozenset[str]

    def has(self, item_id: object) -> bool:
        """False for an item that was taken out of the conversation."""
        return not self.gone or _digest(str(item_id)) not in self.gone


def batch_key(number: int) -> str:
    """The RowKey of a batch."""
    return f"{ITEMS_PREFIX}{number:010}"


def gone_key(item_id: str) -> str:
    """The RowKey that takes an item of a turn out of its conversation; ids of items may hold anything."""
    return f"{GONE_PREFIX}{_digest(item_id)}"


def _digest(item_id: str) -> str:
    return hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()


class Conversations:
    """The rows of conversations."""

    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def head(self, partition_key: str) -> Head:
        """The conversation's row and chain, in one query. Raises `MalformedRecord`."""
        call = self._driver.query_entities(RESPONSES, partition_key=partition_key, row_key_prefix=_HEAD_PREFIX)
        return _head(partition_key, await self._seam.run(ConversationOperation.READ, call))

    async def partition(self, partition_key: str) -> Partition:
        """Everything of a partition, in one query. Raises `MalformedRecord`."""
        call = self._driver.query_entities(RESPONSES, partition_key=partition_key)
        found = await self._seam.run(Operation.ROW_LIST, call)
        return Partition(
            head=_head(partition_key, found),
            rows=tuple(row_from_entity(entity) for entity in found if entity.row_key.startswith(ROW_PREFIX)),
            batches=tuple(_batch(entity) for entity in found if entity.row_key.startswith(ITEMS_PREFIX)),
            gone=frozenset(
                entity.row_key.removeprefix(GONE_PREFIX) for entity in found if entity.row_key.startswith(GONE_PREFIX)
            ),
        )

    async def batches(self, partition_key: str) -> tuple[ItemBatch, ...]:
        """What was put into a conversation. Raises `MalformedRecord`."""
        call = self._driver.query_entities(RESPONSES, partition_key=partition_key, row_key_prefix=ITEMS_PREFIX)
        return tuple(map(_batch, await self._seam.run(ConversationOperation.READ, call)))

    async def insert(self, conversation: ConversationRow, *, mark: str) -> ConversationRow:
        """Insert the row of a conversation with an id that is new; doing it again with the same mark is fine."""
        operation = _insert(conversation, mark)
        try:
            etag = await self._seam.run(ConversationOperation.INSERT, self._driver.insert_entity(RESPONSES, operation))
        except AlreadyExists:
            etag = await self._confirmed(conversation.partition_key, CONVERSATION_ROW, mark)
            if not etag:
                raise
        return replace(conversation, etag=etag)

    async def adopt(self, conversation: ConversationRow, chain: ChainRow, *, mark: str) -> None:
        """Insert the row of a conversation that has only a chain so far.

        Raises `ChainMoved` when the chain was changed or the row is there already.
        """
        operations = [_insert(conversation, mark), _touch(chain)]
        await self._transact(ConversationOperation.INSERT, operations, CONVERSATION_ROW, mark)

    async def replace(self, conversation: ConversationRow, *, mark: str) -> None:
        """Write the row if its etag is still that.

        Raises `PreconditionFailed` when somebody else changed it, `NotFound` when it is gone.
        """
        operation = Update(
            conversation.partition_key, CONVERSATION_ROW, _insert(conversation, mark).properties, conversation.etag
        )
        try:
            await self._seam.run(ConversationOperation.REPLACE, self._driver.update_entity(RESPONSES, operation))
        except PreconditionFailed:
            if not await self._confirmed(conversation.partition_key, CONVERSATION_ROW, mark):
                raise

    async def append(
        self, batch: ItemBatch, chain: ChainRow, *, mark: str, conversation: ConversationRow | None = None
    ) -> None:
        """Put items in, and count them in the chain; with `conversation` its row is inserted too.

        Raises `ChainMoved` when the chain was changed.
        """
        key = batch_key(batch.number)
        operations: list[TableOperation] = [
            Insert(batch.partition_key, key, _batch_properties(replace(batch, put_by=mark), mark)),
            _counting(replace(chain, turns=batch.number)),
        ]
        if conversation is not None:
            operations.append(_insert(conversation, mark))
        await self._transact(ConversationOperation.APPEND, operations, key, mark, "put_by")

    async def rewrite(self, batch: ItemBatch, chain: ChainRow, *, mark: str) -> None:
        """Write a batch that has lost an item. Raises `ChainMoved` when it or the chain was changed."""
        key = batch_key(batch.number)
        operations = [Update(batch.partition_key, key, _batch_properties(batch, mark), batch.etag), _touch(chain)]
        await self._transact(ConversationOperation.REMOVE, operations, key, mark)

    async def forget(self, stored: StoredPayload) -> None:
        """Delete the blob of items that no row points to any more, if they are in one."""
        if stored.blob is None:
            return
        try:
            call = self._driver.delete_blob(PAYLOADS, stored.blob)
            await self._seam.run(Operation.PAYLOAD_DELETE, call)
        except NotFound:
            pass

    async def leave_out(self, item_id: str, chain: ChainRow, *, mark: str) -> None:
        """Take an item of a turn out. Raises `ChainMoved` when the chain was changed, or it is out already."""
        key = gone_key(item_id)
        gone = Insert(chain.partition_key, key, {"v": CONVERSATION_VERSION, "mark": mark})
        await self._transact(ConversationOperation.REMOVE, [gone, _touch(chain)], key, mark)

    async def mark_deleted(self, head: Head, *, mark: str) -> None:
        """End the conversation: its row goes, its chain becomes the marker. Raises `ChainMoved` when either changed."""
        chain = head.chain
        marker = ChainRow(partition_key=chain.partition_key, turns=chain.turns, deleted=True, deleted_by=mark)
        properties = chain_properties(marker) | {"mark": mark}
        operations: list[TableOperation] = [
            Update(chain.partition_key, CHAIN_ROW, properties, chain.etag)
            if chain.etag
            else Insert(chain.partition_key, CHAIN_ROW, properties)
        ]
        if head.conversation is not None:
            operations.append(Delete(chain.partition_key, CONVERSATION_ROW, head.conversation.etag))
        await self._transact(ConversationOperation.DELETE, operations, CHAIN_ROW, mark, "deleted_by")

    async def clean_up(self, partition_key: str) -> None:
        """Delete what a deleted conversation has left; what is gone already is fine."""
        while keys := await self._left_in(partition_key):
            operations = [Delete(partition_key, key) for key in keys[:MAX_OPERATIONS]]
            try:
                await self._seam.run(ConversationOperation.CLEAN_UP, self._driver.transact(RESPONSES, operations))
            except NotFound:
                continue  # somebody else does the same

    async def _left_in(self, partition_key: str) -> list[str]:
        keys: list[str] = []
        for prefix in (ITEMS_PREFIX, GONE_PREFIX):
            call = self._driver.query_entities(
                RESPONSES, partition_key=partition_key, row_key_prefix=prefix, select=["v"]
            )
            keys += [entity.row_key for entity in await self._seam.run(ConversationOperation.CLEAN_UP, call)]
        return keys

    async def _transact(
        self,
        name: ConversationOperation,
        operations: Sequence[TableOperation],
        own_key: str,
        mark: str,
        marked: str = "mark",
    ) -> None:
        try:
            await self._seam.run(name, self._driver.transact(RESPONSES, operations))
        except (AlreadyExists, PreconditionFailed, NotFound) as refusal:
            if not await self._confirmed(operations[0].partition_key, own_key, mark, marked):
                raise ChainMoved from refusal

    async def _confirmed(self, partition_key: str, key: str, mark: str, marked: str = "mark") -> str:
        """The etag of the stored row if it bears `mark` in the property `marked`, else nothing."""
        call = self._driver.get_entity(RESPONSES, partition_key, key)
        try:
            entity = await self._seam.run(ConversationOperation.CONFIRM, call)
        except NotFound:
            return ""
        return entity.etag if entity.properties.get(marked) == mark else ""


def _insert(conversation: ConversationRow, mark: str) -> Insert:
    return Insert(
        conversation.partition_key,
        CONVERSATION_ROW,
        {
            "v": CONVERSATION_VERSION,
            "id": conversation.id,
            "created_at": conversation.created_at,
            "metadata": conversation.metadata,
            "mark": mark,
        },
    )


def _batch_properties(batch: ItemBatch, mark: str) -> dict[str, str | int | bytes | None]:
    return {
        "v": CONVERSATION_VERSION,
        "items_inline": batch.items.inline,
        "items_blob": batch.items.blob,
        "put_by": batch.put_by,
        "mark": mark,
    }


def _counting(chain: ChainRow) -> TableOperation:
    # A mark of its own: who wrote the chain before must not take it for theirs, with another count of turns.
    properties = chain_properties(chain) | {"of_conversation": True, "mark": uuid.uuid4().hex}
    if not chain.etag:
        return Insert(chain.partition_key, CHAIN_ROW, properties)
    return Update(chain.partition_key, CHAIN_ROW, properties, chain.etag)


def _touch(chain: ChainRow) -> TableOperation:
    """Nothing but the condition that the chain is still this one; only its etag changes."""
    return Update(chain.partition_key, CHAIN_ROW, {"v": CHAIN_VERSION}, chain.etag, merge=True)


def _head(partition_key: str, found: Sequence[Entity]) -> Head:
    chain = next((entity for entity in found if entity.row_key == CHAIN_ROW), None)
    own = next((entity for entity in found if entity.row_key == CONVERSATION_ROW), None)
    return Head(
        chain=ChainRow(partition_key=partition_key) if chain is None else chain_from_entity(chain),
        changed_at=None if chain is None else chain.timestamp,
        conversation=None if own is None else _conversation(own),
        deleted=chain is not None and chain.properties.get("deleted") is True,
    )


def _conversation(entity: Entity) -> ConversationRow:
    properties = entity.properties
    conversation_id, created_at = properties.get("id"), properties.get("created_at")
    metadata = properties.get("metadata")
    if not isinstance(conversation_id, str) or not isinstance(created_at, int) or not isinstance(metadata, bytes):
        raise MalformedRecord(f"The conversation of {entity.partition_key} cannot be used.")
    return ConversationRow(
        partition_key=entity.partition_key,
        id=conversation_id,
        created_at=created_at,
        metadata=metadata,
        etag=entity.etag,
    )


def _batch(entity: Entity) -> ItemBatch:
    inline, blob = entity.properties.get("items_inline"), entity.properties.get("items_blob")
    number = entity.row_key.removeprefix(ITEMS_PREFIX)
    if not number.isdecimal() or not (isinstance(inline, bytes) or isinstance(blob, str)):
        raise MalformedRecord(f"The items {entity.partition_key}/{entity.row_key} cannot be used.")
    return ItemBatch(
        partition_key=entity.partition_key,
        number=int(number),
        items=StoredPayload(
            inline=inline if isinstance(inline, bytes) else None, blob=blob if isinstance(blob, str) else None
        ),
        put_by=str(entity.properties.get("put_by", "")),
        etag=entity.etag,
    )
