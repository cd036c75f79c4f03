"""The parent process: starts the host, and starts it again after a time limit or a crash.

The parent owns the listening socket, so clients that connect while the host restarts wait instead of being refused.
It passes SIGTERM and SIGINT on, and a pipe whose other end dies with it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import click

from devhost.exits import TIMEOUT_EXIT

# A host that crashes sooner than this after its start is not started again.
MIN_LIFE_SECONDS = 1.0


def supervise(arguments: Sequence[str], port: int) -> int:
    """Runs `python -m devhost ARGUMENTS --no-supervisor` until it ends for good; its exit code."""
    listening = socket.create_server(("127.0.0.1", port), backlog=1024)
    watched, lifeline = os.pipe()
    fds = (listening.fileno(), watched)
    command = [sys.executable, "-m", "devhost", *arguments, "--no-supervisor"]
    command += ["--listen-fd", str(fds[0]), "--lifeline-fd", str(fds[1])]
    stopping: int | None = None
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = number
        pass_on()

    def pass_on() -> None:
        if stopping is not None and child is not None:
            listening.close()
            child.send_signal(stopping)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    while True:
        begin = time.monotonic()
        # A session of its own: Ctrl-C reaches it once, through this process.
        child = subprocess.Popen(command, pass_fds=fds, start_new_session=True)
        # A signal that came while it was made had nobody to go to.
        pass_on()
        code = child.wait()
        child = None
        crashed = code < 0 and time.monotonic() - begin > MIN_LIFE_SECONDS
        if stopping is not None or not (code == TIMEOUT_EXIT or crashed):
            os.close(lifeline)
            return abs(code)
        click.secho(f"The host ended with {code}: it starts again.", fg="yellow", err=True)
