"""The app as processes: the real local host on a real emulator, alone or with HTTP and queues apart."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from protocol import sse
from storage.connection import Storage, StorageSettings, open_storage
from tests.support.azurite import AzuriteServer
from tests.support.host import ROOT, FunctionHost

SCRIPTED = "tests.support.agents.scripted:app"
FRAGILE = "tests.support.agents.scripted:fragile_app"


@dataclass
class Deployment:
    """Hosts of the app that share one storage account's namespace."""

    environment: dict[str, str]
    hosts: list[FunctionHost] = field(default_factory=list)

    async def start(self, *arguments: str, **settings: str) -> FunctionHost:
        """One more host; `settings` are app settings of its own."""
        host = await FunctionHost.start(ROOT, {**self.environment, **settings}, *arguments)
        self.hosts.append(host)
        return host

    def start_blocking(self, *arguments: str, **settings: str) -> FunctionHost:
        """`start` for fixtures that are not asynchronous."""
        host = FunctionHost.start_blocking(ROOT, {**self.environment, **settings}, *arguments)
        self.hosts.append(host)
        return host

    @asynccontextmanager
    async def storage(self) -> AsyncIterator[Storage]:
        """The deployment's storage, to look at from outside."""
        storage = open_storage(StorageSettings.from_environment(self.environment))
        try:
            yield storage
        finally:
            await storage.aclose()

    def logs(self) -> str:
        """What all hosts wrote."""
        return "\n".join(host.log() for host in self.hosts)

    def stop(self) -> None:
        """End all hosts."""
        for host in self.hosts:
            host.stop()


@contextmanager
def deployment(azurite: AzuriteServer, agent: str = SCRIPTED, **settings: str) -> Iterator[Deployment]:
    """A namespace of its own in the emulator, and hosts in it; all gone afterwards."""
    with azurite.namespace() as names:
        made = Deployment({**names, "RESPONSES_AGENT": agent, **settings})
        try:
            yield made
        finally:
            made.stop()


def body(script: Mapping[str, Any] | None = None, /, **fields: Any) -> dict[str, Any]:
    """A request for the scripted agent."""
    return {"model": "test-model", "input": json.dumps(dict(script or {})), **fields}


def frames_of(data: bytes) -> list[bytes]:
    """The frames of a streamed body, without comments."""
    frames, rest = sse.split(data)
    assert not rest, f"the body ends in the middle of a frame: {rest[:200]!r}"
    return [frame for frame in frames if not frame.startswith(b":")]


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The events of a streamed body."""
    return [sse.decode(frame) for frame in frames_of(data)]


async def eventually(
    condition: Callable[[], Awaitable[object]], what: str, seconds: float = 30, pause: float = 0.05
) -> None:
    """Wait until an asynchronous condition holds; look at it anew after a pause."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(pause)


async def frames_from(response: httpx.Response) -> AsyncIterator[bytes]:
    """The frames of a streamed body as they arrive, without comments."""
    rest = b""
    async for chunk in response.aiter_raw():
        frames, rest = sse.split(rest + chunk)
        for frame in frames:
            if not frame.startswith(b":"):
                yield frame
