"""Hands an HTTP request to the web extension's server, and its response back, both as streams.

Every chunk the app writes becomes one write to the client. A client that leaves closes the upstream connection at
once, so that the app learns of it. A response that breaks off upstream breaks off here too: its connection is closed
without the end of the body. Hop-by-hop headers stay behind, but for `Connection: keep-alive`, which is as true here
as there.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from devhost.functions import Function
from devhost.invocations import Invocations
from devhost.messages import Message, TypedData
from devhost.runtime import Runtime, abandon

INVOCATION_HEADER = "x-ms-invocation-id"
# Below the 5 s after which the extension's server closes an idle connection.
KEEP_ALIVE_SECONDS = 3.0
SMALL_BODY = 64 * 1024

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_NOT_UPSTREAM = _HOP_BY_HOP | {"expect", INVOCATION_HEADER}
_NOT_DOWNSTREAM = _HOP_BY_HOP | {"server"}

_log = logging.getLogger("devhost.http")


class BodyTooLarge(Exception):
    """The request body is larger than the platform takes."""


class Proxy:
    """A client of the extension's server at `runtime.http_uri`. Use as an async context manager.

    `idle_timeout`: seconds without a byte after which a response is given up. `body_limit`: bytes of a request body.
    """

    def __init__(self, runtime: Runtime, invocations: Invocations, idle_timeout: float, body_limit: int) -> None:
        self._runtime = runtime
        self._invocations = invocations
        self._idle_timeout = idle_timeout
        self._body_limit = body_limit
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Proxy":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_read=self._idle_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=[hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT],
            max_field_size=64 * 1024,
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._session.close()

    async def forward(
        self, request: web.BaseRequest, function: Function, params: Mapping[str, str]
    ) -> web.StreamResponse:
        """Runs `function` for `request` and returns its response, already sent."""
        if (request.content_length or 0) > self._body_limit:
            return failure(413, "The request body is too large.")
        await _go_ahead(request)
        invocation_id, begin = str(uuid.uuid4()), time.monotonic()
        with self._invocations.track(function.name):
            self._invoke(request, function, invocation_id, params)
            response = await self._exchange(request, invocation_id)
        _log.info(
            "%s %s → %s, %.1f ms", request.method, request.path, response.status, 1000 * (time.monotonic() - begin)
        )
        return response

    def _invoke(
        self, request: web.BaseRequest, function: Function, invocation_id: str, params: Mapping[str, str]
    ) -> None:
        http = Message(
            method=request.method, url=str(request.url), headers={}, params=params, query={}, body=TypedData()
        )
        trace = (request.headers.get("traceparent", ""), request.headers.get("tracestate", ""))

        async def invoke() -> None:
            # Not bound to the client: a handler that does not stream runs on when its client has left.
            with self._invocations.track(function.name):
                outcome = await self._runtime.invoke(function, invocation_id, TypedData(http=http), {}, trace)
            if not outcome.succeeded:
                _log.error("%s failed: %s", function.name, outcome.error)

        task = asyncio.create_task(invoke(), name=f"http:{function.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, request: web.BaseRequest, invocation_id: str) -> web.StreamResponse:
        try:
            upstream = await self._send(request, invocation_id)
        except BaseException as error:
            abandon(invocation_id)
            match error:
                case BodyTooLarge():
                    return failure(413, "The request body is too large.")
                case aiohttp.SocketTimeoutError():
                    return failure(504, "The function sent nothing for too long.")
                case aiohttp.ClientError() if isinstance(error.__cause__, BodyTooLarge):
                    return failure(413, "The request body is too large.")
                case aiohttp.ClientError() | OSError():
                    return failure(502, f"The function's response could not be read: {error!r}")
            raise
        try:
            return await self._relay(request, upstream)
        finally:
            # After its end the connection has gone back to the pool; an unread rest means that the client has left.
            upstream.close()

    async def _send(self, request: web.BaseRequest, invocation_id: str) -> aiohttp.ClientResponse:
        headers = _headers(request.headers, _NOT_UPSTREAM)
        headers[INVOCATION_HEADER] = invocation_id
        body: bytes | AsyncIterator[bytes] | None = None
        if request.content_length is not None and request.content_length <= SMALL_BODY:
            body = await request.content.read() or None
        elif request.body_exists:
            body = self._body(request)
        return await self._session.request(
            request.method,
            URL(f"{self._runtime.http_uri}{request.raw_path}", encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
        )

    async def _body(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > self._body_limit:
                raise BodyTooLarge
            yield chunk

    async def _relay(self, request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = _headers(upstream.headers, _NOT_DOWNSTREAM)
        if upstream.headers.get(hdrs.CONNECTION, "").lower() == "keep-alive":
            headers[hdrs.CONNECTION] = "keep-alive"
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        await response.prepare(request)
        try:
            async for chunk, _ in upstream.content.iter_chunks():
                if chunk:
                    await response.write(chunk)
            await response.write_eof()
        except (aiohttp.ClientPayloadError, aiohttp.ServerConnectionError) as error:
            _log.warning("%s %s: the response broke off: %r", request.method, request.path, error)
            if request.transport is not None:
                request.transport.close()
        except ConnectionError:
            _log.debug("%s %s: the client has left", request.method, request.path)
        return response


async def _go_ahead(request: web.BaseRequest) -> None:
    """Lets a client send its body that waits for leave to do so."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # It counts as output, and output makes the server think that the response has begun.
        request.writer.output_size = 0


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer of the host itself."""
    return web.json_response({"error": message}, status=status, headers=headers)


def _headers(source: Mapping[str, str], without: frozenset[str]) -> CIMultiDict[str]:
    # A header named in Connection is hop-by-hop as well.
    named = {name.strip().lower() for name in source.get(hdrs.CONNECTION, "").split(",")}
    return CIMultiDict((k, v) for k, v in source.items() if (low := k.lower()) not in without and low not in named)
