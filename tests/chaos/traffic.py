"""The clients: each makes one response in one of the modes, holds on to it whatever breaks, and keeps what it was told.

A client that loses its connection goes to another host. What it was told is not judged here, but for what would be
wrong at any time: an answer that is none of this API's, a status that goes back, an end that does not come.
"""

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from protocol import sse
from protocol.response import TERMINAL_STATUSES
from tests.chaos.hosts import Slot
from tests.support.host import FunctionHost
from tests.support.invariants import View
from tests.support.servers import frames_from

type Json = dict[str, Any]

END_SECONDS = 150.0
"""So long a response may take, with all that happens to it."""

TALK_SECONDS = 400.0
"""So long a turn may take, with all that happens to those before it."""

CROWDED_SECONDS = 60.0
"""So long before its time was up a client may have asked a crowded conversation for the last time."""

UNAVAILABLE = (500, 502, 503, 504)
MANY_BYTES = 50_000

MODES = {
    "poll": 15,
    "stream": 20,
    "checkpoints": 14,
    "readers": 6,
    "cancel poll": 7,
    "cancel stream": 9,
    "keyed": 6,
    "deleted": 6,
    "left": 5,
    "foreground": 8,
    "foreground stream": 8,
    "foreground left": 3,
    "not stored": 3,
    "not stored stream": 3,
    "talk": 14,
}

TURNS = {
    "poll": 6,
    "stream": 6,
    "checkpoints": 3,
    "cancel poll": 3,
    "cancel stream": 3,
    "deleted": 1,
    "left": 1,
    "foreground": 2,
    "foreground stream": 2,
    "foreground left": 1,
}
"""What the turns of a talk are like: each comes while those before it run or wait."""

