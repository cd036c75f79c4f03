"""Make what the project runs on: the virtual environment (`python`) and the Node modules (`node`); and on demand the
clients of other people that tests hold against the server (`python-clients`, which go into the same environment, and
`node-clients`).

    python3.13 scripts/setup.py [python] [node] [python-clients] [node-clients]

Needs nothing but the standard library. Each part carries a stamp, a digest of the files it was made from, in the
folder it made; an equal stamp means there is nothing to do, and an interrupted installation leaves none. Two set-ups
of one checkout take turns.
"""

import contextlib
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
NODE_CLIENTS = ROOT / "tests" / "clients" / "js"
LOCK = ROOT / ".run" / "setup.lock"

OLDEST_NODE = 20
PIP_INSTALL = ("-m", "pip", "install", "-qq", "--disable-pip-version-check")


class Unusable(Exception):
    """The machine lacks something; the message is the one sentence that the user gets."""


def main(parts: list[str]) -> int:
    try:
        if {"node", "node-clients"} & set(parts):
            check_node()
        with exclusive():
            if "python" in parts:
                set_up_python()
            if "node" in parts:
                install_node_modules(ROOT, "Installing the Node modules")
            if "python-clients" in parts:
                set_up_python_clients()
            if "node-clients" in parts:
                install_node_modules(NODE_CLIENTS, "Installing the JavaScript client")
    except Unusable as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        say("Set-up stopped; the next make takes it up again.")
        return 130
    return 0


def check_node() -> None:
    """Refuse early: without Node there is no storage emulator, whatever else gets installed."""
    remedy = f"install Node.js {OLDEST_NODE} or newer (with npm), which runs the storage emulator, and run make again."
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unusable(f"Node.js was not found: {remedy}")
    answer = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"v(\d+)\.", answer.stdout)
    if version is None:
        raise Unusable(f"Node.js does not start: {remedy}")
    if int(version[1]) < OLDEST_NODE:
        raise Unusable(f"Node.js {answer.stdout.strip().removeprefix('v')} is too old: {remedy}")


def set_up_python() -> None:
    stamp = VENV / ".stamp"
    wanted = digest(ROOT / "requirements.txt", ROOT / "requirements-dev.txt")
    usable = venv_is_usable()
    if usable and read(stamp) == wanted:
        return
    if not usable:
        run(
            [sys.executable, "-m", "venv", "--clear", str(VENV)],
            "Making the virtual environment .venv",
            'This Python cannot make virtual environments: install its venv module (Debian, Ubuntu: "apt install '
            'python3.13-venv") and run make again.',
        )
    install_python_packages(stamp, wanted, "requirements-dev.txt", "Installing the Python packages")


def set_up_python_clients() -> None:
    stamp = VENV / ".stamp-clients"
    wanted = digest(*(ROOT / f"requirements{part}.txt" for part in ("", "-dev", "-clients")))
    if read(stamp) != wanted:
        install_python_packages(stamp, wanted, "requirements-clients.txt", "Installing the Python clients")


def install_python_packages(stamp: Path, wanted: str, requirements: str, doing: str) -> None:
    stamp.unlink(missing_ok=True)
    run(
        [str(VENV / "bin" / "python"), *PIP_INSTALL, "-r", requirements],
        doing,
        "The Python packages could not be installed; the lines above say why.",
    )
    stamp.write_text(wanted)


def venv_is_usable() -> bool:
    python = VENV / "bin" / "python"
    if not python.exists():
        return False
    probe = "import pip, sys; sys.exit(sys.version_info[:2] != (3, 13))"
    return subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0


def install_node_modules(folder: Path, doing: str) -> None:
    """What the lock file in `folder` names, into its `node_modules`."""
    stamp = folder / "node_modules" / ".stamp"
    wanted = digest(folder / "package.json", folder / "package-lock.json")
    if read(stamp) == wanted:
        return
    stamp.unlink(missing_ok=True)
    run(
        ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"],
        doing,
        "The Node modules could not be installed; the lines above say why.",
        folder,
    )
    stamp.write_text(wanted)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up of this checkout is under way; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str], doing: str, failure: str, folder: Path = ROOT) -> None:
    say(f"{doing} …")
    started = time.monotonic()
    if subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise Unusable(failure)
    say(f"{doing}: done in {time.monotonic() - started:.0f} s")


def digest(*files: Path) -> str:
    """One digest over the contents: a checkout that only touches the files' times installs nothing anew."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def read(stamp: Path) -> str:
    return stamp.read_text() if stamp.exists() else ""


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["python", "node"]))
