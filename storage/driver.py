"""The interface to a storage account, as the nouns need it.

All names are logical (`events`, `responses`, …); a driver adds the prefix it was configured with. Every call may raise
`StorageUnavailable` and `StorageRejected`; what else it raises stands with it. Durations are seconds; queue
delays and visibilities are kept by the service in whole seconds and are rounded up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from storage.errors import StorageRejected

#: What a table property can hold. Integers are signed 64 bit, datetimes are aware, None is not stored.
type Value = str | int | bool | float | bytes | datetime
type Properties = Mapping[str, Value | None]

EVENTS = "events"
PAYLOADS = "payloads"
RESPONSES = "responses"
WORKERS = "workers"
IDEMPOTENCY = "idempotency"
EXPIRY = "expiry"
WORK_QUEUE = "responses-work"
WATCH_QUEUE = "responses-watch"

CONTAINERS = (EVENTS, PAYLOADS)
TABLES = (RESPONSES, WORKERS, IDEMPOTENCY, EXPIRY)
QUEUES = (WORK_QUEUE, WATCH_QUEUE)

#: Limits that both drivers keep, the emulator in part does not: bytes of a block, operations of a transaction,
#: properties of an entity, UTF-16 units of a text and bytes of a binary property.
MAX_BLOCK = 64 * 1024 * 1024
MAX_OPERATIONS = 100
MAX_PROPERTIES = 252
MAX_TEXT = 32_768
MAX_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class AppendResult:
    """An append blob after an append: its length in bytes and its number of blocks."""

    length: int
    blocks: int


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob as it is: its length in bytes, its number of blocks (0 unless an append blob), whether it is leased."""

    length: int
    blocks: int
    lease_held: bool


@dataclass(frozen=True, slots=True)
class Entity:
    """A table row as read; `timestamp` is when the service last changed it, by its own clock, in UTC."""

    partition_key: str
    row_key: str
    properties: dict[str, Value]
    etag: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class Insert:
    """Insert a row; `AlreadyExists` if there is one."""

    partition_key: str
    row_key: str
    properties: Properties


@dataclass(frozen=True, slots=True)
class Upsert:
    """Insert a row or replace the one that is there, whatever its etag."""

    partition_key: str
    row_key: str
    properties: Properties


