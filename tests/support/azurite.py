"""A real storage emulator for tests: one Azurite process, on ports of its own.

Settings: `AZURITE` names the executable when it is not the one of `node_modules`.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError
from azure.data.tables import TableServiceClient
from azure.storage.blob import BlobServiceClient
from azure.storage.queue import QueueServiceClient

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "devstoreaccount1"
# The emulator's published key; it opens nothing else.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
START_SECONDS = 60.0
STOP_SECONDS = 10.0


class AzuriteFailed(Exception):
    """Azurite did not come up."""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@dataclass
class AzuriteServer:
    """A running Azurite; make one with `AzuriteServer.start`."""

    process: subprocess.Popen[bytes]
    blob_port: int
    queue_port: int
    table_port: int
    log: Path = field(repr=False)

    @classmethod
    def start(cls, location: Path | None = None) -> "AzuriteServer":
        """Start on free ports, with its data under `location` or in memory, and wait until all three ports answer."""
        for _ in range(3):
            server = cls._launch(location)
            try:
                server._wait()
            except AzuriteFailed as error:
                server.stop()
                failure = error
            else:
                return server
        raise failure

    @classmethod
    def _launch(cls, location: Path | None) -> "AzuriteServer":
        blob, queue, table = _free_ports(3)
        command = [os.environ.get("AZURITE", str(ROOT / "node_modules" / ".bin" / "azurite"))]
        command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        for name, port in (("blob", blob), ("queue", queue), ("table", table)):
            command += [f"--{name}Host", "127.0.0.1", f"--{name}Port", str(port), f"--{name}KeepAliveTimeout", "60"]
        command += ["--inMemoryPersistence"] if location is None else ["--location", str(location)]
        handle, path = tempfile.mkstemp(prefix="azurite-", suffix=".log")
        # A directory of its own: Azurite writes a __azurite_* file into the current one when it has no location.
        working = location if location is not None else Path(tempfile.gettempdir())
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, cwd=working, start_new_session=True
            )
        finally:
            os.close(handle)
        return cls(process, blob, queue, table, Path(path))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        waiting = [self.blob_port, self.queue_port, self.table_port]
        while waiting:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AzuriteFailed(self.log.read_text(errors="replace")[-2000:])
            if _listens(waiting[0]):
                waiting.pop(0)
            else:
                time.sleep(0.05)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://127.0.0.1:{self.blob_port}/{ACCOUNT};"
            f"QueueEndpoint=http://127.0.0.1:{self.queue_port}/{ACCOUNT};"
            f"TableEndpoint=http://127.0.0.1:{self.table_port}/{ACCOUNT};"
        )

    def environment(self, prefix: str) -> dict[str, str]:
        """The settings under which a process uses this server with names of its own."""
        return {
            "AzureWebJobsStorage": self.connection_string,
            "RESPONSES_STORAGE_PREFIX": prefix,
            # A test that waits until nothing is left would wait for an idle ledger's whole rest.
            "RESPONSES_IDLE_END_AFTER": "3",
        }

    def remove(self, prefix: str) -> None:
        """Delete every container, queue and table whose name begins with `prefix`."""
        text = self.connection_string
        # The containers' own delete removes leased blobs too.
        with BlobServiceClient.from_connection_string(text) as blobs:
            for container in list(blobs.list_containers(name_starts_with=prefix)):
                with contextlib.suppress(ResourceNotFoundError):
                    blobs.delete_container(container.name)
        with QueueServiceClient.from_connection_string(text) as queues:
            for queue in list(queues.list_queues(name_starts_with=prefix)):
                with contextlib.suppress(ResourceNotFoundError):
                    queues.delete_queue(queue.name)
        with TableServiceClient.from_connection_string(text) as tables:
            for table in list(tables.list_tables()):
                if table.name.startswith(prefix):
                    tables.delete_table(table.name)

    @contextlib.contextmanager
    def namespace(self) -> Iterator[Mapping[str, str]]:
        """The environment of one test: a prefix nobody else has, cleaned up afterwards."""
        prefix = f"t{uuid.uuid4().hex[:12]}"
        try:
            yield self.environment(prefix)
        finally:
            self.remove(prefix)

    def stop(self) -> None:
        """End the process, by its own id; stopping twice is fine."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.unlink(missing_ok=True)
