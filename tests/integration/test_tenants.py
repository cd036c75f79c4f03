"""Another tenant's id is nothing: answered like an id that nobody ever had, after the same work.

The probes are drawn by a seed. Each is asked twice, with something that belongs to another tenant and with something
of the same shape that belongs to nobody; status, headers, body and storage operations have to be the same.
"""

import asyncio
import json
import random
import re
import statistics
import string
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Route

from api.endpoints import Endpoints
from api.keys import ApiKeys, hash_of
from api.settings import ApiSettings
from protocol.openapi import OPERATIONS, Operation
from resilience import ResponseContext, ResponseEventStream
from storage.seam import Moment
from tests.support.api_server import ApiServer, events_in, serving, until

SEED = 20_261_123
PROBES = 1_000
ACCESS = ApiKeys.parse(f"owner:{hash_of('owner')},stranger:{hash_of('stranger')}")
ONCE = 25
"""Of what a probe uses up, because the stranger then has one of that name: so many of each."""

_ID = re.compile(r"[a-z]+_[0-9A-Za-z]{50}|req_[0-9A-Za-z]{32}")
_TIME = re.compile(r'("(?:created|completed)_at": ?)\d+')
# The rhythm of a worker's ledger and of its watch message has nothing to do with what is asked.
_OF_THE_WORKER = re.compile(r"ledger\..*|queue\..*_watch|queue\.depth")

_operations: ContextVar[list[str] | None] = ContextVar("operations", default=None)


