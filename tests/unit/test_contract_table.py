"""The tables of docs/contract.md: every promise is there once, in words, with tests that exist."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from api.settings import ApiSettings
from protocol.jsonio import MAX_VALUES
from protocol.references import MAX_PARTITIONS
from protocol.request_items import MAX_ITEMS
from protocol.request_tools import MAX_TOOLS
from resilience.chain import MAX_PENDING
from resilience.chain_metadata import MAX_METADATA_BYTES

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = TESTS.parent / "docs" / "contract.md"

RULES = frozenset(
    [f"C{number}" for number in range(1, 9)]
    + [f"B{number}" for number in (*range(1, 15), 16, 17, 18, *range(20, 25), *range(26, 34), 35, 37, 40)]
    + [f"W{number}" for number in range(1, 12)]
    + ["I1", "routes", "health", "delete", "input-items", "not-found", "conversation", "errors", "sse-headers"]
    + ["handler-errors", "handler-signature", "internal-metadata", "exit-for-recovery"]
    + [f"S{number}" for number in range(1, 8)]
    + ["cancel-steer", "cancel-client", "cancel-shutdown", "cancel-both", "cancel-anywhere", "cancel-queued"]
)

HEADER = "| Id | What you can rely on | Shown by |"
NODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """One promise."""

    rule: str
    promise: str
    nodes: tuple[str, ...]


def rows_of(text: str) -> list[Row]:
    """The rows of every table that has the header, in order."""
    rows: list[Row] = []
    inside = False
    for line in text.splitlines():
        if line == HEADER:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 3, line
            rows.append(Row(cells[0], cells[1], tuple(NODE.findall(cells[2]))))
    return rows


@cache
def names_in(file: Path) -> frozenset[str]:
    """The names of the tests in a file; none if there is no such file."""
    if not file.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, functions) and node.name.startswith("test_"))


def faults_of(text: str) -> list[str]:
    """What is wrong with the tables."""
    rows = rows_of(text)
    counted = Counter(row.rule for row in rows)
    faults = [f"{rule} has no row" for rule in sorted(RULES - set(counted))]
    faults += [f"{rule} is no rule" for rule in sorted(set(counted) - RULES)]
    faults += [f"{rule} has {count} rows" for rule, count in counted.items() if count > 1]
    for row in rows:
        if not row.promise:
            faults.append(f"{row.rule} says nothing")
        if not row.nodes:
            faults.append(f"{row.rule} has no test")
        for node in row.nodes:
            file, _, name = node.partition("::")
            if name not in names_in(TESTS / file):
                faults.append(f"{row.rule}: there is no test {node}")
    return faults


@pytest.fixture
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def test_every_promise_has_a_row_and_every_row_tests_that_exist(document: str) -> None:
    assert faults_of(document) == []


def row_line(document: str, rule: str) -> str:
    return next(line for line in document.splitlines() if line.startswith(f"| {rule} |"))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_row_that_is_missing_is_noticed(document: str, rule: str) -> None:
    assert faults_of(document.replace(row_line(document, rule) + "\n", "")) == [f"{rule} has no row"]


@pytest.mark.parametrize(
    ("node", "replacement"),
    [
        ("contract/test_afterwards.py::test_cursor_that_is_none_is_refused", "contract/test_afterwards.py::test_x"),
        ("contract/test_afterwards.py::test_cursor_that_is_none_is_refused", "contract/test_gone.py::test_cursor"),
        ("contract/test_afterwards.py::test_cursor_that_is_none_is_refused", "contract/test_afterwards.py"),
        ("contract/test_afterwards.py::test_cursor_that_is_none_is_refused", "contract/test_afterwards.py::readings"),
    ],
    ids=["renamed", "moved", "no-name", "no-test"],
)
def test_a_test_that_does_not_exist_is_noticed(document: str, node: str, replacement: str) -> None:
    assert f"`{node}`" in document
    assert faults_of(document.replace(node, replacement)) == [f"B4: there is no test {replacement}"]


def test_a_row_without_a_test_is_noticed(document: str) -> None:
    assert faults_of(document.replace(row_line(document, "B35"), "| B35 | Something | soon |")) == ["B35 has no test"]


def test_a_row_without_words_is_noticed(document: str) -> None:
    line = row_line(document, "B35")
    empty = f"| B35 | | {line.split('|')[3].strip()} |"
    assert faults_of(document.replace(line, empty)) == ["B35 says nothing"]


def test_a_row_that_stands_twice_or_is_unknown_is_noticed(document: str) -> None:
    line = row_line(document, "B35")
    assert faults_of(document.replace(line, f"{line}\n{line}")) == ["B35 has 2 rows"]
    unknown = line.replace("| B35 |", "| B99 |", 1)
    assert faults_of(document.replace(line, f"{line}\n{unknown}")) == ["B99 is no rule"]


def test_limits_in_the_table_are_those_of_the_code() -> None:
    table = DOCUMENT.read_text(encoding="utf-8").partition("### Limits")[2]
    for written in (
        f"{MAX_VALUES:,} JSON values",
        f"| input items | {MAX_ITEMS:,} |",
        f"| chains of responses that item references lead to | {MAX_PARTITIONS} |",
        f"| tools | {MAX_TOOLS:,} |",
        f"| turns that wait in a chain | {MAX_PENDING} |",
        f"| `conversation_chain_metadata` | {MAX_METADATA_BYTES >> 10} KiB",
        f"`RESPONSES_MAX_BODY_BYTES` ({ApiSettings().max_body_bytes >> 20} MiB)",
    ):
        assert written in table, written