MOST_TURNS = 6
PAUSES = (0.0, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Cut:
    """A stream that a host ended in order although no terminal event had come. Times are Unix time.

    Attributes:
        pid: of the host.
        began: when it was asked for.
        ended: when it was over.
        last: the number of the last event, -1 if there was none.
    """

    pid: int
    began: float
    ended: float
    last: int


@dataclass
class Told:
    """What one client asked for and was told.

    Attributes:
        views: what each of its readers saw, over all their connections.
        whole: for each view, whether it came to the end of its stream.
        connections: what came over each connection to a stream, and from which cursor on.
        cuts: the streams that ended in order, and too early. A connection that breaks is none.
        final: the response as a GET, or the foreground's answer, told it at last.
        ids: every id it was told; a key stands for one response.
        wrong: what no client may ever be told.
        asked_at: when it asked last for a turn that may be another one each time.
        refused_at: when it was told last that its conversation has no room.
    """

    mode: str
    script: Json
    began: float
    conversation: str = ""
    response_id: str = ""
    background: bool = False
    store: bool = True
    views: list[list[bytes]] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    connections: list[View] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    final: Json | None = None
    cancelled: bool = False
    deleted: bool = False
    ids: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    last_status: str = ""
    asked_at: float = 0.0
    refused_at: float = 0.0

    @property
    def crowded_out(self) -> bool:
        """Whether it knows of no response, for others were before it in its conversation to the end.

        A stream shows nothing as long as its turn waits. So a client without a key whose connections break asks for
        another turn each time, behind all others, and such turns may fill the queue for longer than its time.
        """
        last = max(self.refused_at, self.asked_at)
        return not self.answered and bool(self.conversation) and time.time() - last < CROWDED_SECONDS

    @property
    def answered(self) -> bool:
        """Whether there is a response that the client knows of."""
        return bool(self.response_id)

    def saw(self, response: Json) -> None:
        """Take note of a snapshot that was polled (B6)."""
        status = response["status"]
        before = self.last_status
        if before in TERMINAL_STATUSES and status != before:
            self.wrong.append(f"V1: {status} after {before}")
        if before == "in_progress" and status == "queued":
            self.wrong.append("B6: queued after in_progress")
        self.last_status = status
        if status in TERMINAL_STATUSES:
            self.final = response


def client() -> httpx.AsyncClient:
    """What all clients share; making one costs more than a response. Every request has a connection of its own."""
    return httpx.AsyncClient(timeout=httpx.Timeout(30), limits=httpx.Limits(max_keepalive_connections=0))


class Traffic:
    """Starts clients at a steady rate until told to stop."""

    def __init__(self, slots: Sequence[Slot], http: httpx.AsyncClient, chance: random.Random) -> None:
        self.told: list[Told] = []
        self.done: Counter[str] = Counter()
        self.crowded_out = 0
        self._slots = slots
        self._http = http
        self._chance = chance
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int:
        """Clients at work."""
        return len(self._under_way)

    def known_ids(self) -> list[str]:
        """Every background response that somebody was told of."""
        return [told.response_id for told in self.told if told.background and told.response_id]

    async def make(self, until: float, rate: float, at_once: int) -> None:
        """Start `rate` clients per second until that loop time, at most `at_once` together; they go on after it."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self._chance.expovariate(rate))
            if len(self._under_way) < at_once:
                mode = self._chance.choices(list(MODES), list(MODES.values()))[0]
                chance = random.Random(self._chance.random())
                self._start(self._talk(chance) if mode == "talk" else self._play(self._client(mode, chance)), mode)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def _client(self, mode: str, chance: random.Random, conversation: str = "") -> "Client":
        client = Client(mode, self._slots, self._http, chance, conversation)
        self.told.append(client.told)
        return client

    async def _talk(self, chance: random.Random) -> None:
        """Several turns of one conversation, each as soon as the one before it was accepted, or before."""
        conversation = f"conv_{uuid.UUID(int=chance.getrandbits(128)).hex}"
        for _ in range(chance.randint(2, MOST_TURNS)):
            mode = chance.choices(list(TURNS), list(TURNS.values()))[0]
            client = self._client(mode, random.Random(chance.random()), conversation)
            self._start(self._play(client, TALK_SECONDS), client.told.mode)
            await asyncio.sleep(chance.choice(PAUSES))

    async def _play(self, client: "Client", seconds: float = END_SECONDS) -> None:
        try:
            async with asyncio.timeout(seconds):
                await client.play()
        except TimeoutError:
            if client.told.crowded_out:
                self.crowded_out += 1
            else:
                client.told.wrong.append(f"V1: no end within {seconds:.0f} s")
        self.done[client.told.mode] += 1

    async def finish(self) -> None:
        """Wait for the clients at work; each has a deadline of its own."""
        while self._under_way:
            await asyncio.gather(*self._under_way)


class Client:
    """One client and its response."""

    def __init__(
        self,
        mode: str,
        slots: Sequence[Slot],
        http: httpx.AsyncClient,
        chance: random.Random,
        conversation: str = "",
    ) -> None:
        self._http = http
        self._slots = [slot for slot in slots if slot.role.serves_http]
        self._chance = chance
        self._mode = mode
        told_as = f"turn, {mode}" if conversation else mode
        self.told = Told(told_as, self._script(mode), time.time(), conversation)
        self._key = ""
        """Of a streamed turn that has one."""

    def _script(self, mode: str) -> Json:
        script: Json = {"count": self._chance.randint(2, 30), "delay": self._chance.choice((0.0, 0.02, 0.1, 0.2))}
        if mode == "checkpoints":
            script["checkpoint_every"] = self._chance.choice((1, 3, 7))
        if mode.startswith("cancel"):
            script["delay"] = 0.2
        script["stubborn"] = self._chance.random() < 0.3
        script["wind_down"] = self._chance.choice((0.0, 0.0, 1.5))
        if self._chance.random() < 0.06:
            script["ballast"] = "x" * MANY_BYTES
        return script

    async def play(self) -> None:
        """Do what the mode says, to the end."""
        mode = self._mode
        if mode.startswith("foreground"):
            await self._foreground(stream=mode != "foreground", leaves=mode.endswith("left"))
        elif mode.startswith("not stored"):
            self.told.store = False
            await self._foreground(stream=mode.endswith("stream"), leaves=False)
        else:
            self.told.background = True
            await self._background(mode)

    async def _background(self, mode: str) -> None:
        if self.told.conversation:
            self._key = uuid.UUID(int=self._chance.getrandbits(128)).hex
        polled = mode in ("poll", "cancel poll", "keyed") or (mode == "deleted" and self._chance.random() < 0.5)
        # Who has no answer asks again; what came of the first try is nobody's but the judge's.
        while not self.told.response_id:
            if mode == "keyed":
                await self._accept_keyed()
            elif polled:
                await self._accept()
            else:
                await self._accept_stream(leaves=mode == "left")
        others = [self._follow([]) for _ in range(2)] if mode == "readers" else []
        canceller = [self._cancel()] if mode.startswith("cancel") else []
        own = [] if polled or mode == "left" else [self._follow(self.told.views[0])]
        await asyncio.gather(*others, *canceller, *own)
        await self._poll()
        if mode == "deleted":
            await self._delete()

    # -- making it --------------------------------------------------------------------------------------------------

    def _body(self, **fields: Any) -> Json:
        return {
            "model": "chaos",
            "input": json.dumps(self.told.script),
            "background": self.told.background,
            "store": self.told.store,
            **({"conversation": self.told.conversation} if self.told.conversation else {}),
            **fields,
        }

    async def _accept(self) -> None:
        answer = await self._call("POST", "/responses", json=self._body())
        if answer is not None:
            self._made(answer)

    async def _accept_keyed(self) -> None:
        """The same request again and again, whatever came of it: one response (I1)."""
        headers = {"Idempotency-Key": uuid.UUID(int=self._chance.getrandbits(128)).hex}
        body = self._body()
        for _ in range(self._chance.randint(2, 3)):
            answer = await self._definite("POST", "/responses", json=body, headers=headers)
            self._made(answer)

    def _made(self, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            made = answer.json()
            self.told.response_id = made["id"]
            self.told.ids.add(made["id"])
            self.told.saw(made)

    async def _accept_stream(self, *, leaves: bool) -> None:
        if not self.told.views:
            self._add_view([])
        enough = self._chance.randint(1, 6) if leaves else 10**9
        request: Json = {"json": self._body(stream=True), "enough": enough}
        if self._key:  # the same turn, however often its connection breaks while it waits
            request["headers"] = {"Idempotency-Key": self._key}
        else:
            self.told.asked_at = time.time()
        await self._stream("POST", "/responses", self.told.views[0], **request)

    def _add_view(self, view: list[bytes]) -> int:
        self.told.views.append(view)
        self.told.whole.append(False)
        return len(self.told.views) - 1

    async def _foreground(self, *, stream: bool, leaves: bool) -> None:
        while not self.told.response_id:
            if stream:
                await self._accept_stream(leaves=leaves)
            else:
                await self._accept()
        if not stream and self.told.last_status not in TERMINAL_STATUSES:
            self.told.wrong.append(f"C1: the answer says {self.told.last_status}")

    # -- following it -----------------------------------------------------------------------------------------------

    async def _follow(self, view: list[bytes]) -> None:
        """Read on after the last event that was seen, on one connection after the other, to the end."""
        if not any(view is each for each in self.told.views):
            self._add_view(view)
        index = next(number for number, each in enumerate(self.told.views) if each is view)
        path = f"/responses/{self.told.response_id}"
        while not self.told.whole[index]:
            after = sse.sequence_of(view[-1]) if view else -1
            await self._stream("GET", path, view, params={"stream": "true", "starting_after": after})
            await asyncio.sleep(0.2)

    async def _stream(self, method: str, path: str, view: list[bytes], *, enough: int = 10**9, **request: Any) -> None:
        """One connection; breaks are the network's, and no news."""
        index = next(number for number, each in enumerate(self.told.views) if each is view)
        host = await self._host()
        begin, began = len(view), time.time()
        after = int(request.get("params", {}).get("starting_after", -1))
        try:
            async with self._http.stream(method, host.base_url + path, **request) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self._check_status(answer, (200,))
                    return
                async for frame in frames_from(answer):
                    if sse.event_type(frame) == "error":  # it was not made
                        self._check_error(frame, view, method)
                        return
                    view.append(frame)
                    self._learn_id(frame)
                    self.told.whole[index] = sse.is_terminal(frame)
                    if len(view) >= enough:
                        return
                if not self.told.whole[index]:
                    last = sse.sequence_of(view[-1]) if view else -1
                    self.told.cuts.append(Cut(host.pid, began, time.time(), last))
        except httpx.HTTPError:
            pass
        finally:
            self.told.connections.append(View(view[begin:], after, ended=self.told.whole[index]))

    def _learn_id(self, frame: bytes) -> None:
        if not self.told.response_id:
            self.told.response_id = sse.decode(frame)["response"]["id"]
            self.told.ids.add(self.told.response_id)

    def _check_error(self, frame: bytes, view: list[bytes], method: str) -> None:
        """A response that could not be recorded has one `error` event for an answer, on nothing else (R1)."""
        event = sse.decode(frame)
        if self.told.background and (view or method == "GET"):
            self.told.wrong.append(f"V4: an error event in a background stream: {event}")

    async def _poll(self) -> None:
        while self.told.final is None:
            answer = await self._definite("GET", f"/responses/{self.told.response_id}")
            if answer.status_code == 200:
                self.told.saw(answer.json())
            await asyncio.sleep(self._chance.uniform(0.1, 0.8))

    async def _cancel(self) -> None:
        await asyncio.sleep(self._chance.choice((0.0, 0.1, 0.5, 1.5, 4.0)))
        answer = await self._definite("POST", f"/responses/{self.told.response_id}/cancel", allowed=(200, 400))
        if answer.status_code == 200:
            self.told.cancelled = True
            self.told.saw(answer.json())
        elif "Cannot cancel a" not in answer.text:
            self.told.wrong.append(f"B12: {answer.text}")

    async def _delete(self) -> None:
        again = False
        while not self.told.deleted:
            # A first try whose answer was lost leaves nothing to be found by the second.
            allowed = (200, 400, 404) if again else (200,)
            answer = await self._call("DELETE", f"/responses/{self.told.response_id}", allowed=allowed)
            self.told.deleted = answer is not None and answer.status_code in allowed
            again = True
            await asyncio.sleep(0.2)
        gone = await self._definite("GET", f"/responses/{self.told.response_id}", allowed=(400,))
        if gone.status_code != 400:
            self.told.wrong.append(f"V10: {gone.status_code} after the deletion")

    # -- the wire ---------------------------------------------------------------------------------------------------

    async def _host(self) -> FunctionHost:
        """One that is up, as soon as there is one."""
        while True:
            await asyncio.sleep(0.05)
            up = [slot.host for slot in self._slots if slot.up and slot.host is not None]
            if up:
                return self._chance.choice(up)

    async def _definite(self, *request: Any, **fields: Any) -> httpx.Response:
        """Ask until somebody answers."""
        while True:
            answer = await self._call(*request, **fields)
            if answer is not None and answer.status_code not in UNAVAILABLE:
                return answer
            await asyncio.sleep(self._chance.uniform(0.1, 0.5))

    async def _call(
        self, method: str, path: str, allowed: Sequence[int] = (200,), **fields: Any
    ) -> httpx.Response | None:
        host = await self._host()
        try:
            answer = await self._http.request(method, host.base_url + path, **fields)
        except httpx.HTTPError:
            return None
        self._check_status(answer, allowed)
        return answer

    def _check_status(self, answer: httpx.Response, allowed: Sequence[int]) -> None:
        if answer.status_code == 409 and self.told.conversation and "queue_full" in answer.text:
            self.told.refused_at = time.time()
            return  # turns that were made and whose answer was lost wait as well
        if answer.status_code not in (*allowed, *UNAVAILABLE):
            request = answer.request
            self.told.wrong.append(f"{request.method} {request.url.path}: {answer.status_code} {answer.text[:300]}")


def per_mode(told: Sequence[Told]) -> Mapping[str, int]:
    """How many responses of each mode."""
    return Counter(each.mode for each in told if each.answered)
