"""Imports run downwards only: function_app → api → resilience → {protocol, storage}."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each part may import besides itself. Everything at the top of the repository stands here or in EXEMPT.
MAY_IMPORT: dict[str, set[str]] = {
    "function_app": {"api", "resilience", "protocol", "storage"},
    "api": {"resilience", "protocol", "storage"},
    "resilience": {"protocol", "storage"},
    "protocol": set(),
    "storage": set(),
    "agent": {"resilience"},
    "samples": {"resilience"},
    "devhost": set(),
    "benchmarks": set(),
    "scripts": set(),
}
EXEMPT = {"tests"}


def parts() -> list[str]:
    """The packages and modules at the top of the repository."""
    modules = {file.stem for file in ROOT.glob("*.py")}
    folders = {file.parent.name for file in ROOT.glob("[!.]*/*.py")}
    return sorted((modules | folders) - EXEMPT)


def modules_of(part: str) -> list[Path]:
    return [*ROOT.glob(f"{part}.py"), *sorted((ROOT / part).rglob("*.py"))]


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, wherever it stands; `package` resolves the relative ones."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield node.lineno, module
            case ast.ImportFrom(level=level, module=module, names=names):
                # A relative import that climbs out of its package lands at the top.
                base = package.split(".")[: len(package.split(".")) - level + 1]
                for name in names:
                    yield node.lineno, ".".join([*base, *([module] if module else []), name.name])
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module


def violations(part: str, file: str, source: str) -> list[str]:
    package = ".".join(Path(file).parent.parts)
    own_house = {*MAY_IMPORT, *EXEMPT}
    allowed = {part, *MAY_IMPORT[part]}
    return [
        f"{file}:{line} imports {name}"
        for line, name in imported_names(source, package)
        if (top := name.split(".")[0]) in own_house and top not in allowed
    ]


def test_every_part_of_the_repository_has_a_place_in_the_rule() -> None:
    assert set(parts()) <= set(MAY_IMPORT)


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_run_downwards_only(part: str) -> None:
    found = [
        violation
        for file in modules_of(part)
        for violation in violations(part, str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_rule_reads_real_modules() -> None:
    assert modules_of("protocol")
    assert modules_of("storage")
    assert modules_of("devhost")


@pytest.mark.parametrize(
    ("part", "file", "source"),
    [
        ("protocol", "protocol/sse.py", "import storage"),
        ("protocol", "protocol/sse.py", "from storage.log import EventLog"),
        ("storage", "storage/log.py", "from protocol import sse"),
        ("storage", "storage/log.py", "def late():\n    from resilience.runner import run"),
        (
            "resilience",
            "resilience/runner.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import api.health",
        ),
        ("api", "api/health.py", "import json, function_app as app"),
        ("agent", "agent.py", "from protocol.models import CreateResponse"),
        ("samples", "samples/echo.py", "import storage.rows"),
        ("devhost", "devhost/queues.py", "from storage import connection"),
        ("benchmarks", "benchmarks/recovery.py", "import importlib\nimportlib.import_module('resilience.app')"),
        ("protocol", "protocol/builders/message.py", "from ...storage import log"),
        ("protocol", "protocol/sse.py", "from tests.support import azurite"),
    ],
)
def test_a_planted_violation_is_caught(part: str, file: str, source: str) -> None:
    assert len(violations(part, file, source)) == 1


@pytest.mark.parametrize(
    ("part", "file", "source"),
    [
        ("protocol", "protocol/sse.py", "import orjson\nfrom protocol.models import Response\nfrom . import errors"),
        ("protocol", "protocol/builders/message.py", "from ..fold import Fold\nfrom .base import Base"),
        ("resilience", "resilience/runner.py", "from protocol import sse\nfrom storage.log import EventLog"),
        ("api", "api/create.py", "from resilience import ResponsesApp\nfrom protocol.errors import ApiError"),
        ("storage", "storage/azure.py", "from azure.storage.blob.aio import BlobClient"),
    ],
)
def test_a_downward_import_is_fine(part: str, file: str, source: str) -> None:
    assert violations(part, file, source) == []
