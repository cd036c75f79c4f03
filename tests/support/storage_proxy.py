"""A network between an app and its storage that tests can cut or hold up: one TCP proxy for each of the three ports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from tests.support.azurite import AzuriteServer

type Service = Literal["blob", "queue", "table"]


class StorageProxy:
    """Forwards connections; `cut` breaks those that there are and refuses new ones, `restore` lets them through.

    `hold` keeps back what an app sends to one service, without breaking anything, until `release` lets it arrive.
    """

    def __init__(self, azurite: AzuriteServer) -> None:
        self._azurite = azurite
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()
        self._ports: dict[int, int] = {}
        self._is_cut = False
        self._open: dict[Service, asyncio.Event] = {
            "blob": asyncio.Event(),
            "queue": asyncio.Event(),
            "table": asyncio.Event(),
        }
        for each in self._open.values():
            each.set()

    @classmethod
    @asynccontextmanager
    async def before(cls, azurite: AzuriteServer) -> AsyncIterator["StorageProxy"]:
        """A proxy in front of an emulator."""
        proxy = cls(azurite)
        ports: dict[Service, int] = {
            "blob": azurite.blob_port,
            "queue": azurite.queue_port,
            "table": azurite.table_port,
        }
        for service, port in ports.items():
            server = await asyncio.start_server(proxy._serve(service, port), "127.0.0.1", 0)
            proxy._servers.append(server)
            proxy._ports[port] = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            proxy.cut()
            for gate in proxy._open.values():
                gate.set()
            for server in proxy._servers:
                server.close()

    def through(self, connection_string: str) -> str:
        """The connection string by way of this proxy."""
        for port, own in self._ports.items():
            connection_string = connection_string.replace(f":{port}/", f":{own}/")
        return connection_string

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._is_cut = True
        for writer in list(self._connections):
            writer.transport.abort()

    def restore(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def hold(self, service: Service) -> None:
        """From now on keep back what is sent to that service; its answers to what it has already pass."""
        self._open[service].clear()

    def release(self, service: Service) -> None:
        """Let what was kept back arrive."""
        self._open[service].set()

    def _serve(self, service: Service, port: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._is_cut:
                writer.transport.abort()
                return
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
            self._connections |= {writer, upstream}
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(reader, upstream, self._open[service]))
                    both.create_task(_copy(upstream_reader, writer))
            finally:
                self._connections -= {writer, upstream}
                for end in (writer, upstream):
                    end.transport.abort()

        return serve


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event | None = None) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            if gate is not None:
                await gate.wait()
            target.write(data)
            await target.drain()
        target.write_eof()
