"""A storage account in memory: the same answers as the service, for tests and simulations.

State lies in plain attributes, to be looked at. What the service decides by its clock (timestamps, visibility) is
decided here by the clock that was passed in. Every asynchronous call gives way to other tasks before it acts and
after, so that races can happen; what it does in between is atomic, also against blocking calls of another thread.
"""

import asyncio
import base64
import threading
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage.clock import Clock
from storage.driver import (
    AppendResult,
    BlobInfo,
    Delete,
    Entity,
    Insert,
    Properties,
    QueueMessage,
    QueueReceipt,
    TableOperation,
    Update,
    Value,
    check_data,
    check_operations,
    check_properties,
    whole_seconds,
)
from storage.errors import AlreadyExists, LeaseHeld, NotFound, PreconditionFailed

#: Blocks an append blob can have.
MAX_BLOCKS = 50_000


@dataclass
class MemoryBlob:
    append: bool
    data: bytearray = field(default_factory=bytearray)
    blocks: int = 0
    #: The id of the lease that holds, and of the last one there was (a broken lease can still be released).
    lease_id: str | None = None
    broken_lease_id: str | None = None


@dataclass
class MemoryMessage:
    message_id: str
    text: str
    visible_at: float
    pop_receipt: str
    dequeue_count: int = 0


type Table = dict[tuple[str, str], Entity]


