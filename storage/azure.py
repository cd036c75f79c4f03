"""A storage account in Azure, or its emulator, through the SDKs.

Concurrency: the driver belongs to the event loop of its first call; only the calls named `blocking` may be made from
another thread, and have connections of their own. All services share one connection pool. Containers, tables and
queues are created before the first call of a process, once.

Retries: each call is tried a few times within seconds (`StorageSettings`), also when a try may have been executed. A
repeated write is harmless because every write has a condition, but its answer is then that of the second try:
`PreconditionFailed`, `AlreadyExists` or `NotFound` although the first one was stored. Sending a message has no
condition and may send two. The blocking calls are not retried.
"""

import asyncio
import base64
import binascii
import io
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from azure.data.tables import TableClient as BlockingTableClient
from azure.storage.blob.aio import BlobLeaseClient
from azure.storage.queue import QueueClient as BlockingQueueClient

from storage.azure_clients import LARGE_BODY, AzureClients, blocking_queue, blocking_table
from storage.azure_entities import condition, from_entity, mode, to_entity, to_filter, to_transaction
from storage.azure_errors import DRIVER_ERRORS, Statuses, answered, status_of, translated
from storage.azure_identity import BlockingCredential, Tokens
from storage.connection import StorageSettings
from storage.driver import (
    CONTAINERS,
    QUEUES,
    TABLES,
    WORKERS,
    AppendResult,
    BlobInfo,
    Delete,
    Entity,
    Insert,
    QueueMessage,
    QueueReceipt,
    TableOperation,
    Update,
    check_data,
    check_operations,
    check_properties,
    whole_seconds,
)
from storage.errors import AlreadyExists, LeaseHeld, NotFound, PreconditionFailed, StorageUnavailable

# What a status means depends on the call; 409 and 412 differ between the service and the emulator.
_CREATED: Statuses = {409: AlreadyExists, 412: AlreadyExists}
# A queue that exists already is answered with a success, which the SDK raises.
_ENSURED: Statuses = {204: AlreadyExists, 409: AlreadyExists}
_CONDITIONAL: Statuses = {404: NotFound, 409: PreconditionFailed, 412: PreconditionFailed}
_LEASED: Statuses = {404: NotFound, 409: LeaseHeld, 412: LeaseHeld}
_TRANSACTION: Statuses = {404: NotFound, 409: AlreadyExists, 412: PreconditionFailed}
_RECEIPT: Statuses = {400: PreconditionFailed, 404: NotFound}

type _MakeBlocking[T] = Callable[[StorageSettings, str, BlockingCredential | None], T]

#: Statuses of a read that has nothing to give.
_NOTHING = (304, 416)


