"""`make start` as a stranger uses it: in a copy of the project, with the lines that it prints, twice."""

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.host import ROOT, until

START_SECONDS = 90.0
STOP_SECONDS = 30.0

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "node_modules", ".azurite", ".run", "__pycache__", ".*_cache", ".hypothesis", "local.settings.json"
)


OTHERS = ("RESPONSES_", "AZURE", "OPENAI_")
"""Settings that would make it another server than the one that a fresh clone starts."""


class Started:
    """A running `make start`."""

    def __init__(self, checkout: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._output = checkout / "start.log"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                ["make", "start", f"PORT={port}"],
                cwd=checkout,
                env={name: value for name, value in os.environ.items() if not name.upper().startswith(OTHERS)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    async def ready(self) -> None:
        """Wait for the lines that a user copies."""
        shown = await until(lambda: self.process.poll() is not None or "OpenAI(" in self.output(), START_SECONDS)
        assert shown, self.output()
        assert self.process.poll() is None, self.output()
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            assert (await http.get("/readyz")).status_code == 200

    async def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it to everything in the foreground."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        assert await until(lambda: self.process.poll() is not None, STOP_SECONDS), self.output()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of the project with the packages that this one has installed already."""
    copy = tmp_path / "a checkout"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    for installed in (".venv", "node_modules"):
        (copy / installed).symlink_to(ROOT / installed)
    yield copy
    shutil.rmtree(copy)


def free_port() -> int:
    """Below those that systems give away by themselves: no process of another test takes it before the server."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


async def run(*command: str) -> str:
    """The output of a command, which must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.timeout(300)
async def test_the_printed_lines_work_and_a_second_start_finds_the_first_ones_responses(checkout: Path) -> None:
    first = Started(checkout, free_port())
    try:
        await first.ready()
        printed = first.output()
        (curl,) = re.findall(r"^\s*(curl .*)$", printed, re.MULTILINE)
        answered = await run("bash", "-c", curl)
        assert '"status":"completed"' in answered, f"{answered}\n{first.output()}"
        snippet = snippet_in(printed)
        assert len(snippet) == 4
        assert (await run(sys.executable, "-c", "\n".join(snippet))).strip()
        async with httpx.AsyncClient(base_url=first.url, timeout=60) as http:
            made = (await http.post("/v1/responses", json={"input": "Keep this"})).json()
            assert made["status"] == "completed"
    finally:
        await first.interrupt()
    second = Started(checkout, free_port())
    try:
        await second.ready()
        async with httpx.AsyncClient(base_url=second.url, timeout=60) as http:
            assert (await http.get(f"/v1/responses/{made['id']}")).json() == made
    finally:
        await second.interrupt()


def snippet_in(printed: str) -> list[str]:
    """The lines of the `openai` snippet, as a user would copy them."""
    lines = printed.splitlines()
    start = next(number for number, line in enumerate(lines) if "from openai import" in line)
    indent = len(lines[start]) - len(lines[start].lstrip())
    snippet = []
    for line in lines[start:]:
        if not line.strip():
            break
        snippet.append(line[indent:])
    return snippet
