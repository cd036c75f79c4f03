"""The two processes of a local run: the storage emulator and the Functions host.

Each one runs in a session of its own, so that a Ctrl-C in the terminal reaches the launcher alone, which then ends
them in order: the host first, then the storage it writes to. Azurite must be ended with SIGTERM and waited for: it
writes its state on exit. Where the system offers it (Linux), both also end when the launcher is killed.
"""

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
AZURITE_DATA = ROOT / ".azurite"
AZURITE_LOG = ROOT / ".run" / "azurite.log"

AZURITE_SERVICES = ("blob", "queue", "table")
STANDARD_PORTS = (10000, 10001, 10002)
AZURITE_START_SECONDS = 60.0
AZURITE_STOP_SECONDS = 30.0
PROBE_SECONDS = 5.0
POLL_SECONDS = 0.1

# Azurite's published account; it opens nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

PR_SET_PDEATHSIG = 1
# Loaded here, because little is safe to do between fork and exec.
_LIBC = ctypes.CDLL(None)


class CannotRun(Exception):
    """Something is in the way; the message is the one sentence that the user gets."""


def is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.settimeout(PROBE_SECONDS)
        if candidate.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as candidate:
        # As the servers themselves do; without it, connections that only linger would make the port look taken.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> tuple[int, ...]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(int(each.getsockname()[1]) for each in sockets)


def http_status(port: int, path: str) -> int | None:
    """The status of a GET on this machine, None when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Child:
    """A process that this launcher started and ends."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], stop_seconds: float, log: Path | None) -> None:
        self.name = name
        self._process = process
        self._stop_seconds = stop_seconds
        self._log = log

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stop_seconds: float,
        log: Path | None = None,
        keep_open: Sequence[int] = (),
    ) -> Self:
        """Start it; its output goes to `log`, or to the terminal. `keep_open` are descriptors that it inherits."""
        with contextlib.ExitStack() as stack:
            output = None if log is None else stack.enter_context(log.open("wb"))
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
                pass_fds=keep_open,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 (one thread only)
            )
        return cls(name, process, stop_seconds, log)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def log(self) -> str:
        """What it wrote; empty when that went to the terminal."""
        return "" if self._log is None else self._log.read_text(errors="replace")

    def trouble(self) -> str:
        """The end of its log, as further lines of a message, without the news that all is well."""
        lines = [line for line in self.log().splitlines() if line.strip() and not line.startswith("Azurite ")]
        return "".join(f"\n{line}" for line in lines[-20:])

    def stop(self) -> None:
        """End it and wait for it; a process that ignores SIGTERM is killed in the end."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True)
class Azurite:
    """A running storage emulator, its data in `.azurite/`."""

    child: Child
    ports: tuple[int, ...]

    @property
    def standard(self) -> bool:
        """Whether `UseDevelopmentStorage=true` means this one."""
        return self.ports == STANDARD_PORTS

    @property
    def connection_string(self) -> str:
        blob, queue, table = self.ports
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://127.0.0.1:{blob}/{ACCOUNT};"
            f"QueueEndpoint=http://127.0.0.1:{queue}/{ACCOUNT};"
            f"TableEndpoint=http://127.0.0.1:{table}/{ACCOUNT};"
        )


def start_azurite(stopping: Callable[[], bool], keep_open: Sequence[int]) -> Azurite:
    """Start it on its standard ports when they are free, on others otherwise, and wait until all three answer.

    Raises CannotRun with the end of its log when it does not come up.
    """
    ports = STANDARD_PORTS if all(is_free(port) for port in STANDARD_PORTS) else free_ports(3)
    while True:
        child = _launch_azurite(ports, keep_open)
        if _listens(child, stopping):
            return Azurite(child, ports)
        child.stop()
        if "EADDRINUSE" not in child.log():
            raise CannotRun(f"{child.name} did not start.{child.trouble()}")
        # Somebody else was quicker: another checkout that starts at the same moment.
        ports = free_ports(3)


def _launch_azurite(ports: Sequence[int], keep_open: Sequence[int]) -> Child:
    AZURITE_DATA.mkdir(exist_ok=True)
    command = ["node", str(ROOT / "node_modules" / "azurite" / "dist" / "src" / "azurite.js")]
    command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(AZURITE_DATA)]
    for service, port in zip(AZURITE_SERVICES, ports, strict=True):
        command += [f"--{service}Host", "127.0.0.1", f"--{service}Port", str(port)]
        command += [f"--{service}KeepAliveTimeout", "60"]
    return Child.start(
        "The storage emulator (Azurite)",
        command,
        environment=os.environ,
        stop_seconds=AZURITE_STOP_SECONDS,
        log=AZURITE_LOG,
        keep_open=keep_open,
    )


def _listens(child: Child, stopping: Callable[[], bool]) -> bool:
    """Wait for its own word; a port that answers might be that of somebody else who was quicker."""
    deadline = time.monotonic() + AZURITE_START_SECONDS
    while child.log().count("successfully listening") < len(AZURITE_SERVICES):
        if stopping() or child.exit_code is not None or time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