class AzureDriver:
    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings
        self._open: AzureClients | None = None
        self._closed = False
        self._ready = False
        self._preparing = asyncio.Lock()
        self._tokens = Tokens()
        self._blocking_credential: BlockingCredential | None = None
        self._blocking_queues: dict[str, BlockingQueueClient] = {}
        self._blocking_tables: dict[str, BlockingTableClient] = {}
        self._blocking_lock = threading.Lock()

    def _clients(self) -> AzureClients:
        if self._closed:
            raise StorageUnavailable("The storage connection is closed.")
        if self._open is None:
            # Not before the first call: the pool belongs to the event loop that runs now.
            self._open = AzureClients(self._settings, self._tokens)
        return self._open

    async def _prepared(self) -> AzureClients:
        if not self._ready:
            async with self._preparing:
                if not self._ready:
                    await self.ensure(CONTAINERS, TABLES, QUEUES)
                    self._ready = True
        return self._clients()

    # Blobs

    async def create_append_blob(self, container: str, name: str) -> None:
        client = (await self._prepared()).blob(container, name)
        await answered(client.create_append_blob(if_none_match="*"), _CREATED)

    async def append_block(
        self, container: str, name: str, data: bytes, *, position: int, lease_id: str | None
    ) -> AppendResult:
        check_data(data)
        client = (await self._prepared()).blob(container, name)
        # The transport reads a large body in portions only if it is a file.
        body = data if len(data) <= LARGE_BODY else io.BytesIO(data)
        call = client.append_block(body, length=len(data), appendpos_condition=position, lease=lease_id)
        answer: Any = await answered(call, _CONDITIONAL)
        return AppendResult(int(answer["blob_append_offset"]) + len(data), int(answer["blob_committed_block_count"]))

    async def read_range(self, container: str, name: str, offset: int, length: int) -> bytes:
        if length <= 0:
            return b""
        client = (await self._prepared()).blob(container, name)
        try:
            return await (await client.download_blob(offset=offset, length=length)).readall()
        except DRIVER_ERRORS as error:
            if status_of(error) in _NOTHING:
                return b""
            raise translated(error, {404: NotFound}) from error

    async def blob_info(self, container: str, name: str) -> BlobInfo:
        client = (await self._prepared()).blob(container, name)
        found = await answered(client.get_blob_properties())
        return BlobInfo(found.size, found.append_blob_committed_block_count or 0, found.lease.state == "leased")

    async def acquire_lease(self, container: str, name: str, lease_id: str) -> None:
        client = (await self._prepared()).blob(container, name)
        await answered(BlobLeaseClient(client, lease_id).acquire(lease_duration=-1), _LEASED)

    async def break_lease(self, container: str, name: str) -> None:
        client = (await self._prepared()).blob(container, name)
        try:
            await BlobLeaseClient(client).break_lease(lease_break_period=0)
        except DRIVER_ERRORS as error:
            # There is no lease to break.
            if status_of(error) != 409:
                raise translated(error, {404: NotFound}) from error

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        client = (await self._prepared()).blob(container, name)
        await answered(BlobLeaseClient(client, lease_id).release(), _CONDITIONAL)

    async def upload_blob(self, container: str, name: str, data: bytes) -> None:
        client = (await self._prepared()).blob(container, name)
        await answered(client.upload_blob(data, length=len(data), overwrite=True), _LEASED)

    async def download_blob(self, container: str, name: str) -> bytes:
        client = (await self._prepared()).blob(container, name)
        return await answered((await answered(client.download_blob())).readall())

    async def delete_blob(self, container: str, name: str) -> None:
        client = (await self._prepared()).blob(container, name)
        await answered(client.delete_blob(), _LEASED)

    async def list_blobs(self, container: str, prefix: str) -> list[str]:
        service = (await self._prepared()).blob_service
        client = service.get_container_client(self._settings.name(container))

        async def names() -> list[str]:
            return [name async for name in client.list_blob_names(name_starts_with=prefix)]

        return sorted(await answered(names()))

    # Rows

    async def get_entity(self, table: str, partition_key: str, row_key: str) -> Entity:
        client = (await self._prepared()).table(table)
        return from_entity(await answered(client.get_entity(partition_key, row_key)))

    async def insert_entity(self, table: str, operation: Insert) -> str:
        check_properties(operation.properties)
        client = (await self._prepared()).table(table)
        entity = to_entity(operation.partition_key, operation.row_key, operation.properties)
        call = client.create_entity(entity, response_preference="return-no-content")
        return _etag(await answered(call, _TRANSACTION))

    async def update_entity(self, table: str, operation: Update) -> str:
        check_properties(operation.properties)
        client = (await self._prepared()).table(table)
        entity = to_entity(operation.partition_key, operation.row_key, operation.properties)
        call = client.update_entity(entity, mode(operation), **condition(operation.etag))
        return _etag(await answered(call, _CONDITIONAL))

    def update_entity_blocking(self, table: str, operation: Update) -> str:
        check_properties(operation.properties)
        client = self._blocking_client(self._blocking_tables, table, blocking_table)
        entity = to_entity(operation.partition_key, operation.row_key, operation.properties)
        try:
            return _etag(client.update_entity(entity, mode(operation), **condition(operation.etag)))
        except DRIVER_ERRORS as error:
            raise translated(error, _CONDITIONAL) from error

    async def delete_entity(self, table: str, operation: Delete) -> None:
        client = (await self._prepared()).table(table)
        statuses: list[int] = []

        def note(response: Any) -> None:
            statuses.append(response.http_response.status_code)

        options = condition(operation.etag) if operation.etag else {}
        call = client.delete_entity(operation.partition_key, operation.row_key, raw_response_hook=note, **options)
        await answered(call, _CONDITIONAL)
        # The SDK takes a missing row for a success.
        if statuses[-1:] == [404]:
            raise NotFound

    async def transact(self, table: str, operations: Sequence[TableOperation]) -> list[str]:
        check_operations(operations)
        client = (await self._prepared()).table(table)
        results = await answered(client.submit_transaction(to_transaction(operations)), _TRANSACTION)
        return [
            "" if isinstance(operation, Delete) else _etag(result)
            for operation, result in zip(operations, results, strict=True)
        ]

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
        client = (await self._prepared()).table(table)
        # Without them a row could not be told.
        columns = None if select is None else ["PartitionKey", "RowKey", "Timestamp", *select]
        size = None if limit is None else min(limit, 1000)
        query = to_filter(partition_key, partition_before, row_key, row_key_prefix, timestamp_before)

        async def rows() -> list[Entity]:
            found: list[Entity] = []
            async for entity in client.query_entities(query, select=columns, results_per_page=size):
                found.append(from_entity(entity))
                if len(found) == limit:
                    break
            return found

        return await answered(rows())

    # Queues

    async def send_message(self, queue: str, text: str, *, delay: float = 0, once: bool = False) -> QueueReceipt:
        client = (await self._prepared()).queue(queue)
        options: dict[str, Any] = {"retry_total": 0} if once else {}
        call = client.send_message(_encoded(text), visibility_timeout=whole_seconds(delay), time_to_live=-1, **options)
        return _receipt(await answered(call))

    async def receive_message(self, queue: str, *, visibility: float) -> QueueMessage | None:
        client = (await self._prepared()).queue(queue)
        call = client.receive_message(visibility_timeout=whole_seconds(visibility, least=1))
        message = await answered(call)
        if message is None:
            return None
        return QueueMessage(_receipt(message), _decoded(message.content), message.dequeue_count or 0)

    async def update_message(self, queue: str, receipt: QueueReceipt, *, delay: float) -> QueueReceipt:
        client = (await self._prepared()).queue(queue)
        call: Awaitable[Any] = client.update_message(
            receipt.message_id, receipt.pop_receipt, visibility_timeout=whole_seconds(delay)
        )
        return _receipt(await answered(call, _RECEIPT))

    def update_message_blocking(self, queue: str, receipt: QueueReceipt, *, delay: float, text: str) -> QueueReceipt:
        client = self._blocking_client(self._blocking_queues, queue, blocking_queue)
        ids, seconds = (receipt.message_id, receipt.pop_receipt), whole_seconds(delay)
        try:
            return _receipt(client.update_message(*ids, content=_encoded(text), visibility_timeout=seconds))
        except DRIVER_ERRORS as error:
            raise translated(error, _RECEIPT) from error

    def _blocking_client[T](self, made: dict[str, T], name: str, make: _MakeBlocking[T]) -> T:
        with self._blocking_lock:
            if self._closed:
                raise StorageUnavailable("The storage connection is closed.")
            client = made.get(name)
            if client is None:
                if self._blocking_credential is None and self._settings.endpoints is not None:
                    self._blocking_credential = BlockingCredential(self._settings, self._tokens)
                client = made[name] = make(self._settings, name, self._blocking_credential)
            return client

    async def count_messages(self, queue: str) -> int:
        properties = await answered((await self._prepared()).queue(queue).get_queue_properties())
        return properties.approximate_message_count or 0

    async def delete_message(self, queue: str, receipt: QueueReceipt) -> None:
        client = (await self._prepared()).queue(queue)
        await answered(client.delete_message(receipt.message_id, receipt.pop_receipt), _RECEIPT)

    # The account

    async def service_time(self) -> datetime:
        client = (await self._prepared()).table(WORKERS)
        dates: list[str] = []

        def note(response: Any) -> None:
            dates.append(response.http_response.headers["Date"])

        async def ask() -> None:
            # No worker has an empty id: the answer is short whatever is in the table.
            async for _ in client.query_entities("PartitionKey eq ''", results_per_page=1, raw_response_hook=note):
                break

        await answered(ask())
        return parsedate_to_datetime(dates[-1]).astimezone(UTC)

    async def ensure(self, containers: Sequence[str], tables: Sequence[str], queues: Sequence[str]) -> None:
        clients = self._clients()
        calls: list[Awaitable[Any]] = []
        calls += [clients.blob_service.create_container(self._settings.name(each)) for each in containers]
        calls += [clients.table_service.create_table(self._settings.name(each)) for each in tables]
        calls += [clients.queue(each).create_queue() for each in queues]
        outcomes = await asyncio.gather(*(_created(call) for call in calls), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def ping(self) -> None:
        service = (await self._prepared()).blob_service
        await answered(service.get_container_client(self._settings.name(CONTAINERS[0])).get_container_properties())

    async def aclose(self) -> None:
        self._closed = True
        opened, self._open = self._open, None
        if opened is not None:
            await opened.aclose()
        with self._blocking_lock:
            blocking: list[BlockingQueueClient | BlockingTableClient] = [
                *self._blocking_queues.values(),
                *self._blocking_tables.values(),
            ]
            self._blocking_queues, self._blocking_tables = {}, {}
            credential, self._blocking_credential = self._blocking_credential, None
        for client in blocking:
            client.close()
        if credential is not None:
            credential.close()


async def _created(call: Awaitable[Any]) -> None:
    try:
        await answered(call, _ENSURED)
    except AlreadyExists:
        return


def _etag(metadata: Any) -> str:
    return str(metadata["etag"])


def _receipt(message: Any) -> QueueReceipt:
    return QueueReceipt(message.id, message.pop_receipt, message.next_visible_on)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(content: str) -> str:
    """A message's text; what is not base64 was put by somebody else and is given as it is."""
    try:
        return base64.b64decode(content, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return content
