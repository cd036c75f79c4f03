"""A network between a driver and the emulator that loses replies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LossyLine:
    """Forwards connections to a port. Each time `lose` is counted down, a reply is thrown away and the line cut."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.lose = 0
        self.lost = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        up = asyncio.create_task(self._pump(reader, far_writer, replies=False))
        down = asyncio.create_task(self._pump(far_reader, writer, replies=True))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (up, down):
                each.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while data := await reader.read(65536):
            if replies and self.lose:
                self.lose -= 1
                self.lost += 1
                return
            writer.write(data)
            await writer.drain()

    def _start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @classmethod
    @asynccontextmanager
    async def to(cls, target: int) -> "AsyncIterator[LossyLine]":
        line = cls(target)
        server = await asyncio.start_server(line._start, "127.0.0.1", 0)
        line.port = int(server.sockets[0].getsockname()[1])
        try:
            yield line
        finally:
            server.close()
            for task in list(line._tasks):
                task.cancel()
            await asyncio.gather(*line._tasks, return_exceptions=True)
            await server.wait_closed()
