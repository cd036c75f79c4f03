"""A network between an app and its storage that tests can cut: one TCP proxy for each of the emulator's three ports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support.azurite import AzuriteServer


class StorageProxy:
    """Forwards connections; `cut` breaks those that there are and refuses new ones, `restore` lets them through."""

    def __init__(self, azurite: AzuriteServer) -> None:
        self._azurite = azurite
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()
        self._ports: dict[int, int] = {}
        self._is_cut = False

    @classmethod
    @asynccontextmanager
    async def before(cls, azurite: AzuriteServer) -> AsyncIterator["StorageProxy"]:
        """A proxy in front of an emulator."""
        proxy = cls(azurite)
        for port in (azurite.blob_port, azurite.queue_port, azurite.table_port):
            server = await asyncio.start_server(proxy._serve(port), "127.0.0.1", 0)
            proxy._servers.append(server)
            proxy._ports[port] = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            proxy.cut()
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

    def _serve(self, port: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._is_cut:
                writer.transport.abort()
                return
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
            self._connections |= {writer, upstream}
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(reader, upstream))
                    both.create_task(_copy(upstream_reader, writer))
            finally:
                self._connections -= {writer, upstream}
                for end in (writer, upstream):
                    end.transport.abort()

        return serve


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        target.write_eof()
