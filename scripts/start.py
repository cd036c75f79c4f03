"""`make start` and `make func`: the storage emulator and the server on this machine, until Ctrl-C.

    python -m scripts.start [--port 7071] [--func]

Settings: those of the app, from the environment, else from local.settings.json, else from local.settings.json.example.
When `AzureWebJobsStorage` there means the emulator, one is started with its data in `.azurite/`; when it names another
storage, that one is used. One run per checkout at a time: two emulators on one folder would destroy its data. The lock
is inherited by both processes, so that it stays while one of them lives.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from scripts.processes import (
    POLL_SECONDS,
    ROOT,
    Azurite,
    CannotRun,
    Child,
    free_ports,
    http_status,
    is_free,
    start_azurite,
)

LOCK = ROOT / ".run" / "start.lock"
SETTINGS = ROOT / "local.settings.json"
EXAMPLE_SETTINGS = ROOT / "local.settings.json.example"

HOST_START_SECONDS = 60.0
# Core Tools fetch their extension bundle the first time.
FUNC_START_SECONDS = 300.0
# From its first answer on; the storage is up by then.
UNREADY_SECONDS = 10.0

ANSWERS = (200, 401)
"""Of a server that is ready; one that wants a key says no more."""
HOST_STOP_SECONDS = 20.0

EMULATED = "UseDevelopmentStorage=true"

READY = """
The server answers at {base_url}

  curl -s {base_url}/responses -H 'Content-Type: application/json' -d '{{"input": "Hello"}}'

or in .venv/bin/python:

from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key="local")
response = client.responses.create(input="Hello")
print(response.output_text)

A page to try it with: {page}

Ctrl-C ends it. What was stored stays in {place} and is there again at the next start.
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts.start")
    parser.add_argument("--port", default="7071")
    parser.add_argument("--func", action="store_true", help="run under Azure Functions Core Tools")
    options = parser.parse_args(arguments)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        with exclusive() as lock:
            run(chosen_port(options.port), options.func, stop, lock)
    except CannotRun as problem:
        if not stop.is_set():
            say(str(problem))
            return 1
    return 0


def run(port: int, under_func: bool, stop: threading.Event, lock: IO[str]) -> None:
    """Start both, wait for Ctrl-C or the end of one of them, end both. Raises CannotRun in all cases but Ctrl-C."""
    base_url = f"http://127.0.0.1:{port}/v1"
    keep_open = [lock.fileno()]
    note(lock, base_url)
    if under_func and not SETTINGS.exists():
        shutil.copyfile(EXAMPLE_SETTINGS, SETTINGS)
        say("Made local.settings.json from the example.")
    with contextlib.ExitStack() as stack:
        children: list[Child] = []
        environment = dict(os.environ)
        place = "that storage"
        if wants_emulator():
            say("Starting the storage emulator (Azurite) …")
            azurite = start_azurite(stop.is_set, keep_open)
            stack.callback(azurite.child.stop)
            children.append(azurite.child)
            environment |= storage_settings(azurite)
            place = ".azurite/"
        else:
            say("AzureWebJobsStorage names a storage of its own: using that one, without the emulator.")
        say("Starting the server …")
        host = start_host(port, under_func, environment, keep_open)
        stack.callback(host.stop)
        children.append(host)
        wait_until_ready(port, FUNC_START_SECONDS if under_func else HOST_START_SECONDS, children, stop)
        if not stop.is_set():
            say(READY.format(base_url=base_url, page=base_url.removesuffix("v1"), place=place))
        while not stop.wait(POLL_SECONDS):
            refuse_the_dead(children)
        say("\nStopping …")
    say("Stopped.")


def start_host(port: int, under_func: bool, environment: dict[str, str], keep_open: list[int]) -> Child:
    if under_func:
        func = shutil.which("func")
        if func is None:
            raise CannotRun("Azure Functions Core Tools (func) were not found: install version 4, or use make start.")
        # func takes the Python of the active virtual environment.
        environment |= {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"}
        command = [func, "start", "--port", str(port)]
    else:
        command = [sys.executable, "-m", "devhost", "--port", str(port)]
    return Child.start(
        "The server", command, environment=environment, stop_seconds=HOST_STOP_SECONDS, keep_open=keep_open
    )


def wait_until_ready(port: int, seconds: float, children: list[Child], stop: threading.Event) -> None:
    """Until the server reports its storage reachable. Raises CannotRun when it does not.

    It has `seconds` to give any answer, and from then on a few more: an app that cannot be loaded says no for ever,
    and logs why each time.
    """
    deadline = time.monotonic() + seconds
    pause, unready_since = POLL_SECONDS, 0.0
    while not stop.is_set() and (status := http_status(port, "/readyz")) not in ANSWERS:
        refuse_the_dead(children)
        if time.monotonic() > deadline:
            raise CannotRun("The server did not become ready; the lines above may say why.")
        if status is not None:
            pause = min(2 * pause, 2.0)
            unready_since = unready_since or time.monotonic()
            deadline = min(deadline, unready_since + UNREADY_SECONDS)
        stop.wait(pause)


def refuse_the_dead(children: list[Child]) -> None:
    for child in children:
        if child.exit_code is not None:
            sentence = f"{child.name} ended by itself (status {child.exit_code}), so everything stops."
            raise CannotRun(sentence + child.trouble())


def chosen_port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise CannotRun(f'PORT must be a number up to 65535, not "{text}".')
    port = int(text) or free_ports(1)[0]
    if not is_free(port):
        raise CannotRun(f"Port {port} is taken: choose another one, for example make start PORT={free_ports(1)[0]}.")
    return port


def wants_emulator() -> bool:
    settings = local_settings() | os.environ
    named = settings.get("AzureWebJobsStorage", "").strip()
    by_identity = any(name.startswith("AzureWebJobsStorage__") for name in settings)
    return named == EMULATED or (not named and not by_identity)


def local_settings() -> dict[str, str]:
    """The `Values` of the settings file. Raises CannotRun when it is not what it should be."""
    file = SETTINGS if SETTINGS.exists() else EXAMPLE_SETTINGS
    try:
        return {name: str(value) for name, value in json.loads(file.read_text())["Values"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotRun(f'{file.name} is not a JSON object with an object "Values": {error!r}.') from error


def storage_settings(azurite: Azurite) -> dict[str, str]:
    return {} if azurite.standard else {"AzureWebJobsStorage": azurite.connection_string}


@contextlib.contextmanager
def exclusive() -> Iterator[IO[str]]:
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRun(running_already(LOCK)) from None
        yield lock


def running_already(lock: Path) -> str:
    where = lock.read_text().strip()
    return f"This checkout is running already{f' ({where})' if where else ''}: end that one first."


def note(lock: IO[str], base_url: str) -> None:
    """Leave a word for whoever finds the lock taken."""
    lock.truncate(0)
    lock.write(f"{base_url}, process {os.getpid()}")
    lock.flush()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
