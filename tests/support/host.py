"""A real local host for tests: one `python -m devhost` process, which a test may kill, freeze and thaw.

Without the supervisor there is exactly one process, so `kill` is what a crash of the machine is to the app. The host
serves on a free port; its output goes to a file, for `log` and for the message of a failed start.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APPS = ROOT / "tests" / "support" / "apps"
START_SECONDS = 120.0
END_SECONDS = 45.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until `condition` holds; whether it did within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


class HostFailed(Exception):
    """The local host did not come up, or did not show in time what a test waits for."""


@dataclass
class FunctionHost:
    """A host process; make one with `await FunctionHost.start(…)` or `FunctionHost.start_blocking(…)`.

    Works as an (async) context manager that ends the process.
    """

    process: subprocess.Popen[bytes]
    directory: tempfile.TemporaryDirectory[str] = field(repr=False)
    port: int = 0
    pid: int = 0
    _output: str = field(default="", repr=False)

    @classmethod
    def launch(
        cls, app: Path, environment: Mapping[str, str] | None = None, *arguments: str, supervised: bool = False
    ) -> "FunctionHost":
        """Start a host for the app in folder `app` without waiting for it.

        `environment` is laid over this process's own. `arguments` follow the defaults of the command line, and win.
        """
        directory = tempfile.TemporaryDirectory(prefix="devhost-")
        command = [sys.executable, "-m", "devhost", "--app", str(app), "--port", "0"]
        command += ["--ready-file", str(Path(directory.name) / "ready.json"), *arguments]
        command += [] if supervised else ["--no-supervisor"]
        with (Path(directory.name) / "log").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, directory)

    @classmethod
    async def start(
        cls, app: Path, environment: Mapping[str, str] | None = None, *arguments: str, supervised: bool = False
    ) -> "FunctionHost":
        """Start a host and wait until it answers. HostFailed, with its log, when it does not."""
        host = cls.launch(app, environment, *arguments, supervised=supervised)
        try:
            await host.until(host._look, START_SECONDS, "to be ready")
        except BaseException:
            host.kill()
            host.stop()
            raise
        return host

    @classmethod
    def start_blocking(
        cls, app: Path, environment: Mapping[str, str] | None = None, *arguments: str, supervised: bool = False
    ) -> "FunctionHost":
        """`start` for fixtures that are not asynchronous."""
        return asyncio.run(cls.start(app, environment, *arguments, supervised=supervised))

    @property
    def base_url(self) -> str:
        """Where the host answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def log(self) -> str:
        """Everything the host and the app wrote so far."""
        path = Path(self.directory.name) / "log"
        return path.read_text(errors="replace") if path.exists() else self._output

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for `condition`. HostFailed, with the log, after `seconds`, or when the process ends before."""
        if await until(lambda: not self.running or condition(), seconds) and condition():
            return
        state = "is running" if self.running else f"ended with {self.process.returncode}"
        raise HostFailed(f"The host was expected {what}; it {state}.\n{self.log()}")

    async def wait_for_log(self, text: str, seconds: float = 30.0) -> None:
        """Wait until `text` stands in the log."""
        await self.until(lambda: text in self.log(), seconds, f"to log {text!r}")

    async def wait_for_restart(self, seconds: float = START_SECONDS) -> None:
        """Wait until the supervisor has put another process in the place of the one with `pid`."""
        old = self.pid
        await self.until(lambda: self._look() and self.pid != old, seconds, "to be started again")

    async def wait_ended(self, seconds: float = END_SECONDS) -> int:
        """Wait until the process has ended; its exit code (negative: the signal that killed it)."""
        if not await until(lambda: not self.running, seconds):
            raise HostFailed(f"The host still runs.\n{self.log()}")
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL, as the platform ends a worker; stopping it is still to be done."""
        if self.running:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        if self.running:
            self.process.terminate()

    def freeze(self) -> None:
        """SIGSTOP: alive, and not one instruction further."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process, frozen or not, and remove its files; the log stays readable. Twice is fine."""
        if self.running:
            self.thaw()
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._output = self.log()
        self.directory.cleanup()

    def __enter__(self) -> "FunctionHost":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> "FunctionHost":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.stop()

    def _look(self) -> bool:
        """Read the port and pid of a host that has become ready."""
        path = Path(self.directory.name) / "ready.json"
        if not path.exists():
            return False
        ready = json.loads(path.read_text())
        self.port, self.pid = ready["port"], ready["pid"]
        return True
