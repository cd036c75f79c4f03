"""Attacks a server with hostile requests and judges every answer by the API's own description.

What has to hold for each: an answer within the deadline; no 5xx; on a path of the API an answer as documented, with
its schema, headers and content type; elsewhere the host's own refusal. And afterwards: the server still works, and
every response in storage is one that an answer named.
"""

import asyncio
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings

from protocol import jsonio
from protocol.events import TERMINAL
from storage.connection import Storage
from storage.driver import CONTAINERS, RESPONSES
from tests.support import described, hostile
from tests.support.api_server import ApiServer, events_in, serving
from tests.support.azurite import AzuriteServer
from tests.support.raw_http import RawAnswer, RawRequest, exchange
from tests.support.servers import Deployment, deployment

DEADLINE_SECONDS = 20.0
START_SECONDS = 30.0
POLL_SECONDS = 0.02
SHIPPED_AGENT = "agent:app"
WITHOUT_A_MODEL = {"OPENAI_API_KEY": "", "AZURE_OPENAI_API_KEY": "", "AZURE_OPENAI_ENDPOINT": ""}
BIG_HEAD_BYTES = 4096
"""From so many bytes of target or header on, an HTTP server may refuse before it knows who is asked."""

_HOST_REFUSALS = frozenset({400, 404, 405, 414, 431, 501})
_PLAIN = re.compile(rb"[A-Za-z0-9_\-./~?=&\[\]]*")
_RESPONSE_ID = re.compile(r"resp_[0-9A-Za-z]{50}(?![0-9A-Za-z])")


class Unacceptable(AssertionError):
    """The server did not stand up to a request."""


@dataclass
class Tally:
    """What came of an attack. `answers` counts statuses, 0 for a connection that was closed over half a request."""

    answers: Counter[int] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)
    slowest: float = 0.0

    @property
    def total(self) -> int:
        return self.answers.total()

    def __str__(self) -> str:
        counts = ", ".join(f"{status or 'closed'}: {count}" for status, count in sorted(self.answers.items()))
        failures = sum(count for status, count in self.answers.items() if status >= 500)
        return f"{self.total} requests, {failures} of them 5xx, 0 hung, slowest {self.slowest:.2f} s; {counts}"

    def add(self, other: "Tally") -> None:
        """Count another attack's in."""
        self.answers += other.answers
        self.slowest = max(self.slowest, other.slowest)


def attack(address: tuple[str, int], number: int, seed_value: int, *known: str) -> Tally:
    """Send that many hostile requests, one after the other, and judge the answers.

    Raises:
        Unacceptable: An answer was wrong; the smallest such request that hypothesis found is in the notes.
    """
    tally = Tally(named=set(known))

    @seed(seed_value)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile.requests(*known))
    def strike(request: RawRequest) -> None:
        begin = time.monotonic()
        answer = exchange(address, request, DEADLINE_SECONDS)
        tally.slowest = max(tally.slowest, time.monotonic() - begin)
        tally.answers[answer.status] += 1
        tally.named |= names_in(answer)
        judge(request, answer)

    strike()
    return tally


def attack_endpoints(number: int, seed_value: int) -> Tally:
    """Attack the endpoints in a thread of this process, over storage in memory.

    Raises:
        Unacceptable: An answer was wrong, or something was left in storage.
    """
    with serving_in_thread() as served:
        url = str(served.server.client.base_url)
        tally = attack(_address(url), number, seed_value, *seeds_at(url))
        _assert_nothing(served.run(left_behind(served.server.storage, tally)))
        seeds_at(url)
    return tally


def attack_host(made: Deployment, number: int, seed_value: int) -> Tally:
    """Attack the first host of a deployment, as `attack_endpoints`."""
    host = made.hosts[0]
    tally = attack(_address(host.base_url), number, seed_value, *seeds_at(host.base_url))
    _assert_nothing(asyncio.run(_left_behind(made, tally)))
    seeds_at(host.base_url)
    return tally


@contextmanager
def shipped(azurite: AzuriteServer) -> Iterator[Deployment]:
    """The app as it is shipped, on one host."""
    with deployment(azurite, SHIPPED_AGENT, **WITHOUT_A_MODEL, RESPONSES_EAGER_START="true") as made:
        made.start_blocking()
        yield made


def judge(request: RawRequest, answer: RawAnswer) -> None:
    """Whether the answer to a request is acceptable.

    Raises:
        Unacceptable: It is not.
    """
    if answer.status >= 500:
        raise Unacceptable(f"{answer.status}: {request!r}: {answer.body[:1000]!r}")
    if answer.status == 0:
        if request.framing != "short" or answer.body:
            raise Unacceptable(f"no answer: {request!r}: {answer.body[:200]!r}")
        return
    if request.body and len(answer.body) < int(answer.headers.get("content-length", "0")) and request.method != "HEAD":
        return  # the connection was reset over a body that nobody had asked for, and that nobody read
    path = request.target.partition(b"?")[0].decode("latin-1")
    operation = described.find(request.method, path)
    try:
        if operation is None:
            _judge_elsewhere(answer)
        elif not (_is_rude(request) and _is_of_the_host(answer)):
            described.check(operation, answer.status, answer.headers, answer.body)
            _judge_identity(answer)
    except (described.NotAsDescribed, ValueError, KeyError) as wrong:
        raise Unacceptable(f"{request!r}: {wrong}") from wrong


