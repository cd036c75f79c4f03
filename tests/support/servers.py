"""The app as processes: the real local host on a real emulator, alone or with HTTP and queues apart."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from protocol import sse
from storage.connection import Storage, StorageSettings, open_storage
from tests.support.azurite import AzuriteServer
from tests.support.host import ROOT, FunctionHost, until

SCRIPTED = "tests.support.agents.scripted:app"
FRAGILE = "tests.support.agents.scripted:fragile_app"

PATIENT = {"RESPONSES_WATCH_VISIBILITY": "30"}
"""For hosts of which none dies unseen: a machine that stands still for some seconds does not make one look dead."""

LOOKS_AT_NO_ROW = {"RESPONSES_CANCEL_POLL_INTERVAL": "3600"}
"""For a host that is to learn by a refusal that another took over: a look at the row may come first."""

LOG_LENGTH = 30_000
"""Characters of each host's log, from its end, that a failed test shows."""


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

    def account(self) -> str:
        """For the message of a failure: which hosts there are, and what each wrote last."""
        states = ["running" if host.running else f"ended with {host.process.returncode}" for host in self.hosts]
        return "\n".join(
            f"-- process {host.pid}, {state}\n{host.log()[-LOG_LENGTH:]}"
            for host, state in zip(self.hosts, states, strict=True)
        )

    def stop(self) -> None:
        """End all hosts."""
        for host in self.hosts:
            host.stop()


_there: list[Deployment] = []


def account_of_all() -> str:
    """The same of every deployment that is there now."""
    return "\n".join(made.account() for made in _there)


@contextmanager
def deployment(azurite: AzuriteServer, agent: str = SCRIPTED, **settings: str) -> Iterator[Deployment]:
    """A namespace of its own in the emulator, and hosts in it; all gone afterwards.

    What fails in it gets a note of what the hosts wrote.
    """
    with azurite.namespace() as names:
        made = Deployment({**names, "RESPONSES_AGENT": agent, **settings})
        _there.append(made)
        try:
            yield made
        except BaseException as error:
            error.add_note(made.account())
            raise
        finally:
            _there.remove(made)
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


async def reached(
    condition: Callable[[], object], what: str, tasks: Iterable[asyncio.Task[Any]] = (), seconds: float = 60
) -> None:
    """Wait for what tasks are to bring about; what broke one of them says more than what is missing."""
    watched = list(tasks)

    def broken() -> list[asyncio.Task[Any]]:
        return [task for task in watched if task.done() and (task.cancelled() or task.exception())]

    await until(lambda: condition() or broken() or (watched and all(task.done() for task in watched)), seconds)
    for task in broken():
        task.result()
    assert condition(), f"not reached in {seconds} s, or before all was over: {what}"


async def frames_from(response: httpx.Response) -> AsyncIterator[bytes]:
    """The frames of a streamed body as they arrive, without comments.

    Raises:
        httpx.HTTPStatusError: There is no stream; the message says what there is instead.
    """
    if response.is_error:
        text = (await response.aread()).decode(errors="replace")
        raise httpx.HTTPStatusError(f"{response.status_code}: {text}", request=response.request, response=response)
    rest = b""
    async for chunk in response.aiter_raw():
        frames, rest = sse.split(rest + chunk)
        for frame in frames:
            if not frame.startswith(b":"):
                yield frame
