"""The answer to one request: JSON, a stream or an error, each with the headers that every answer has."""

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response

from api.event_stream import EventStreamResponse
from api.failures import as_api_error
from api.incoming import REQUEST_ID_HEADER
from api.version import SERVER
from protocol import jsonio
from protocol.errors import ApiError
from resilience.options import ResponsesServerOptions

SERVER_HEADER = "x-platform-server"
KEEP_ALIVE_SECONDS = 15.0
"""Of silence before a comment line, unless the app says otherwise (B28)."""

_log = logging.getLogger("api")


class Reply:
    """Makes the answer to the request of that id."""

    def __init__(
        self,
        request_id: str,
        options: ResponsesServerOptions | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`headers`: further ones of every answer."""
        self.options = options or ResponsesServerOptions()
        self._request_id = request_id
        self._more = dict(headers or {})

    @property
    def request_id(self) -> str:
        """The id that every answer names."""
        return self._request_id

    def empty(self, headers: Mapping[str, str]) -> Response:
        """An answer without a body."""
        return Response(headers={**self._headers(), **headers})

    def json(self, body: Any, status: int = 200) -> Response:
        """A JSON answer."""
        return Response(jsonio.dumps(body), status, self._headers(), media_type="application/json")

    def stream(self, frames: AsyncIterator[bytes], after: int = -1) -> Response:
        """The frames as server-sent events; `after` is the sequence number before the first."""
        interval = self.options.sse_keep_alive_interval_seconds
        return EventStreamResponse(
            frames,
            after=after,
            keep_alive=KEEP_ALIVE_SECONDS if interval is None else interval or None,
            request_id=self._request_id,
            headers=self._headers(),
        )

    def error(self, error: Exception) -> Response:
        """The answer to what was raised. What is not meant for clients goes to the log, and only there."""
        answer = as_api_error(error)
        if not isinstance(error, ApiError):
            _log.error("request %s failed", self._request_id, exc_info=error)
        response = self.json(answer.body(self._request_id), answer.status)
        response.headers.update(answer.headers)
        return response

    def _headers(self) -> dict[str, str]:
        more = self.options.additional_server_version
        server = f"{SERVER} {more}" if more else SERVER
        return {REQUEST_ID_HEADER: self._request_id, SERVER_HEADER: server, **self._more}
