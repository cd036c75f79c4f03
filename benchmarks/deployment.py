"""What is measured: a storage emulator of its own, one host that serves HTTP, and workers that can be killed.

Azurite keeps its data in memory and hears on free ports; every host is one `python -m devhost` process without a
supervisor, so that SIGKILL ends all that there is of it. The app that runs is the repository's own, without a model
behind it. Nothing of all this is left when the deployment is closed.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
AZURITE = ROOT / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"
ACCOUNT = "devstoreaccount1"
# Azurite's published key; it opens nothing else.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
MODEL_SETTINGS = ("OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT")

START_SECONDS = 60.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.005


class NotInTime(Exception):
    """Something that was waited for did not happen."""

    def __init__(self, what: str, seconds: float, log: str = "") -> None:
        super().__init__(f"{what}: not within {seconds:.0f} s.\n{log[-4000:]}")


async def until(condition: Callable[[], object], seconds: float, what: str, log: Callable[[], str] = str) -> None:
    """Wait until `condition` holds.

    Raises:
        NotInTime: It did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotInTime(what, seconds, log())
        await asyncio.sleep(POLL_SECONDS)


@dataclass
class Child:
    """A process that was started here, and its log."""

    process: subprocess.Popen[bytes]
    directory: tempfile.TemporaryDirectory[str]

    @classmethod
    def start(
        cls, command: list[str], environment: dict[str, str], directory: tempfile.TemporaryDirectory[str]
    ) -> Self:
        """Start it in a session of its own, with its output in the directory's file `log`."""
        with (Path(directory.name) / "log").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, directory)

    def log(self) -> str:
        """All that it wrote."""
        return (Path(self.directory.name) / "log").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, if it still runs, and remove its files."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self.directory.cleanup()


class Host(Child):
    """A host that answers."""

    @property
    def base_url(self) -> str:
        """Where it does."""
        ready = json.loads((Path(self.directory.name) / "ready.json").read_text())
        return f"http://127.0.0.1:{ready['port']}"

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        self.process.terminate()

    def is_ready(self) -> bool:
        """True once it answers; an early end is an error, not a wait."""
        if self.process.poll() is not None:
            raise NotInTime("The host ended while it started", 0, self.log())
        return (Path(self.directory.name) / "ready.json").exists()


@dataclass
class Deployment:
    """One HTTP host and any number of workers over one emulator."""

    connection_string: str
    environment: dict[str, str]
    hosts: list[Host] = field(default_factory=list)

    async def start_host(self, *arguments: str) -> Host:
        """One more host, ready; `arguments` are those of its command line."""
        directory = tempfile.TemporaryDirectory(prefix="bench-host-")
        ready = str(Path(directory.name) / "ready.json")
        command = [sys.executable, "-m", "devhost", "--no-supervisor", "--port", "0", "--ready-file", ready]
        host = Host.start([*command, *arguments], self.environment, directory)
        self.hosts.append(host)
        await until(host.is_ready, START_SECONDS, "A host's start", host.log)
        return host

    async def start_worker(self, *arguments: str) -> Host:
        """One more process that serves the queues and the timer."""
        return await self.start_host("--only", "queue", *arguments)

    def drop(self, host: Host) -> None:
        """End a host and forget it."""
        self.hosts.remove(host)
        host.close()


@asynccontextmanager
async def deployment(**settings: str) -> AsyncIterator[Deployment]:
    """An emulator, and hosts over it; `settings` are app settings."""
    ports = _free_ports(3)
    azurite = Child.start(_azurite(ports), dict(os.environ), tempfile.TemporaryDirectory(prefix="bench-azurite-"))
    endpoints = "".join(
        f"{service}Endpoint=http://127.0.0.1:{port}/{ACCOUNT};"
        for service, port in zip(("Blob", "Queue", "Table"), ports, strict=True)
    )
    connection = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};{endpoints}"
    made = Deployment(connection, {**_inherited(), "AzureWebJobsStorage": connection, **settings})
    try:
        await until(lambda: all(map(_listens, ports)), START_SECONDS, "The emulator's start", azurite.log)
        yield made
    finally:
        for host in list(made.hosts):
            made.drop(host)
        azurite.close()


def _inherited() -> dict[str, str]:
    """This process's environment without what would change the app: no model, no settings of the engine."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in MODEL_SETTINGS and not name.startswith("RESPONSES_")
    }


def _azurite(ports: list[int]) -> list[str]:
    command = ["node", str(AZURITE), "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
    for service, port in zip(("blob", "queue", "table"), ports, strict=True):
        command += [f"--{service}Host", "127.0.0.1", f"--{service}Port", str(port)]
        command += [f"--{service}KeepAliveTimeout", "60"]
    return command


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
