"""A network between an app and its storage that tests can cut or hold up: one TCP proxy for each of the three ports.

It reads what goes to the storage call by call (HTTP/1.1, bodies with a Content-Length, as all SDKs send them), so that
single calls can be kept back: a write that was on its way when its sender stopped arrives as late as a test wants.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

from tests.support.azurite import AzuriteServer

type Service = Literal["blob", "queue", "table"]


@dataclass(eq=False)
class Call:
    """One call of the app, and what the storage answered.

    Attributes:
        method: of HTTP.
        path: path and query, unquoted.
        data: the call as it was sent, its head included.
        answer: as much of the answer as has arrived, its head included.
    """

    method: str
    path: str
    data: bytes = field(repr=False)
    answer: bytes = b""

    @property
    def status(self) -> int:
        """The answer's status, 0 before there is one."""
        return int(self.answer.split(b" ", 2)[1]) if b"\r\n" in self.answer else 0


@dataclass(eq=False)
class KeptBack:
    """Calls that do not arrive before `release`.

    Attributes:
        matches: tells which calls.
        after: so many of them pass before one is kept.
        calls: those that were kept, in their order.
    """

    matches: Callable[[Call], bool]
    after: int = 0
    calls: list[Call] = field(default_factory=list)
    _passed: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def takes(self, call: Call) -> bool:
        """Whether the call is one to keep; asked once for each call."""
        if self._open.is_set() or not self.matches(call):
            return False
        self._passed += 1
        return self._passed > self.after

    def release(self) -> None:
        """Let what was kept arrive, and pass what comes."""
        self._open.set()

    async def keep(self, call: Call) -> None:
        """Wait for the release."""
        self.calls.append(call)
        await self._open.wait()


class StorageProxy:
    """Forwards connections; `cut` breaks those that there are and refuses new ones, `restore` lets them through.

    `hold` keeps back what an app sends to one service, without breaking anything, until `release` lets it arrive.
    `keep_back` does so with chosen calls. What was kept back arrives also if its sender has died meanwhile.
    """

    def __init__(self, azurite: AzuriteServer) -> None:
        self._azurite = azurite
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()
        self._ports: dict[int, int] = {}
        self._is_cut = False
        self._kept: list[KeptBack] = []
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
            for kept in proxy._kept:
                kept.release()
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

    def keep_back(self, matches: Callable[[Call], bool], *, after: int = 0) -> KeptBack:
        """From now on keep back the calls that match, without the first `after` ones."""
        kept = KeptBack(matches, after)
        self._kept.append(kept)
        return kept

    def _serve(
        self, service: Service, port: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._is_cut:
                writer.transport.abort()
                return
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
            self._connections |= {writer, upstream}
            asked: list[Call] = []
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._forward(reader, upstream, self._open[service], asked))
                    both.create_task(_answer(upstream_reader, writer, asked))
            finally:
                self._connections -= {writer, upstream}
                for end in (writer, upstream):
                    end.transport.abort()

        return serve

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event, asked: list[Call]
    ) -> None:
        """Call by call; `asked` holds the one that is being answered."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                call = await _read_call(source)
                await gate.wait()
                for kept in self._kept:
                    if kept.takes(call):
                        await kept.keep(call)
                asked[:] = [call]
                target.write(call.data)
                await target.drain()
        with suppress(OSError):
            target.write_eof()


async def _read_call(source: asyncio.StreamReader) -> Call:
    head = await source.readuntil(b"\r\n\r\n")
    method, path, _ = head.split(b" ", 2)
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        assert name.lower() != b"transfer-encoding", "a body without a length"
        if name.lower() == b"content-length":
            length = int(value)
    return Call(method.decode(), unquote(path.decode()), head + await source.readexactly(length))


async def _answer(source: asyncio.StreamReader, target: asyncio.StreamWriter, asked: list[Call]) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            for call in asked:
                call.answer += data
            with suppress(OSError):  # who asked may be gone; what the storage says is still of interest
                target.write(data)
                await target.drain()
        target.write_eof()
