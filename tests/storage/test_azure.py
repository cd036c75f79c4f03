"""The driver over a network that fails: refused, silent, answering with errors, losing replies."""

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import psutil
import pytest

from storage.azure import AzureDriver
from storage.connection import Storage, StorageSettings, open_storage
from storage.driver import WATCH_QUEUE, Delete, Insert, QueueReceipt, Update
from storage.errors import (
    AlreadyExists,
    LeaseHeld,
    NotFound,
    PreconditionFailed,
    StorageError,
    StorageRejected,
    StorageUnavailable,
)
from storage.ledger import LedgerEntry
from storage.queues import WatchMessage
from tests.storage.lossy import LossyLine
from tests.storage.test_rows import new_row
from tests.support.azurite import ACCOUNT, KEY, AzuriteServer

LEASE = "11111111-2222-3333-4444-555555555555"
RECEIPT = QueueReceipt(LEASE, "AgAAAA==")
NARROW = 64 * 1024
SOON = 15.0
"""Seconds of which every try takes half of one; without a time-out of ours a call would wait for a minute at least."""


def settings(blob: int, queue: int, table: int) -> StorageSettings:
    text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};" + "".join(
        f"{name}Endpoint=http://127.0.0.1:{port}/{ACCOUNT};"
        for name, port in (("Blob", blob), ("Queue", queue), ("Table", table))
    )
    return StorageSettings(connection_string=text, retry_delay=0.01, read_timeout=0.5, blocking_timeout=0.5)


@asynccontextmanager
async def opened(chosen: StorageSettings) -> AsyncIterator[Storage]:
    storage = open_storage(chosen)
    try:
        yield storage
    finally:
        await storage.aclose()


