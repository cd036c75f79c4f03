"""The body of a streamed answer: frames as they come, comments while nothing does, a proper event when it breaks.

One chunk is one frame (W5) or one keep-alive comment (B28). Frames are read by a task of their own, so that neither
the keep-alive nor a client that goes away ever interrupts a read half-way; the first read begins when the answer is
made, so that the source knows of its end even if the client was gone before the first byte. The source is closed
when the answer is over, however it ends: that is how the engine learns of a disconnect (B17). Nothing follows a
terminal event (B26).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.failures import as_api_error
from protocol import sse
from protocol.errors import error_event
from resilience.log_context import bound

_log = logging.getLogger("api.stream")


class EventStreamResponse(StreamingResponse):
    """Answers with server-sent events.

    Args:
        frames: Whole frames, in order.
        after: The sequence number before that of the first frame, for the `error` event of a stream that breaks.
        keep_alive: Seconds of silence before a comment; None for no comments.
        request_id: Stands in that `error` event.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        after: int = -1,
        keep_alive: float | None,
        request_id: str,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(self._chunks(), headers={**headers, **sse.HEADERS})
        self._frames = frames
        self._last = after
        self._keep_alive = keep_alive
        self._request_id = request_id
        self._reading = self._read()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with bound(request_id=self._request_id):
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._close()

    def _read(self) -> "asyncio.Task[bytes]":
        return asyncio.ensure_future(anext(self._frames))

    async def _chunks(self) -> AsyncGenerator[bytes]:
        while True:
            done, _ = await asyncio.wait({self._reading}, timeout=self._keep_alive)
            if not done:
                yield sse.KEEP_ALIVE
                continue
            try:
                frame = self._reading.result()
            except StopAsyncIteration:
                return
            except (Exception, asyncio.CancelledError) as error:
                yield self._broken(error)
                return
            self._last = sse.sequence_of(frame)
            yield frame
            if sse.is_terminal(frame):
                return
            self._reading = self._read()

    def _broken(self, error: BaseException) -> bytes:
        _log.error("request %s: the stream broke off", self._request_id, exc_info=error)
        return sse.encode(error_event(self._last + 1, as_api_error(error), self._request_id))

    async def _close(self) -> None:
        # A read that was cancelled before it began would leave the source without a word of its end.
        await asyncio.sleep(0)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        if isinstance(self._frames, AsyncGenerator):
            try:
                await self._frames.aclose()
            except Exception:
                _log.exception("request %s: the source of the stream could not be closed", self._request_id)
