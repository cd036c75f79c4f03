"""The SDK clients of a storage account, over one pool of connections."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import aiohttp
from azure.core.exceptions import ServiceResponseTimeoutError
from azure.core.pipeline.transport import AioHttpTransport
from azure.data.tables import TableClient as BlockingTableClient
from azure.data.tables.aio import TableClient, TableServiceClient
from azure.storage.blob.aio import BlobClient, BlobServiceClient, ExponentialRetry
from azure.storage.queue import LinearRetry
from azure.storage.queue import QueueClient as BlockingQueueClient
from azure.storage.queue.aio import QueueClient, QueueServiceClient

from storage.azure_identity import BlockingCredential, Credential, Tokens
from storage.connection import StorageSettings

#: Connections at most. Long reads of many logs must not keep an append waiting.
MAX_CONNECTIONS = 512
#: Bytes above which writing a body in one go would hold up the event loop.
LARGE_BODY = 1024 * 1024
#: Blob clients kept: making one costs as much as a small call's own work.
MAX_BLOB_CLIENTS = 1024


class _Retry(ExponentialRetry):
    """For blobs and queues alike: the SDK's own schedule does not wait less than two seconds."""

    def __init__(self, settings: StorageSettings) -> None:
        super().__init__(retry_total=settings.retries)
        self._delay = settings.retry_delay

    def get_backoff_time(self, settings: Mapping[str, Any]) -> float:
        # The policy counts from 1.
        return float(self._delay * 2 ** (settings["count"] - 1))


class _Transport(AioHttpTransport):  # type: ignore[misc]  # exported lazily, which hides its type
    """One try of a call has a limit as a whole: the others begin with a connection, or behind the last byte sent.

    Without it a body that nobody reads is sent for ever, and a connection that is never free is waited for as long.
    """

    def __init__(self, settings: StorageSettings, session: aiohttp.ClientSession) -> None:
        super().__init__(
            session=session, connection_timeout=settings.connection_timeout, read_timeout=settings.read_timeout
        )
        # As long for what is sent as for the answer.
        self._limit = settings.connection_timeout + 2 * settings.read_timeout

    async def send(self, request: Any, **options: Any) -> Any:
        """The answer; a large one is read afterwards, with a limit for each portion.

        Raises:
            AzureError: There is none, or none in time; the SDK's policies try again after either.
        """
        try:
            async with asyncio.timeout(self._limit):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise ServiceResponseTimeoutError(f"No answer within {self._limit:g} s.", error=error) from error


def _quieten() -> None:
    """The SDKs log the headers of every request at INFO, which a Functions host records; leave that to who asks."""
    logger = logging.getLogger("azure.core.pipeline.policies.http_logging_policy")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


class AzureClients:
    """All asynchronous clients. Make it on the event loop that will use it; close it with `aclose`."""

    def __init__(self, settings: StorageSettings, tokens: Tokens) -> None:
        _quieten()
        self._settings = settings
        self._transport = _Transport(
            settings,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                # The SDK decodes bodies itself. Reading proxies and netrc costs more than the call.
                auto_decompress=False,
                trust_env=False,
            ),
        )
        self._credential: Credential | None = None
        self._blobs: OrderedDict[tuple[str, str], BlobClient] = OrderedDict()
        self._tables: dict[str, TableClient] = {}
        self._queues: dict[str, QueueClient] = {}
        options: dict[str, Any] = {"transport": self._transport}
        uploads: dict[str, Any] = {"max_single_put_size": LARGE_BODY, "max_block_size": LARGE_BODY}
        retrying = options | {"retry_policy": _Retry(settings)}
        table_options = options | {"retry_total": settings.retries, "retry_backoff_factor": settings.retry_delay}
        if settings.endpoints is None:
            text = settings.connection_string
            self.blob_service = BlobServiceClient.from_connection_string(text, **retrying, **uploads)
            self.queue_service = QueueServiceClient.from_connection_string(text, **retrying)
            self.table_service = TableServiceClient.from_connection_string(text, **table_options)
        else:
            ends = settings.endpoints
            self._credential = credential = Credential(settings, tokens)
            self.blob_service = BlobServiceClient(ends.blob, credential=credential, **retrying, **uploads)
            self.queue_service = QueueServiceClient(ends.queue, credential=credential, **retrying)
            self.table_service = TableServiceClient(ends.table, credential=credential, **table_options)

    def blob(self, container: str, name: str) -> BlobClient:
        key = (container, name)
        client = self._blobs.get(key)
        if client is None:
            client = self._blobs[key] = self.blob_service.get_blob_client(self._settings.name(container), name)
            if len(self._blobs) > MAX_BLOB_CLIENTS:
                self._blobs.popitem(last=False)
        else:
            self._blobs.move_to_end(key)
        return client

    def table(self, table: str) -> TableClient:
        client = self._tables.get(table)
        if client is None:
            client = self._tables[table] = self.table_service.get_table_client(self._settings.name(table))
        return client

    def queue(self, queue: str) -> QueueClient:
        client = self._queues.get(queue)
        if client is None:
            client = self._queues[queue] = self.queue_service.get_queue_client(self._settings.name(queue))
        return client

    async def aclose(self) -> None:
        await self._transport.close()
        if self._credential is not None:
            await self._credential.close()


def blocking_queue(settings: StorageSettings, queue: str, credential: BlockingCredential | None) -> BlockingQueueClient:
    """A client for one thread, with a connection of its own and no retries; `credential` where there are endpoints."""
    options = {"retry_policy": LinearRetry(retry_total=0), **_hasty(settings.blocking_timeout)}
    if settings.endpoints is None:
        return BlockingQueueClient.from_connection_string(settings.connection_string, settings.name(queue), **options)
    return BlockingQueueClient(settings.endpoints.queue, settings.name(queue), credential=credential, **options)


def blocking_table(settings: StorageSettings, table: str, credential: BlockingCredential | None) -> BlockingTableClient:
    """The same for a table, with a third of the patience: its thread has a message to push."""
    options = {"retry_total": 0, **_hasty(settings.blocking_timeout / 3)}
    if settings.endpoints is None:
        return BlockingTableClient.from_connection_string(settings.connection_string, settings.name(table), **options)
    return BlockingTableClient(settings.endpoints.table, settings.name(table), credential=credential, **options)


def _hasty(seconds: float) -> dict[str, Any]:
    return {"connection_timeout": seconds, "read_timeout": seconds, "use_env_settings": False}
