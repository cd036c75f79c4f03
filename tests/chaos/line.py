"""The way of one host to its storage: an HTTP proxy for each of the emulator's three ports, with weather.

What a storage can do to a call: refuse it (500, 503, 429), carry it out and lose the reply, keep it waiting while its
caller dies, or not be there at all.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from storage.driver import WATCH_QUEUE
from tests.support.azurite import AzuriteServer

REFUSALS = (500, 503, 429)
BUSY = b'<?xml version="1.0" encoding="utf-8"?><Error><Code>ServerBusy</Code><Message>Later.</Message></Error>'
_NOT_FORWARDED = {"connection", "keep-alive", "transfer-encoding", "content-length"}
# Signed with the request: what the client left out must stay left out.
_NOT_ADDED = [hdrs.CONTENT_TYPE, hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING]


@dataclass
class Weather:
    """What happens to the calls on a line; the default is a clear sky.

    Attributes:
        storm: the share of calls that fail; half of those are refused, of the other half the reply is lost.
        partitioned: nothing gets through.
        watch_lost: nothing gets through to the queue of watch messages.
        hold: seconds for which a write is kept before it goes on, whatever became of its sender meanwhile.
    """

    storm: float = 0.0
    partitioned: bool = False
    watch_lost: bool = False
    hold: float = 0.0


class Line:
    """Forwards calls to the emulator as `weather` has it."""

    def __init__(self, azurite: AzuriteServer, chance: random.Random) -> None:
        self.weather = Weather()
        self.calls = 0
        self.failed = 0
        self._azurite = azurite
        self._chance = chance
        self._ports: dict[int, int] = {}
        self._connections: set[asyncio.Transport] = set()
        self._session: aiohttp.ClientSession

    @classmethod
    @asynccontextmanager
    async def before(cls, azurite: AzuriteServer, chance: random.Random) -> AsyncIterator["Line"]:
        """A line to an emulator."""
        line = cls(azurite, chance)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as line._session:
            runners = [await line._open(port) for port in (azurite.blob_port, azurite.queue_port, azurite.table_port)]
            try:
                yield line
            finally:
                for runner in runners:
                    await runner.cleanup()

    async def _open(self, port: int) -> web.ServerRunner:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await self._handle(request, port)

        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._ports[port] = int(runner.addresses[0][1])
        return runner

    def through(self, connection_string: str) -> str:
        """The connection string by way of this line."""
        for port, own in self._ports.items():
            connection_string = connection_string.replace(f":{port}/", f":{own}/")
        return connection_string

    def partition(self) -> None:
        """Break every connection and let nothing through until the weather changes."""
        self.weather.partitioned = True
        for transport in list(self._connections):
            transport.abort()

    async def _handle(self, request: web.BaseRequest, port: int) -> web.StreamResponse:
        self.calls += 1
        weather = self.weather
        transport = request.transport
        if isinstance(transport, asyncio.Transport):
            self._connections.add(transport)
        try:
            if weather.partitioned or (weather.watch_lost and WATCH_QUEUE in request.path):
                return self._break(request)
            body = await request.read()
            fate = self._fate(weather)
            if fate == "refused":
                self.failed += 1
                return web.Response(status=self._chance.choice(REFUSALS), body=BUSY, content_type="application/xml")
            if weather.hold and request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
                await asyncio.sleep(weather.hold)
            answer = await self._forward(request, port, body)
            return self._break(request) if fate == "lost" or self.weather.partitioned else answer
        except (aiohttp.ClientError, ConnectionError):
            return self._break(request)
        finally:
            if isinstance(transport, asyncio.Transport):
                self._connections.discard(transport)

    def _fate(self, weather: Weather) -> str:
        if not weather.storm or self._chance.random() >= weather.storm:
            return "clear"
        return self._chance.choice(("refused", "lost"))

    async def _forward(self, request: web.BaseRequest, port: int, body: bytes) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED]
        bodiless = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        async with self._session.request(
            request.method,
            URL(f"http://127.0.0.1:{port}{request.raw_path}", encoded=True),
            headers=headers,
            data=None if bodiless else body,
            skip_auto_headers=_NOT_ADDED,
            allow_redirects=False,
        ) as upstream:
            content = await upstream.read()
            answer = web.Response(status=upstream.status, body=content)
            for name, value in upstream.headers.items():
                # The answer to HEAD tells a length that it does not have.
                if name.lower() not in _NOT_FORWARDED or (
                    request.method == hdrs.METH_HEAD and name.lower() == "content-length"
                ):
                    answer.headers[name] = value
            return answer

    def _break(self, request: web.BaseRequest) -> web.Response:
        self.failed += 1
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)
