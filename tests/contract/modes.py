"""The six ways to ask for a response, and what a client is told in each of them."""

from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.support.api_server import ApiServer, events_in

type Json = dict[str, Any]

MODES: dict[str, Json] = {
    "C1": {},
    "C2": {"stream": True},
    "C3": {"background": True},
    "C4": {"background": True, "stream": True},
    "C5": {"store": False},
    "C6": {"store": False, "stream": True},
}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
STORED_MODES = ("C1", "C2", "C3", "C4")
STORED = pytest.mark.parametrize("mode", STORED_MODES)


@dataclass(frozen=True)
class Told:
    """What a client was told of one response.

    Attributes:
        answer: to the POST.
        events: in it, if it is a stream.
        final: the response as this client knows it in the end; None if it was told of no response.
    """

    answer: httpx.Response
    events: list[Json] = field(default_factory=list)
    final: Json | None = None

    @property
    def response(self) -> Json:
        """The final response."""
        assert self.final is not None, self.answer.text
        return self.final

    @property
    def types(self) -> list[str]:
        """The names of the events."""
        return [event["type"] for event in self.events]

    @property
    def error(self) -> Json:
        """The error instead of a response: in the answer's body, or in the one event of a stream."""
        assert self.types in ([], ["error"])
        error: Json = (self.events[0] if self.events else self.answer.json())["error"]
        return error


async def ask(server: ApiServer, mode: str, **body: Any) -> Told:
    """POST in that mode, and wait for the end as such a client does.

    Of a stored response, a GET afterwards repeats the final one.
    """
    flags = MODES[mode]
    answer = await server.post(**{"input": "Hello", **body, **flags})
    if answer.status_code != 200:
        return Told(answer)
    if flags.get("stream"):
        events = events_in(answer.content)
        told = Told(answer, events, events[-1].get("response"))
    elif flags.get("background"):
        told = Told(answer, final=await server.get_ended(answer.json()["id"]))
    else:
        told = Told(answer, final=answer.json())
    if told.final is not None and told.final["store"]:
        again = await server.get(told.final["id"])
        assert (again.status_code, again.json()) == (200, told.final)
    return told
