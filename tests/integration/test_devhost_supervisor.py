"""A signal that comes while the supervisor makes its child, or another one, reaches that child."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from devhost import supervisor
from devhost.exits import TIMEOUT_EXIT

WAITS = "import sys, time; print('there', flush=True); time.sleep(60)"
EXPIRES = f"raise SystemExit({TIMEOUT_EXIT})"


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("codes", [[WAITS], [EXPIRES, WAITS]], ids=["the first", "the next"])
@pytest.mark.parametrize("before", [True, False])
def test_a_signal_that_comes_while_a_child_is_made_ends_it(
    monkeypatch: pytest.MonkeyPatch, codes: list[str], before: bool
) -> None:
    left = list(codes)

    class Child(subprocess.Popen[bytes]):
        def __init__(self, _command: list[str], *, pass_fds: tuple[int, ...], **more: Any) -> None:
            code = left.pop(0)
            if not left and before:
                os.kill(os.getpid(), signal.SIGTERM)
            os.close(os.dup(pass_fds[0]))  # it is open: the child can serve
            super().__init__([sys.executable, "-c", code], pass_fds=pass_fds, **more)
            if not left and not before:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Child)
    assert supervisor.supervise([], 0) == signal.SIGTERM