def names_in(answer: RawAnswer) -> set[str]:
    """The ids of responses that an answer names."""
    return set(_RESPONSE_ID.findall(answer.body.decode("latin-1"))) if answer.status == 200 else set()


async def left_behind(storage: Storage, tally: Tally) -> set[str]:
    """Ids of responses of which there is a row or a blob in storage, and which no answer named."""
    rows = [row.row_key for row in await storage.driver.query_entities(RESPONSES)]
    blobs = [name for container in CONTAINERS for name in await storage.driver.list_blobs(container, "")]
    return set(_RESPONSE_ID.findall("\n".join([*rows, *blobs]))) - tally.named


class _Stopped(BaseException):
    """The attack is over; what was invoked need not end."""


@dataclass
class ThreadedServer:
    """A served engine in a thread with a loop of its own."""

    server: ApiServer
    loop: asyncio.AbstractEventLoop

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_SECONDS)


@contextmanager
def serving_in_thread() -> Iterator[ThreadedServer]:
    """Serve the echoing app in a thread, so that hypothesis, which is synchronous, can attack it."""
    ready: queue.Queue[ThreadedServer | BaseException] = queue.Queue()
    stop = threading.Event()

    async def serve() -> None:
        async with serving() as server:
            ready.put(ThreadedServer(server, asyncio.get_running_loop()))
            # Where a key stands for it, a background response is run by its message.
            async with asyncio.TaskGroup() as invocations:
                while not await asyncio.to_thread(stop.wait, POLL_SECONDS):
                    invocations.create_task(server.run_messages())
                raise _Stopped

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseExceptionGroup as group:
            if group.split(_Stopped)[1] is not None:
                raise
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=run, name="attacked-server")
    thread.start()
    try:
        made = ready.get(timeout=START_SECONDS)
        if isinstance(made, BaseException):
            raise made
        yield made
    finally:
        stop.set()
        thread.join()


def seeds_at(url: str) -> list[str]:
    """Responses to ask for, one of each kind, finished, and a conversation: the server does what it is for."""
    with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        kinds: list[dict[str, bool]] = [{}, {"background": True}, {"background": True, "stream": True}]
        conversation = client.post("/v1/conversations", json={"items": [{"role": "user", "content": "Hello"}]})
        return [*(_seed(client, flags) for flags in kinds), str(conversation.json()["id"])]


def _seed(client: httpx.Client, flags: dict[str, bool]) -> str:
    answer = client.post("/v1/responses", json={"input": "Hello", **flags})
    assert answer.status_code == 200, answer.text
    made = events_in(answer.content)[-1]["response"] if "stream" in flags else answer.json()
    response_id = str(made["id"])
    deadline = time.monotonic() + DEADLINE_SECONDS
    while client.get(f"/v1/responses/{response_id}").json()["status"] != "completed":
        assert time.monotonic() < deadline, f"{response_id} does not end"
        time.sleep(POLL_SECONDS)
    return response_id


async def _left_behind(made: Deployment, tally: Tally) -> set[str]:
    async with made.storage() as storage:
        return await left_behind(storage, tally)


def _assert_nothing(left: set[str]) -> None:
    if left:
        raise Unacceptable(f"responses in storage that no answer named: {sorted(left)}")


def _address(url: str) -> tuple[str, int]:
    parsed = httpx.URL(url)
    return parsed.host, parsed.port or 80


def _is_rude(request: RawRequest) -> bool:
    """Whether a server may refuse the request before it knows what it is about."""
    heads = (request.target, *(value for _, value in request.headers))
    names = [name.lower() for name, _ in request.headers]
    doubled = len(set(names)) < len(names)
    return doubled or not _PLAIN.fullmatch(request.target) or any(len(head) >= BIG_HEAD_BYTES for head in heads)


def _is_of_the_host(answer: RawAnswer) -> bool:
    return answer.status in _HOST_REFUSALS and b'"additionalInfo"' not in answer.body


def _judge_elsewhere(answer: RawAnswer) -> None:
    """Where the API has nothing, whatever is said in its own form must be in its form."""
    if b'"additionalInfo"' in answer.body and answer.status >= 400:
        described.validator("Error").validate(jsonio.loads(answer.body))
        _judge_identity(answer)


def _judge_identity(answer: RawAnswer) -> None:
    """An error names its request as the header does (W8); a stream ends as streams end (B26)."""
    if answer.status >= 400:
        named = jsonio.loads(answer.body)["error"]["additionalInfo"]["request_id"]
        if named != answer.headers["x-request-id"]:
            raise described.NotAsDescribed(f"two request ids: {named!r} and {answer.headers['x-request-id']!r}")
    elif answer.headers["content-type"].startswith(described.EVENTS):
        types = [event["type"] for event in events_in(answer.body)]
        if types and (types[-1] not in TERMINAL | {"error"} or len(set(types) & TERMINAL) > 1):
            raise described.NotAsDescribed(f"a stream that ends with {types[-3:]}")
