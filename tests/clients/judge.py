"""Judges what a client received on its way through: the frameworks read only a part of it, or read it leniently."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai.types.responses import Response

from protocol import sse
from tests.support import stream_oracle


@dataclass
class Judge:
    """Collects the answers of successful calls; `check` holds every one of them to the types of the `openai` package."""

    answers: list[httpx.Response] = field(default_factory=list)

    async def watch(self, response: httpx.Response) -> None:
        """An event hook of httpx. The body is not there yet: the client reads it."""
        if response.status_code == 200:
            self.answers.append(response)

    @property
    def streams(self) -> list[list[dict[str, Any]]]:
        """The events of every streamed answer."""
        return [_events(answer) for answer in self.answers if _is_stream(answer)]

    @property
    def responses(self) -> list[dict[str, Any]]:
        """The (final) response of every answer, in order."""
        return [_events(a)[-1]["response"] if _is_stream(a) else json.loads(a.content) for a in self.answers]

    def check(self) -> None:
        """Every stream is whole, every response strictly of its type with not one field left out (W1)."""
        for events in self.streams:
            stream_oracle.assert_whole(events)
        for response in self.responses:
            stream_oracle.assert_response(response)
            missing = set(Response.model_fields) - set(response)
            assert not missing, f"left out: {sorted(missing)}"


def _is_stream(answer: httpx.Response) -> bool:
    return answer.headers["content-type"].startswith("text/event-stream")


def _events(answer: httpx.Response) -> list[dict[str, Any]]:
    frames, rest = sse.split(answer.content)
    assert not rest, "the stream ended in the middle of a frame, or the client left before its end"
    return [sse.decode(frame) for frame in frames if not frame.startswith(b":")]