class Answering:
    """A server that gives every request the same answer; None: no answer at all. `requests` counts them."""

    def __init__(self) -> None:
        self.status: int | None = 201
        self.requests = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = [line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length:")]
                await reader.readexactly(int(length[0]) if length else 0)
                self.requests += 1
                if self.status is None:
                    await reader.read()
                    break
                error = json.dumps({"odata.error": {"code": "Whatever", "message": {"lang": "en", "value": "no"}}})
                body = b"" if head.startswith("head") or self.status == 304 else error.encode()
                writer.write(
                    f"HTTP/1.1 {self.status} Answer\r\nContent-Type: application/json\r\nx-ms-error-code: Whatever\r\n"
                    f"ETag: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                )
                writer.write(body)
                await writer.drain()
        writer.close()

    @classmethod
    @asynccontextmanager
    async def start(cls) -> "AsyncIterator[Answering]":
        answering = cls()
        server = await asyncio.start_server(answering.serve, "127.0.0.1", 0)
        answering.port = int(server.sockets[0].getsockname()[1])
        try:
            yield answering
        finally:
            server.close()
            server.close_clients()
            await server.wait_closed()


@asynccontextmanager
async def answering_storage(status: int | None) -> AsyncIterator[tuple[Storage, Answering]]:
    async with Answering.start() as server, opened(settings(server.port, server.port, server.port)) as storage:
        # Creating what is missing succeeds; what is under test comes after.
        await storage.driver.ensure((), (), ())
        server.status = 409
        with contextlib.suppress(StorageError):
            await storage.driver.get_entity("responses", "p", "r")
        server.status, server.requests = status, 0
        yield storage, server


type Call = Callable[[Storage], Awaitable[object]]

CALLS: dict[str, Call] = {
    "create_append_blob": lambda s: s.driver.create_append_blob("events", "n"),
    "append_block": lambda s: s.driver.append_block("events", "n", b"x", position=0, lease_id=LEASE),
    "read_range": lambda s: s.driver.read_range("events", "n", 0, 10),
    "blob_info": lambda s: s.driver.blob_info("events", "n"),
    "acquire_lease": lambda s: s.driver.acquire_lease("events", "n", LEASE),
    "break_lease": lambda s: s.driver.break_lease("events", "n"),
    "release_lease": lambda s: s.driver.release_lease("events", "n", LEASE),
    "upload_blob": lambda s: s.driver.upload_blob("payloads", "n", b"x"),
    "download_blob": lambda s: s.driver.download_blob("payloads", "n"),
    "delete_blob": lambda s: s.driver.delete_blob("events", "n"),
    "list_blobs": lambda s: s.driver.list_blobs("events", "n"),
    "get_entity": lambda s: s.driver.get_entity("responses", "p", "r"),
    "insert_entity": lambda s: s.driver.insert_entity("responses", Insert("p", "r", {})),
    "update_entity": lambda s: s.driver.update_entity("responses", Update("p", "r", {}, "e")),
    "update_entity_blocking": lambda s: asyncio.to_thread(
        s.driver.update_entity_blocking, "responses", Update("p", "r", {}, "e")
    ),
    "delete_entity": lambda s: s.driver.delete_entity("responses", Delete("p", "r", "e")),
    "transact": lambda s: s.driver.transact("responses", [Insert("p", "r", {})]),
    "query_entities": lambda s: s.driver.query_entities("responses", partition_key="p"),
    "send_message": lambda s: s.driver.send_message("responses-work", "x"),
    "receive_message": lambda s: s.driver.receive_message("responses-work", visibility=1),
    "update_message": lambda s: s.driver.update_message("responses-work", RECEIPT, delay=1),
    "update_message_blocking": lambda s: asyncio.to_thread(
        s.driver.update_message_blocking, "responses-work", RECEIPT, delay=1, text="x"
    ),
    "delete_message": lambda s: s.driver.delete_message("responses-work", RECEIPT),
    "service_time": lambda s: s.driver.service_time(),
    "ping": lambda s: s.driver.ping(),
}

#: What 404, 409 and 412 mean, where they do not mean `NotFound` or a rejection. None: no error.
MEANINGS: dict[str, dict[int, type[StorageError] | None]] = {
    "create_append_blob": {404: StorageRejected, 409: AlreadyExists, 412: AlreadyExists},
    "append_block": {409: PreconditionFailed, 412: PreconditionFailed},
    "read_range": {304: None, 416: None},
    "acquire_lease": {409: LeaseHeld, 412: LeaseHeld},
    "break_lease": {409: None},
    "release_lease": {409: PreconditionFailed, 412: PreconditionFailed},
    "upload_blob": {409: LeaseHeld, 412: LeaseHeld},
    "delete_blob": {409: LeaseHeld, 412: LeaseHeld},
    "insert_entity": {409: AlreadyExists, 412: PreconditionFailed},
    "update_entity": {409: PreconditionFailed, 412: PreconditionFailed},
    "update_entity_blocking": {409: PreconditionFailed, 412: PreconditionFailed},
    "delete_entity": {409: PreconditionFailed, 412: PreconditionFailed},
    "transact": {409: AlreadyExists, 412: PreconditionFailed},
    "update_message": {400: PreconditionFailed},
    "update_message_blocking": {400: PreconditionFailed},
    "delete_message": {400: PreconditionFailed},
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_status_alone_decides_the_error(name: str) -> None:
    async with answering_storage(400) as (storage, server):
        for status in (304, 400, 401, 403, 404, 409, 412, 413, 416, 429):
            default: dict[int, type[StorageError]] = {404: NotFound}
            default |= dict.fromkeys((304, 401, 403, 429), StorageUnavailable)
            expected = MEANINGS.get(name, {}).get(status, default.get(status, StorageRejected))
            server.status = status
            if expected is None:
                assert not await CALLS[name](storage)
                continue
            with pytest.raises(StorageError) as caught:
                await CALLS[name](storage)
            assert type(caught.value) is expected, f"{status} gave {caught.value!r}"
            if isinstance(caught.value, StorageRejected):
                assert caught.value.status == status
            assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [408, 500, 503])
@pytest.mark.parametrize("name", CALLS)
async def test_transient_answers_are_tried_again_a_few_times(name: str, status: int) -> None:
    async with answering_storage(status) as (storage, server):
        began = time.monotonic()
        with pytest.raises(StorageUnavailable) as caught:
            await CALLS[name](storage)
        assert time.monotonic() - began < SOON
        assert caught.value.__cause__ is not None
        assert 1 <= server.requests <= 3
        if name.endswith("_blocking"):
            assert server.requests == 1


@pytest.mark.parametrize("name", CALLS)
async def test_a_silent_storage_is_unavailable_within_seconds(name: str) -> None:
    async with answering_storage(None) as (storage, _):
        began = time.monotonic()
        with pytest.raises(StorageUnavailable):
            await CALLS[name](storage)
        assert time.monotonic() - began < SOON


@pytest.mark.parametrize("name", CALLS)
async def test_an_unreachable_storage_is_unavailable_within_seconds(name: str) -> None:
    # Port 1 is reserved; nothing listens there.
    async with opened(settings(1, 1, 1)) as storage:
        began = time.monotonic()
        with pytest.raises(StorageUnavailable) as caught:
            await CALLS[name](storage)
        assert time.monotonic() - began < SOON
        assert caught.value.__cause__ is not None


@pytest.fixture
def narrow_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that hold less than a small body, as those over a network do; on a loopback it is megabytes."""
    connector = aiohttp.TCPConnector

    def made(**options: Any) -> aiohttp.TCPConnector:
        return connector(socket_factory=_narrow_socket, **options)

    monkeypatch.setattr("storage.azure_clients.aiohttp.TCPConnector", made)


def _narrow_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)
    made.setblocking(False)
    return made


@pytest.mark.usefixtures("narrow_connections")
@pytest.mark.parametrize("size", [1_000, 4_000_000])
@pytest.mark.parametrize("write", ["append", "upload"])
async def test_a_body_that_nobody_reads_is_given_up_within_seconds(write: str, size: int) -> None:
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = int(deaf.getsockname()[1])
        prepared = replace(settings(port, port, port), retries=1, connection_timeout=0.5)
        async with opened(prepared) as storage:
            assert isinstance(storage.driver, AzureDriver)
            storage.driver._ready = True  # nothing could be created here
            data = b"x" * size
            call: Awaitable[object]
            if write == "append":
                call = storage.driver.append_block("events", "n", data, position=0, lease_id=LEASE)
            else:
                call = storage.driver.upload_blob("payloads", "n", data)
            with pytest.raises(StorageUnavailable) as caught:
                await asyncio.wait_for(call, SOON)
            assert caught.value.__cause__ is not None


async def test_a_failed_preparation_is_tried_again(azurite: AzuriteServer) -> None:
    async with LossyLine.to(azurite.table_port) as line:
        with azurite.namespace() as environment:
            chosen = replace(
                settings(azurite.blob_port, azurite.queue_port, line.port),
                prefix=environment["RESPONSES_STORAGE_PREFIX"],
                retries=0,
                read_timeout=60.0,
            )
            async with opened(chosen) as storage:
                line.lose = 3
                with pytest.raises(StorageUnavailable):
                    await storage.ping()
                line.lose = 0
                await storage.ping()
                await storage.rows.insert(new_row())


async def test_what_exists_already_is_used(azurite: AzuriteServer) -> None:
    with azurite.namespace() as environment:
        for number in range(3):
            async with opened(StorageSettings.from_environment(environment)) as storage:
                await storage.rows.insert(new_row(f"resp_{number}"))
                await storage.work.send_start("t", f"resp_{number}")
                await storage.log.create(f"p/resp_{number}/0-0")
                assert len(await storage.rows.list_partition("p")) == number + 1


async def test_a_closed_storage_is_unavailable_and_opens_nothing(azurite: AzuriteServer) -> None:
    storage = open_storage(settings(azurite.blob_port, azurite.queue_port, azurite.table_port))
    await storage.aclose()
    await storage.aclose()
    with pytest.raises(StorageUnavailable):
        await storage.ping()
    with pytest.raises(StorageUnavailable):
        storage.driver.update_message_blocking("responses-work", RECEIPT, delay=1, text="x")


async def test_closing_leaves_no_connection_open(azurite: AzuriteServer) -> None:
    ports = {azurite.blob_port, azurite.queue_port, azurite.table_port}

    def established() -> int:
        found = psutil.Process().net_connections("tcp4")
        return sum(each.status == psutil.CONN_ESTABLISHED and each.raddr.port in ports for each in found)

    before = established()
    with azurite.namespace() as environment:
        storage = open_storage(replace(StorageSettings.from_environment(environment), blocking_timeout=60.0))
        receipt = await storage.watch.send("w1", delay=30)
        await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1"), receipt, 30)
        assert established() > before
        await storage.aclose()
        deadline = time.monotonic() + 30
        while established() > before:
            assert time.monotonic() < deadline, "a connection stayed open"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def lossy_storage(azurite: AzuriteServer) -> AsyncIterator[tuple[Storage, LossyLine, LossyLine]]:
    async with LossyLine.to(azurite.blob_port) as blobs, LossyLine.to(azurite.table_port) as tables:
        with azurite.namespace() as environment:
            chosen = replace(
                settings(blobs.port, azurite.queue_port, tables.port),
                prefix=environment["RESPONSES_STORAGE_PREFIX"],
                read_timeout=60.0,
            )
            async with opened(chosen) as storage:
                await storage.ping()
                yield storage, blobs, tables


async def test_an_append_whose_reply_was_lost_is_refused_and_stored_once(azurite: AzuriteServer) -> None:
    async with lossy_storage(azurite) as (storage, blobs, _):
        lease_id = str(uuid.uuid4())
        await storage.log.create("p/r/0-1")
        await storage.log.acquire("p/r/0-1", lease_id)
        blobs.lose = 1
        with pytest.raises(PreconditionFailed):
            await storage.log.append("p/r/0-1", b"once", position=0, lease_id=lease_id)
        assert blobs.lost == 1
        # The reader can tell: this is what was to be written, where it was to be written.
        assert await storage.log.read("p/r/0-1", 0, 100) == b"once"
        assert (await storage.log.append("p/r/0-1", b"more", position=4, lease_id=lease_id)).blocks == 2


async def test_row_writes_whose_reply_was_lost_succeed(azurite: AzuriteServer) -> None:
    async with lossy_storage(azurite) as (storage, _, tables):
        tables.lose = 1
        try:
            row = await storage.rows.insert(new_row())
        except StorageUnavailable:
            # An insert is not repeated by the driver once it was sent; its outcome is unknown.
            row = await storage.rows.read("p", "resp_1")
        assert tables.lost == 1
        tables.lose = 1
        changed = await storage.rows.replace(replace(row, status="in_progress"))
        assert tables.lost == 2
        assert await storage.rows.read("p", "resp_1") == changed
        assert storage.seam.counts["row.confirm"] >= 1


async def test_ledger_transactions_whose_reply_was_lost_are_found_again(azurite: AzuriteServer) -> None:
    async with lossy_storage(azurite) as (storage, _, tables):
        record = await storage.ledger.begin("w1", [])
        tables.lose = 1
        try:
            record = await storage.ledger.commit(record, [LedgerEntry("run-a", "run")], [])
        except StorageUnavailable:
            record = await storage.ledger.read("w1")
        assert tables.lost == 1
        assert record.revision == 2
        assert [entry.key for entry in await storage.ledger.entries("w1")] == ["run-a"]
        await storage.ledger.commit(record, [], ["run-a"])


async def test_a_watch_message_whose_reply_was_lost_is_there_once(azurite: AzuriteServer) -> None:
    async with LossyLine.to(azurite.queue_port) as line:
        with azurite.namespace() as environment:
            chosen = replace(
                settings(azurite.blob_port, line.port, azurite.table_port),
                prefix=environment["RESPONSES_STORAGE_PREFIX"],
                read_timeout=60.0,
            )
            async with opened(chosen) as storage:
                await storage.ping()
                line.lose = 1
                with pytest.raises(StorageUnavailable):
                    await storage.watch.send("w", delay=0, epoch=0)
                assert line.lost == 1
                assert await storage.driver.count_messages(WATCH_QUEUE) == 1


async def test_a_driver_used_by_many_calls_at_once_prepares_once(azurite: AzuriteServer) -> None:
    with azurite.namespace() as environment:
        async with opened(StorageSettings.from_environment(environment)) as storage:
            rows = await asyncio.gather(*(storage.rows.insert(new_row(f"resp_{n:02}")) for n in range(50)))
            assert await storage.rows.list_partition("p") == rows