async def telling(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    """Say all that a handler can learn; with "wait" in the input, wait for a cancel."""
    known = {"items": await context.get_input_items(), "history": await context.get_history()}
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_message(json.dumps(known)):
        yield event
    if "wait" in await context.get_input_text():
        await signal.wait()
    elif "fail" in await context.get_input_text():
        yield stream.emit_failed(message="as told")
    else:
        yield stream.emit_completed()


def every_route(endpoints: Endpoints) -> Starlette:
    """All that is described and served by an endpoint of its name."""
    served = [operation for operation in OPERATIONS if hasattr(endpoints, operation.name)]
    return Starlette(
        routes=[
            Route(prefix + operation.path, getattr(endpoints, operation.name), methods=[operation.method.upper()])
            for operation in served
            for prefix in operation.prefixes
        ]
    )


@dataclass
class Belongings:
    """What the owner has, as a stranger would name it; `once` is what one probe uses up."""

    responses: list[str] = field(default_factory=list)
    conversations: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Probe:
    """A request, but for what it names: `{}` in the path, the body or the header."""

    method: str
    path: str
    named: str
    body: str = ""
    header: str = ""
    reads: bool = True


@dataclass(frozen=True)
class Outcome:
    """An answer without what is different in any two answers, and what storage had to do for it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str
    operations: tuple[tuple[str, int], ...]


class World:
    """A server with an owner and a stranger."""

    def __init__(self, server: ApiServer, client: httpx.AsyncClient) -> None:
        self.server = server
        self.client = client
        self.owned = Belongings()
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    async def ask(self, who: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {who}", **more.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **more)

    async def post(self, **body: Any) -> dict[str, Any]:
        answer = await self.ask("owner", "POST", "/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        made = events_in(answer.content)[-1]["response"] if body.get("stream") else answer.json()
        self.owned.responses.append(made["id"])
        self.owned.items += [item["id"] for item in made["output"]]
        return dict(made)

    async def outcome(self, probe: Probe, named: str, *, foreign: bool) -> Outcome:
        headers = {"idempotency-key": named} if probe.header else {}
        content = probe.body.replace("{}", named)
        path = probe.path.replace("{}", named)
        counted: list[str] = []
        token = _operations.set(counted)
        began = time.perf_counter()
        answer = await self.ask("stranger", probe.method, path, content=content, headers=headers)
        if probe.reads:
            self.seconds[foreign].append(time.perf_counter() - began)
        await until(lambda: len(self.server.engine.runtime.running) <= 1)
        said = answer.text
        if answer.status_code == 200 and '"background":true' in said:
            (made,) = {*re.findall(r"resp_\w{50}", said)} - {named}
            said += (await self.ask("stranger", "GET", f"/v1/responses/{made}")).text
        _operations.reset(token)
        text = _TIME.sub(r"\g<1>0", _ID.sub("AN_ID", said.replace(named, "NAMED")))
        shown = sorted((name, value) for name, value in answer.headers.items() if name != "x-request-id")
        operations = Counter(name for name in counted if not _OF_THE_WORKER.fullmatch(name))
        return Outcome(answer.status_code, tuple(shown), text, tuple(sorted(operations.items())))


@asynccontextmanager
async def world() -> AsyncGenerator[World]:
    async def count(name: str, moment: Moment) -> None:
        counted = _operations.get()
        if counted is not None and moment == "before":
            counted.append(name)

    async with serving(telling, api=ApiSettings(access=ACCESS)) as server:
        server.storage.seam.hooks.append(count)
        transport = httpx.ASGITransport(every_route(server.endpoints))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield World(server, client)


async def fill(made: World) -> None:
    """Give the owner some of everything."""
    owned = made.owned
    for flags in ({}, {"stream": True}, {"background": True}, {"background": True, "stream": True}):
        for _ in range(2):
            first = await made.post(input="Hello", **flags)
            await until(lambda: not made.server.engine.runtime.running)
            await made.post(input="And?", previous_response_id=first["id"], **flags)
            await until(lambda: not made.server.engine.runtime.running)
    await made.post(input="fail")
    deleted = await made.post(input="Hello")
    assert (await made.ask("owner", "DELETE", f"/v1/responses/{deleted['id']}")).status_code == 200
    for number in range(ONCE):
        owned.names.append(f"conversation-of-the-owner-{number:03}")
        owned.keys.append(f"key-of-the-owner-{number:03}")
        await made.post(input="Hello", conversation=owned.names[-1])
        keyed = {"idempotency-key": owned.keys[-1]}
        answer = await made.ask("owner", "POST", "/v1/responses", json={"input": "Hello"}, headers=keyed)
        owned.responses.append(answer.json()["id"])
    if any(operation.name == "create_conversation" for operation in OPERATIONS):
        for _ in range(3):
            items = [{"type": "message", "role": "user", "content": "Hello"}]
            answer = await made.ask("owner", "POST", "/v1/conversations", json={"items": items})
            owned.conversations.append(answer.json()["id"])
            kept = await made.ask("owner", "GET", f"/v1/conversations/{owned.conversations[-1]}/items")
            owned.items += [item["id"] for item in kept.json()["data"]]
    cancelled = await made.post(input="wait", background=True)
    assert (await made.ask("owner", "POST", f"/v1/responses/{cancelled['id']}/cancel")).status_code == 200
    await until(lambda: not made.server.engine.runtime.running)
    await made.post(input="wait", background=True)  # in flight from here on
    await until(lambda: len(made.server.engine.runtime.running) == 1)


def probes() -> list[Probe]:
    """Every operation that names something in its path, and every way to name something in a request."""
    found = [probe for operation in OPERATIONS for probe in _of_paths(operation)]
    found += [
        Probe("GET", "/v1/responses/{}?stream=true", "responses"),
        Probe("GET", "/v1/responses/{}?stream=true&starting_after=1", "responses"),
        Probe("GET", "/v1/responses/{}/input_items?limit=1&order=asc", "responses"),
    ]
    for flags in ({}, {"stream": True}, {"background": True}, {"store": False}, {"background": True, "stream": True}):
        found.append(_create({"previous_response_id": "{}", **flags}, "responses"))
    for flags in ({"store": False}, {"store": False, "stream": True}):
        found.append(_create({"conversation": "{}", **flags}, "conversations"))
        found.append(_create({"conversation": {"id": "{}"}, **flags}, "conversations"))
        found.append(_create({"input": [{"type": "item_reference", "id": "{}"}], **flags}, "items"))
    for flags in ({}, {"background": True}):
        found.append(_create({"conversation": "{}", **flags}, "names"))
        found.append(_create(flags, "keys", header="idempotency-key"))
    for path in ("/v1/responses/input_tokens", "/v1/responses/compact"):
        if any(f"/v1{operation.path}" == path for operation in OPERATIONS):
            for body, named in (
                ({"previous_response_id": "{}"}, "responses"),
                ({"conversation": "{}"}, "conversations"),
                ({"input": [{"type": "item_reference", "id": "{}"}]}, "items"),
            ):
                found.append(_create(body, named, path=path))
    return found


def _of_paths(operation: Operation) -> list[Probe]:
    if "{" not in operation.path:
        return []
    named = "responses" if "{response_id}" in operation.path else "conversations"
    body: dict[str, Any] = {"metadata": {"a": "b"}} if operation.method == "post" else {}
    if operation.path.endswith("/items") and operation.method == "post":
        body = {"items": [{"type": "message", "role": "user", "content": "x"}]}
    paths = [re.sub(r"\{(response|conversation)_id\}", "{}", operation.path)]
    if "{item_id}" in operation.path:  # the item of a conversation that is there, and of one that is not
        paths = [paths[0].replace("{item_id}", "msg_" + "0" * 50)]
    return [
        Probe(operation.method.upper(), prefix + path, named, json.dumps(body) if body else "")
        for prefix in operation.prefixes
        for path in paths
    ]


def _create(fields: dict[str, Any], named: str, *, header: str = "", path: str = "/v1/responses") -> Probe:
    body = json.dumps({"model": "m", "input": "Hi", **fields})
    return Probe("POST", path, named, body, header, reads=False)


def nobodys(chance: random.Random, like: str) -> str:
    """Something of the same shape that nobody has."""
    head, separator, tail = like.rpartition("_" if "_" in like else "-")
    return head + separator + "".join(chance.choice(string.ascii_letters) for _ in tail)


async def test_what_belongs_to_another_tenant_is_answered_as_what_belongs_to_nobody() -> None:
    chance = random.Random(SEED)
    async with world() as made:
        await fill(made)
        pools = {"names": list(made.owned.names), "keys": list(made.owned.keys)}
        choices = [probe for probe in probes() if getattr(made.owned, probe.named)]
        asked: Counter[Probe] = Counter()
        for _ in range(PROBES):
            probe = chance.choice([each for each in choices if pools.get(each.named, [each])])
            foreign = (
                pools[probe.named].pop() if probe.named in pools else chance.choice(getattr(made.owned, probe.named))
            )
            pair = [(foreign, True), (nobodys(chance, foreign), False)]
            chance.shuffle(pair)
            outcomes = {is_foreign: await made.outcome(probe, named, foreign=is_foreign) for named, is_foreign in pair}
            assert outcomes[True] == outcomes[False], f"{probe} tells that {foreign} exists"
            asked[probe] += 1
        assert set(asked) == set(choices)
        usual, strange = (statistics.median(made.seconds[foreign]) for foreign in (False, True))
        assert strange < 2 * usual
        assert usual < 2 * strange
        await assert_untouched(made)


async def assert_untouched(made: World) -> None:
    """The owner still has everything, and the run in flight still runs."""
    for response_id in made.owned.responses:
        answer = await made.ask("owner", "GET", f"/v1/responses/{response_id}")
        assert answer.status_code == 200 or "was deleted" in answer.text
    assert (await made.ask("owner", "GET", f"/v1/responses/{made.owned.responses[-1]}")).json()[
        "status"
    ] == "in_progress"
    for conversation_id in made.owned.conversations:
        assert (await made.ask("owner", "GET", f"/v1/conversations/{conversation_id}")).json()["metadata"] == {}
    (run,) = made.server.engine.runtime.running
    assert (await made.ask("owner", "POST", f"/v1/responses/{run}/cancel")).status_code == 200


async def test_the_probes_would_notice_what_they_look_for() -> None:
    """Asked by the owner, they tell an id of its own from that of nobody."""
    chance = random.Random(SEED)
    async with world() as made:
        await fill(made)
        as_owner: Callable[..., Any] = made.ask

        async def ask(_who: str, method: str, path: str, **more: Any) -> httpx.Response:
            answer: httpx.Response = await as_owner("owner", method, path, **more)
            return answer

        made.ask = ask  # type: ignore[assignment, method-assign]
        for probe in probes():
            if probe.method == "DELETE" or "/cancel" in probe.path or not getattr(made.owned, probe.named):
                continue
            named = getattr(made.owned, probe.named)[0]
            outcomes = [await made.outcome(probe, name, foreign=False) for name in (named, nobodys(chance, named))]
            if "000000" not in probe.path:  # nobody has that item
                assert outcomes[0] != outcomes[1], probe