@dataclass(frozen=True, slots=True)
class Update:
    """Replace a row's properties, or merge into them, if its etag is still `etag` (`*`: any)."""

    partition_key: str
    row_key: str
    properties: Properties
    etag: str
    merge: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a row if its etag is still `etag` (None: any)."""

    partition_key: str
    row_key: str
    etag: str | None = None


type TableOperation = Insert | Upsert | Update | Delete


@dataclass(frozen=True, slots=True)
class QueueReceipt:
    """The right to change a message; every change gives a new one and spends the old.

    `hidden_until`: when the message becomes visible, by the service's clock; None where the service did not say.
    """

    message_id: str
    pop_receipt: str
    hidden_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class QueueMessage:
    """A message as received; `dequeue_count` counts this time too."""

    receipt: QueueReceipt
    text: str
    dequeue_count: int


class StorageDriver(Protocol):
    async def create_append_blob(self, container: str, name: str) -> None:
        """Create an empty append blob. Raises `AlreadyExists`."""
        ...

    async def append_block(
        self, container: str, name: str, data: bytes, *, position: int, lease_id: str | None
    ) -> AppendResult:
        """Append up to 64 MiB as one block if the blob is `position` bytes long and `lease_id` is its lease.

        Raises `PreconditionFailed` for another position or lease (also for a missing one on a leased blob) and when
        the blob has all the blocks it can have; `NotFound`.
        """
        ...

    async def read_range(self, container: str, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; nothing at or behind the end. Raises `NotFound`."""
        ...

    async def blob_info(self, container: str, name: str) -> BlobInfo:
        """Raises `NotFound`."""
        ...

    async def acquire_lease(self, container: str, name: str, lease_id: str) -> None:
        """Take an infinite lease under an id (a GUID) of one's own; doing it again is fine.

        Raises `LeaseHeld`, `NotFound`.
        """
        ...

    async def break_lease(self, container: str, name: str) -> None:
        """End whatever lease there is, at once; none is fine. Raises `NotFound`."""
        ...

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        """Give one's lease back. Raises `PreconditionFailed` when another or none is there, `NotFound`."""
        ...

    async def upload_blob(self, container: str, name: str, data: bytes) -> None:
        """Write a whole block blob, over any that is there. Raises `LeaseHeld`."""
        ...

    async def download_blob(self, container: str, name: str) -> bytes:
        """Raises `NotFound`."""
        ...

    async def delete_blob(self, container: str, name: str) -> None:
        """Raises `NotFound`, `LeaseHeld`."""
        ...

    async def list_blobs(self, container: str, prefix: str) -> list[str]:
        """The names that begin with `prefix`, in order."""
        ...

    async def get_entity(self, table: str, partition_key: str, row_key: str) -> Entity:
        """Raises `NotFound`."""
        ...

    async def insert_entity(self, table: str, operation: Insert) -> str:
        """The new etag. Raises `AlreadyExists`."""
        ...

    async def update_entity(self, table: str, operation: Update) -> str:
        """The new etag. Raises `PreconditionFailed`, `NotFound`."""
        ...

    def update_entity_blocking(self, table: str, operation: Update) -> str:
        """`update_entity` for a thread of its own; uses no event loop and shares no connection with it."""
        ...

    async def delete_entity(self, table: str, operation: Delete) -> None:
        """Raises `PreconditionFailed`, `NotFound`."""
        ...

    async def transact(self, table: str, operations: Sequence[TableOperation]) -> list[str]:
        """All of them, in one partition and on distinct rows, or none; the new etags in order, "" for deletes.

        Raises what the failing operation alone would raise: `AlreadyExists`, `PreconditionFailed`, `NotFound`.
        """
        ...

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
        """The rows that meet all conditions, ordered by key; with `select` only these properties of them.

        `partition_before`: only partitions that are less than it.
        """
        ...

    async def send_message(self, queue: str, text: str, *, delay: float = 0, once: bool = False) -> QueueReceipt:
        """Put a message that never expires, visible after `delay` seconds. The text travels as base64.

        Without an answer it is tried again, and may be there twice, unless `once`.
        """
        ...

    async def receive_message(self, queue: str, *, visibility: float) -> QueueMessage | None:
        """Take a message and hide it for `visibility` seconds (at least 1); None when there is none to see."""
        ...

    async def update_message(self, queue: str, receipt: QueueReceipt, *, delay: float) -> QueueReceipt:
        """Hide the message for `delay` seconds from now; its text stays.

        Raises `PreconditionFailed` when the receipt is spent, `NotFound` when the message is gone.
        """
        ...

    def update_message_blocking(self, queue: str, receipt: QueueReceipt, *, delay: float, text: str) -> QueueReceipt:
        """`update_message` for a thread of its own, with a new text; uses no event loop and shares no connection."""
        ...

    async def count_messages(self, queue: str) -> int:
        """About how many messages there are, hidden and delayed ones included; the service may count too many."""
        ...

    async def delete_message(self, queue: str, receipt: QueueReceipt) -> None:
        """Raises `PreconditionFailed` when the receipt is spent, `NotFound` when the message is gone."""
        ...

    async def service_time(self) -> datetime:
        """The storage service's clock, in UTC (the service gives whole seconds)."""
        ...

    async def ensure(self, containers: Sequence[str], tables: Sequence[str], queues: Sequence[str]) -> None:
        """Create what is missing."""
        ...

    async def ping(self) -> None:
        """One cheap call that shows whether storage answers."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def whole_seconds(duration: float, *, least: int = 0) -> int:
    """A duration as the queue service keeps it."""
    return max(least, math.ceil(duration))


def check_data(data: bytes) -> None:
    """Raise `StorageRejected` for a block that the service would not take."""
    if not 0 < len(data) <= MAX_BLOCK:
        raise StorageRejected(400, f"A block has 1 byte to 64 MiB, not {len(data)} bytes.")


def check_properties(properties: Properties) -> None:
    """Raise `StorageRejected` for what the service would not store."""
    if len(properties) > MAX_PROPERTIES:
        raise StorageRejected(400, f"{len(properties)} properties; a row has at most {MAX_PROPERTIES}.")
    for name, value in properties.items():
        if isinstance(value, str):
            # Few texts are long enough to be worth encoding.
            too_large = len(value) > MAX_TEXT // 2 and len(value.encode("utf-16-le")) > 2 * MAX_TEXT
        else:
            too_large = isinstance(value, bytes) and len(value) > MAX_BYTES
        if too_large:
            raise StorageRejected(400, f"The property {name} is larger than 64 KiB.")


def check_operations(operations: Sequence[TableOperation]) -> None:
    """Raise `StorageRejected` for a transaction that the service would not take."""
    if not 0 < len(operations) <= MAX_OPERATIONS:
        raise StorageRejected(400, f"A transaction has 1 to {MAX_OPERATIONS} operations, not {len(operations)}.")
    if len({operation.partition_key for operation in operations}) > 1:
        raise StorageRejected(400, "A transaction stays within one partition.")
    if len({operation.row_key for operation in operations}) < len(operations):
        raise StorageRejected(400, "A transaction changes each row only once.")
    for operation in operations:
        if not isinstance(operation, Delete):
            check_properties(operation.properties)
