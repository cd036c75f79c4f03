"""What a machine that lacks something is told, and the choices of `make start` that need no server."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import start
from scripts.processes import CannotRun, free_ports, is_free

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder for PATH that holds a shell's tools, but neither Python nor Node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "env"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def program(folder: Path, name: str, prints: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{prints}'\n")
    file.chmod(0o755)


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {"PATH": str(folder), "HOME": str(folder), **environment}
    return subprocess.run(command, env=bare, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def find_python(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(["sh", str(ROOT / "scripts" / "find-python.sh")], folder, **environment)


def set_up_node(folder: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, str(ROOT / "scripts" / "setup.py"), "node"], folder)


def test_missing_python_is_one_sentence(bare_path: Path) -> None:
    answer = find_python(bare_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("Python 3.13 was not found: install it")
    assert answer.stderr.count("\n") == 1


def test_another_python_is_passed_over(bare_path: Path) -> None:
    program(bare_path, "python3.13", prints="")
    assert find_python(bare_path).returncode == 1


@pytest.mark.parametrize("name", ["python3.13", "python3", "python"])
def test_python_is_found_under_its_usual_names(bare_path: Path, name: str) -> None:
    # A wrapper, as the shims of pyenv are; a link would lose the environment that it lies in.
    (bare_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bare_path / name).chmod(0o755)
    answer = find_python(bare_path)
    assert answer.stdout.strip() == sys.executable


def test_python_is_found_among_the_versions_of_pyenv(bare_path: Path) -> None:
    version = bare_path / ".pyenv" / "versions" / "3.13.0" / "bin"
    version.mkdir(parents=True)
    (version / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (version / "python").chmod(0o755)
    assert find_python(bare_path).stdout.strip() == sys.executable


def test_missing_node_is_one_sentence(bare_path: Path) -> None:
    answer = set_up_node(bare_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Node.js was not found: install Node.js 20 or newer")
    assert answer.stderr.count("\n") == 1


def test_old_node_is_one_sentence(bare_path: Path) -> None:
    program(bare_path, "node", prints="v18.20.4")
    program(bare_path, "npm", prints="10.0.0")
    answer = set_up_node(bare_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Node.js 18.20.4 is too old: install Node.js 20 or newer")
    assert answer.stderr.count("\n") == 1


def test_a_taken_port_is_refused_with_a_free_one_to_choose() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(CannotRun, match=rf"^Port {port} is taken: .* make start PORT=\d+\.$"):
            start.chosen_port(str(port))


def test_a_free_port_is_taken_as_it_is() -> None:
    (port,) = free_ports(1)
    assert start.chosen_port(str(port)) == port


def test_port_zero_means_any_free_one() -> None:
    assert start.chosen_port("0") > 0


@pytest.mark.parametrize("text", ["", "http", "-1", "65536", "7071x"])
def test_no_port_is_refused(text: str) -> None:
    with pytest.raises(CannotRun, match="PORT must be a number"):
        start.chosen_port(text)


@pytest.mark.parametrize(
    ("values", "environment", "wanted"),
    [
        ({}, {}, True),
        ({"AzureWebJobsStorage": "UseDevelopmentStorage=true"}, {}, True),
        ({"AzureWebJobsStorage": "AccountName=mine"}, {}, False),
        ({"AzureWebJobsStorage": "UseDevelopmentStorage=true"}, {"AzureWebJobsStorage": "AccountName=mine"}, False),
        ({"AzureWebJobsStorage": "AccountName=mine"}, {"AzureWebJobsStorage": "UseDevelopmentStorage=true"}, True),
        ({"AzureWebJobsStorage__accountName": "mine"}, {}, False),
    ],
)
def test_emulator_is_started_only_when_the_settings_mean_it(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], environment: dict[str, str], wanted: bool
) -> None:
    for name in [name for name in os.environ if name.startswith("AzureWebJobsStorage")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start, "local_settings", lambda: values)
    assert start.wants_emulator() is wanted


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"Values": []}'])
def test_unreadable_settings_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    file = tmp_path / "local.settings.json"
    file.write_text(content)
    monkeypatch.setattr(start, "SETTINGS", file)
    with pytest.raises(CannotRun, match=r"^local.settings.json is not a JSON object"):
        start.local_settings()