class MemoryDriver:
    """The twin of `AzureDriver`; time comes from `clock`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.containers: defaultdict[str, dict[str, MemoryBlob]] = defaultdict(dict)
        self.tables: defaultdict[str, Table] = defaultdict(dict)
        self.queues: defaultdict[str, list[MemoryMessage]] = defaultdict(list)
        self._lock = threading.Lock()
        self._etags = 0

    # Blobs

    def _blob(self, container: str, name: str) -> MemoryBlob:
        blob = self.containers[container].get(name)
        if blob is None:
            raise NotFound
        return blob

    async def create_append_blob(self, container: str, name: str) -> None:
        async with self._turn():
            if name in self.containers[container]:
                raise AlreadyExists
            self.containers[container][name] = MemoryBlob(append=True)

    async def append_block(
        self, container: str, name: str, data: bytes, *, position: int, lease_id: str | None
    ) -> AppendResult:
        check_data(data)
        async with self._turn():
            blob = self._blob(container, name)
            if blob.lease_id != lease_id or len(blob.data) != position or not blob.append or blob.blocks >= MAX_BLOCKS:
                raise PreconditionFailed
            blob.data += data
            blob.blocks += 1
            return AppendResult(len(blob.data), blob.blocks)

    async def read_range(self, container: str, name: str, offset: int, length: int) -> bytes:
        async with self._turn():
            return bytes(self._blob(container, name).data[offset : offset + length])

    async def blob_info(self, container: str, name: str) -> BlobInfo:
        async with self._turn():
            blob = self._blob(container, name)
            return BlobInfo(len(blob.data), blob.blocks, blob.lease_id is not None)

    async def acquire_lease(self, container: str, name: str, lease_id: str) -> None:
        async with self._turn():
            blob = self._blob(container, name)
            if blob.lease_id not in (None, lease_id):
                raise LeaseHeld
            blob.lease_id, blob.broken_lease_id = lease_id, None

    async def break_lease(self, container: str, name: str) -> None:
        async with self._turn():
            blob = self._blob(container, name)
            if blob.lease_id is not None:
                blob.lease_id, blob.broken_lease_id = None, blob.lease_id

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        async with self._turn():
            blob = self._blob(container, name)
            if lease_id not in (blob.lease_id, blob.broken_lease_id):
                raise PreconditionFailed
            blob.lease_id = blob.broken_lease_id = None

    async def upload_blob(self, container: str, name: str, data: bytes) -> None:
        async with self._turn():
            old = self.containers[container].get(name)
            if old is not None and old.lease_id is not None:
                raise LeaseHeld
            self.containers[container][name] = MemoryBlob(append=False, data=bytearray(data))

    async def download_blob(self, container: str, name: str) -> bytes:
        async with self._turn():
            return bytes(self._blob(container, name).data)

    async def delete_blob(self, container: str, name: str) -> None:
        async with self._turn():
            if self._blob(container, name).lease_id is not None:
                raise LeaseHeld
            del self.containers[container][name]

    async def list_blobs(self, container: str, prefix: str) -> list[str]:
        async with self._turn():
            return sorted(name for name in self.containers[container] if name.startswith(prefix))

    # Rows

    async def get_entity(self, table: str, partition_key: str, row_key: str) -> Entity:
        async with self._turn():
            entity = self.tables[table].get((partition_key, row_key))
            if entity is None:
                raise NotFound
            return _selected(entity, None)

    async def insert_entity(self, table: str, operation: Insert) -> str:
        check_properties(operation.properties)
        return (await self._commit(table, [operation]))[0]

    async def update_entity(self, table: str, operation: Update) -> str:
        check_properties(operation.properties)
        return (await self._commit(table, [operation]))[0]

    def update_entity_blocking(self, table: str, operation: Update) -> str:
        check_properties(operation.properties)
        with self._lock:
            return self._apply(table, [operation])[0]

    async def delete_entity(self, table: str, operation: Delete) -> None:
        await self._commit(table, [operation])

    async def transact(self, table: str, operations: Sequence[TableOperation]) -> list[str]:
        check_operations(operations)
        return await self._commit(table, operations)

    async def _commit(self, table: str, operations: Sequence[TableOperation]) -> list[str]:
        async with self._turn():
            return self._apply(table, operations)

    def _apply(self, table: str, operations: Sequence[TableOperation]) -> list[str]:
        rows = self.tables[table]
        changed = {(op.partition_key, op.row_key): self._changed(rows, op) for op in operations}
        # Nothing is written before every operation has passed.
        for key, entity in changed.items():
            if entity is None:
                del rows[key]
            else:
                rows[key] = entity
        return ["" if entity is None else entity.etag for entity in changed.values()]

    def _changed(self, rows: Table, operation: TableOperation) -> Entity | None:
        old = rows.get((operation.partition_key, operation.row_key))
        if isinstance(operation, Insert) and old is not None:
            raise AlreadyExists
        if isinstance(operation, Update | Delete):
            if old is None:
                raise NotFound
            if operation.etag not in (None, "*", old.etag):
                raise PreconditionFailed
        if isinstance(operation, Delete):
            return None
        properties = _stored(operation.properties)
        if isinstance(operation, Update) and operation.merge and old is not None:
            properties = old.properties | properties
        self._etags += 1
        etag = f'W/"{self._etags}"'
        return Entity(operation.partition_key, operation.row_key, properties, etag, self._time())

    async def query_entities(
        self,
        table: str,
        *,
        partition_key: str | None = None,
        partition_before: str | None = None,
        row_key: str | None = None,
        row_key_prefix: str | None = None,
        timestamp_before: datetime | None = None,
        select: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[Entity]:
        async with self._turn():
            found = [
                entity
                for entity in self.tables[table].values()
                if partition_key in (None, entity.partition_key)
                and (partition_before is None or entity.partition_key < partition_before)
                and row_key in (None, entity.row_key)
                and entity.row_key.startswith(row_key_prefix or "")
                and (timestamp_before is None or entity.timestamp < timestamp_before)
            ]
            found.sort(key=lambda entity: (entity.partition_key, entity.row_key))
            return [_selected(entity, select) for entity in found[:limit]]

    # Queues

    async def send_message(self, queue: str, text: str, *, delay: float = 0, once: bool = False) -> QueueReceipt:
        async with self._turn():
            visible_at = self.clock.now() + whole_seconds(delay)
            message = MemoryMessage(str(uuid.uuid4()), text, visible_at, _new_receipt())
            self.queues[queue].append(message)
            return _receipt(message)

    async def receive_message(self, queue: str, *, visibility: float) -> QueueMessage | None:
        async with self._turn():
            now = self.clock.now()
            visible = [message for message in self.queues[queue] if message.visible_at <= now]
            if not visible:
                return None
            message = min(visible, key=lambda each: each.visible_at)
            message.visible_at = now + whole_seconds(visibility, least=1)
            message.pop_receipt = _new_receipt()
            message.dequeue_count += 1
            return QueueMessage(_receipt(message), message.text, message.dequeue_count)

    async def update_message(self, queue: str, receipt: QueueReceipt, *, delay: float) -> QueueReceipt:
        async with self._turn():
            return self._push(queue, receipt, delay)

    def update_message_blocking(self, queue: str, receipt: QueueReceipt, *, delay: float, text: str) -> QueueReceipt:
        with self._lock:
            pushed = self._push(queue, receipt, delay)
            self._message(queue, pushed).text = text
            return pushed

    async def count_messages(self, queue: str) -> int:
        async with self._turn():
            return len(self.queues[queue])

    async def delete_message(self, queue: str, receipt: QueueReceipt) -> None:
        async with self._turn():
            self.queues[queue].remove(self._message(queue, receipt))

    def _message(self, queue: str, receipt: QueueReceipt) -> MemoryMessage:
        for message in self.queues[queue]:
            if message.message_id == receipt.message_id:
                if message.pop_receipt != receipt.pop_receipt:
                    raise PreconditionFailed
                return message
        raise NotFound

    def _push(self, queue: str, receipt: QueueReceipt, delay: float) -> QueueReceipt:
        message = self._message(queue, receipt)
        message.visible_at = self.clock.now() + whole_seconds(delay)
        message.pop_receipt = _new_receipt()
        return _receipt(message)

    # The account

    async def service_time(self) -> datetime:
        async with self._turn():
            return self._time()

    async def ensure(self, containers: Sequence[str], tables: Sequence[str], queues: Sequence[str]) -> None:
        async with self._turn():
            return

    async def ping(self) -> None:
        async with self._turn():
            return

    async def aclose(self) -> None:
        return

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now(), UTC)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        with self._lock:
            yield
        await asyncio.sleep(0)


def _receipt(message: MemoryMessage) -> QueueReceipt:
    hidden_until = datetime.fromtimestamp(message.visible_at, UTC)
    return QueueReceipt(message.message_id, message.pop_receipt, hidden_until)


def _new_receipt() -> str:
    return base64.b64encode(uuid.uuid4().bytes).decode()


def _stored(properties: Properties) -> dict[str, Value]:
    return {
        name: value.astimezone(UTC) if isinstance(value, datetime) else value
        for name, value in properties.items()
        if value is not None
    }


def _selected(entity: Entity, select: Sequence[str] | None) -> Entity:
    """A copy, so that a reader cannot change what is stored."""
    properties = {name: value for name, value in entity.properties.items() if select is None or name in select}
    return Entity(entity.partition_key, entity.row_key, properties, entity.etag, entity.timestamp)
