"""What the files around the code promise: pins, host settings, and nothing that only holds on one machine."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

PIN = re.compile(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==[A-Za-z0-9._+!-]+(\s+#.*)?$")

# Which registry a package comes from is the machine's business, not the repository's.
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|npmjs\.(org|com)|yarnpkg\.com|npmmirror\.com|registry\.[a-z0-9-]+\.(org|com|io|net)",
    re.IGNORECASE,
)
# /home/site is where Azure itself puts an app.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(root|work|Users|home(?!/site\b))/[\w.]|\b[A-Z]:\\\\?Users\\")


def read_json(name: str) -> dict[str, Any]:
    content = json.loads((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def repository_files() -> list[Path]:
    """What is in the repository or about to be; without git, everything but what the ignore file names."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        names = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
        names = [file for file in ROOT.rglob("*") if not {".git", *ignored} & set(file.relative_to(ROOT).parts)]
    return [name for name in names if name.is_file()]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-clients.txt"])
def test_every_direct_dependency_is_pinned(name: str) -> None:
    lines = [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    requirements = [line for line in lines if line and not line.startswith(("#", "-r "))]
    assert requirements
    assert [line for line in requirements if not PIN.match(line)] == []


@pytest.mark.parametrize("line", ["pytest", "pytest>=9", "pytest==9.*", "pytest @ https://example.com/x", "-e ."])
def test_a_loose_requirement_is_no_pin(line: str) -> None:
    assert PIN.match(line) is None


def test_host_serves_at_the_root_and_polls_its_queues_quickly() -> None:
    host = read_json("host.json")
    assert host["version"] == "2.0"
    assert host["functionTimeout"] == "00:30:00"
    assert host["extensions"]["http"]["routePrefix"] == ""
    assert host["extensions"]["queues"] == {
        "batchSize": 16,
        "newBatchThreshold": 16,
        "maxPollingInterval": "00:00:01",
        "visibilityTimeout": "00:00:05",
        "maxDequeueCount": 5,
        "messageEncoding": "base64",
    }


def test_example_settings_hold_every_value_as_text() -> None:
    settings = read_json("local.settings.json.example")
    assert settings["IsEncrypted"] is False
    assert settings["Values"]["AzureWebJobsStorage"] == "UseDevelopmentStorage=true"
    assert settings["Values"]["FUNCTIONS_WORKER_RUNTIME"] == "python"
    assert settings["Values"]["RESPONSES_AGENT"] == "agent:app"
    assert all(isinstance(value, str) for value in settings["Values"].values())


def test_the_storage_emulator_is_pinned_and_locked() -> None:
    packages = read_json("package-lock.json")["packages"]
    assert read_json("package.json")["dependencies"] == {"azurite": "3.37.0"}
    assert packages["node_modules/azurite"]["version"] == "3.37.0"
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []


def test_the_lock_names_no_place_to_download_from() -> None:
    assert [name for name, package in read_json("package-lock.json")["packages"].items() if "resolved" in package] == []


def test_a_deployment_leaves_the_tooling_behind() -> None:
    ignored = (ROOT / ".funcignore").read_text(encoding="utf-8").split()
    kept = {"api", "resilience", "protocol", "storage", "samples", "agent.py", "function_app.py", "host.json"}
    assert {"local.settings.json", "tests/", "devhost/", "scripts/", "node_modules/"} <= set(ignored)
    assert not kept & {name.rstrip("/") for name in ignored}


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = []
    for file in repository_files():
        text = file.read_text(encoding="utf-8", errors="ignore")
        for pattern in (REGISTRY_HOST, MACHINE_PATH):
            found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "devhost/README.md", "infra/README.md"]
)
def test_every_link_of_the_documents_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("https://", "http://"))]
    assert [link for link in local if not ((ROOT / name).parent / link).exists()] == []


def test_the_search_covers_this_file() -> None:
    assert Path(__file__).resolve() in repository_files()


@pytest.mark.parametrize(
    "text",
    [
        "https://registry.npm" + "js.org/azurite",
        "--index-url https://py" + "pi.org/simple",
        "https://files.python" + "hosted.org/packages",
        "npm_config_registry=https://registry." + "example.com",
    ],
)
def test_a_registry_host_is_recognised(text: str) -> None:
    assert REGISTRY_HOST.search(text)


@pytest.mark.parametrize(
    "text", ["/" + "home/someone/x", "cd /" + "root/.pyenv", '"/' + 'Users/me/code"', "C:\\" + "Users\\me"]
)
def test_a_path_of_one_machine_is_recognised(text: str) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["/home/site/wwwroot", "~/.pyenv", "/v1/responses", "frame/work/x", "${HOME}/.pyenv"])
def test_an_ordinary_path_is_left_alone(text: str) -> None:
    assert MACHINE_PATH.search(text) is None
