"""Judges what a client received on its way through: the frameworks read only a part of it, or read it leniently."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
from openai.types.responses import Response

from protocol import sse
from tests.support import stream_oracle


@dataclass
class Answer:
    """One answer, as far as the client has read it."""

    content_type: str
    received: bytearray = field(default_factory=bytearray)

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    @property
    def events(self) -> list[dict[str, Any]]:
        frames, rest = sse.split(bytes(self.received))
        assert not rest, f"the client left in the middle of a frame: {rest[:200]!r}"
        return [sse.decode(frame) for frame in frames if not frame.startswith(b":")]

    @property
    def response(self) -> dict[str, Any]:
        response: dict[str, Any] = self.events[-1]["response"] if self.is_stream else json.loads(self.received)
        return response


class Copying(httpx2.AsyncByteStream):
    """A body that is copied while it is read."""

    def __init__(self, source: httpx2.AsyncByteStream, copy: bytearray) -> None:
        self._source = source
        self._copy = copy

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._source:
            self._copy += chunk
            yield chunk

    async def aclose(self) -> None:
        await self._source.aclose()


class Judge(httpx2.AsyncHTTPTransport):
    """The transport of a client. It collects the answers of successful calls; `check` holds every one of them to the
    types of the `openai` package."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Answer] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.status_code == 200:
            answer = Answer(response.headers["content-type"])
            self.answers.append(answer)
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = Copying(response.stream, answer.received)
        return response

    @property
    def streams(self) -> list[list[dict[str, Any]]]:
        """The events of every streamed answer."""
        return [answer.events for answer in self.answers if answer.is_stream]

    @property
    def responses(self) -> list[dict[str, Any]]:
        """The (final) response of every answer, in order."""
        return [answer.response for answer in self.answers]

    def check(self) -> None:
        """Every stream is whole, every response strictly of its type with not one field left out (W1)."""
        for events in self.streams:
            stream_oracle.assert_whole(events)
        for response in self.responses:
            stream_oracle.assert_response(response)
            missing = set(Response.model_fields) - set(response)
            assert not missing, f"left out: {sorted(missing)}"
