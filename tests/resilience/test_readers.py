"""Fifty readers over real HTTP, and others that come and go, while the worker of their stream is killed.

How readers behave at a thousand random places is tested in one process; here the bytes go through everything that
lies between the log and a client.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import httpx
import pytest

from protocol import sse
from resilience.placement import partition_key, tenant_of
from storage.connection import Storage
from storage.driver import EVENTS
from tests.support.azurite import AzuriteServer
from tests.support.host import until
from tests.support.invariants import View, check_response
from tests.support.servers import Deployment, body, deployment, frames_from

READERS = 50
CLIENTS = 6
PATIENCE_SECONDS = 90.0
LOOK_SECONDS = 8.0
"""After so long a reader to whom the log says nothing new looks whether the response has ended."""
AT_ONCE_SECONDS = 6.0
"""A finished stream ends in milliseconds, and not after that look; a busy machine may stretch them."""


@pytest.fixture(scope="module")
def cluster(azurite: AzuriteServer) -> Iterator[Deployment]:
    """One process that serves HTTP and one worker."""
    with deployment(azurite) as made:
        made.start_blocking("--only", "http", RESPONSES_TAIL_ROW_CHECK_INTERVAL=str(LOOK_SECONDS))
        made.start_blocking("--only", "queue")
        yield made


@pytest.fixture
async def http(cluster: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=cluster.hosts[0].base_url, timeout=120, limits=limits) as client:
        yield client


async def begin(http: httpx.AsyncClient, **script: object) -> str:
    """Start a background stream and leave it after its first event."""
    request = body(script, background=True, stream=True)
    async with (
        http.stream("POST", "/responses", json=request) as answer,
        aclosing(frames_from(answer)) as frames,  # type: ignore[type-var]
    ):
        return str(sse.decode(await anext(frames))["response"]["id"])


async def read(
    http: httpx.AsyncClient, response_id: str, after: int, seen: list[bytes] | None = None, limit: int = 1 << 30
) -> list[bytes]:
    """The frames behind `after`, at most `limit` of them, put into `seen` as they come."""
    frames = [] if seen is None else seen
    async with (
        http.stream("GET", f"/responses/{response_id}?stream=true&starting_after={after}") as answer,
        aclosing(frames_from(answer)) as arriving,  # type: ignore[type-var]
    ):
        async for frame in arriving:
            frames.append(frame)
            if len(frames) >= limit:
                break
    return frames


async def restless(http: httpx.AsyncClient, response_id: str, chance: random.Random) -> list[View]:
    """A client that loses its connection every few events and resumes behind the last one it saw; what each gave."""
    views: list[View] = []
    seen = 0
    while not views or not sse.is_terminal(views[-1].frames[-1]):
        views.append(View(await read(http, response_id, seen - 1, limit=chance.randrange(3, 16)), seen - 1))
        seen += len(views[-1].frames)
    return views


async def test_fifty_readers_and_restless_ones_see_the_same_bytes_over_the_death_of_the_worker(
    cluster: Deployment, http: httpx.AsyncClient
) -> None:
    # However slowly fifty readers find their places on a busy machine, the first entry is not at its end.
    response_id = await begin(http, count=80, delay=0.4, delay_again=0.1, checkpoint_every=5)
    live: list[list[bytes]] = [[] for _ in range(READERS)]
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        for frames in live:
            group.create_task(read(http, response_id, -1, frames))
        clients = [group.create_task(restless(http, response_id, random.Random(seed))) for seed in range(CLIENTS)]
        assert await until(lambda: all(len(frames) > 12 for frames in live), PATIENCE_SECONDS), "the readers starve"
        cluster.hosts[1].kill()
        await cluster.start("--only", "queue")
    async with cluster.storage() as storage:
        pieces = [client.result() for client in clients]
        seen = [*(View(frames, ended=True) for frames in live), *itertools.chain(*pieces)]
        stored = await check_response(storage, "local", response_id, seen=seen)
    assert [sse.event_type(frame) for frame in stored.frames].count("response.in_progress") == 2
    wholes = [*live, *([frame for view in views for frame in view.frames] for views in pieces)]
    for number, frames in enumerate(wholes):
        same = frames == stored.frames
        assert same, f"reader {number} has {len(frames)} of {len(stored.frames)} frames"
    chance = random.Random(4)
    last = len(stored.frames) - 1
    for after in (-1, 0, last - 1, last, last + 1, 10**9, *(chance.randrange(-1, last) for _ in range(24))):
        began = time.monotonic()
        same = await read(http, response_id, after) == stored.frames[after + 1 :]
        assert same, f"after {after}"
        assert time.monotonic() - began < AT_ONCE_SECONDS, f"after {after}"


async def test_a_lost_terminal_frame_is_made_again_byte_for_byte_for_those_who_wait_for_it(
    cluster: Deployment, http: httpx.AsyncClient
) -> None:
    response_id = await begin(http, count=5)
    whole = await read(http, response_id, -1)
    async with cluster.storage() as storage:
        await forget_last_frame(storage, response_id)
        async with asyncio.timeout(PATIENCE_SECONDS):
            cursors = (-1, 3, len(whole) - 2, len(whole) - 1, 10**9)
            views = await asyncio.gather(*(read(http, response_id, after) for after in cursors))
        assert views == [whole[after + 1 :] for after in cursors]
        await check_response(storage, "local", response_id)


async def forget_last_frame(storage: Storage, response_id: str) -> None:
    """Put the log back to where it was before its terminal event was written."""
    row = await storage.rows.read(partition_key(tenant_of("local"), response_id), response_id)
    name = row.segments[-1].name
    frames, _ = sse.split(await storage.log.read(name, 0, 1 << 24))
    await storage.log.break_lease(name)
    await storage.driver.delete_blob(EVENTS, name)
    await storage.log.create(name)
    await storage.log.acquire(name, row.lease_id)
    await storage.log.append(name, b"".join(frames[:-1]), position=0, lease_id=row.lease_id)
