"""The table in docs/resilience.md and the tests it names: no row × path × mode without a test of its own."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.resilience import test_rows_and_paths
from tests.support.paths import MODES, PATHS, ROWS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "resilience.md"

type Cells = dict[tuple[str, str], list[str]]
"""The tests that a row and a path name."""


def cells_of(document: str) -> Cells:
    """Read the table whose first column is the row and whose columns `A: …`, `B: …`, `C: …` are the paths."""
    cells: Cells = {}
    paths: list[str] = []
    for line in document.splitlines():
        columns = [column.strip() for column in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if columns[:1] == ["Row"]:
            paths = [name.partition(":")[0] for name in columns]
        elif not columns:
            paths = []
        elif paths and columns[0].isdigit():
            for path, text in zip(paths, columns, strict=True):
                if path in PATHS:
                    cells[columns[0], path] = re.findall(r"`(test_\w+)`", text)
    return cells


def faults(cells: Cells, collected: set[str]) -> list[str]:
    """What is missing: cells without a test, tests that are none, that miss a mode or are named twice."""
    found = [f"{row} × {path}: {len(names)} tests" for (row, path), names in cells.items() if len(names) != 1]
    for row in ROWS:
        for path in PATHS:
            for name in cells.get((row, path), []):
                wanted = [f"{name}[{row}-{path}-{mode}]" for mode in MODES]
                found += [f"{row} × {path}: there is no {test}" for test in wanted if test not in collected]
    found += [f"{row} × {path}: no cell" for row in ROWS for path in PATHS if (row, path) not in cells]
    named = [name for names in cells.values() for name in names]
    found += [f"{name} is named twice" for name in sorted({name for name in named if named.count(name) > 1})]
    known = {test.partition("[")[0] for test in collected}
    return found + [f"{name} stands in no cell" for name in sorted(known - set(named))]


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The tests as pytest names them, without those that it would not run."""
    found: set[str] = set()
    for name, function in vars(test_rows_and_paths).items():
        marks = {mark.name: mark for mark in getattr(function, "pytestmark", [])}
        if name.startswith("test_") and not marks.keys() & {"skip", "skipif", "xfail"}:
            found |= {f"{name}[{case.id}]" for case in marks["parametrize"].args[1]}
    return found


def test_every_row_and_path_names_a_test_for_both_kinds_of_clients(collected: set[str]) -> None:
    cells = cells_of(DOCUMENT.read_text())
    assert len(cells) == len(ROWS) * len(PATHS)
    assert len(collected) == len(cells) * len(MODES)
    assert faults(cells, collected) == []


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda text: text.replace("`test_fragile_run_ends_within_the_grace`", ""), "2 × A: 0 tests"),
        (lambda text: re.sub(r"\n\| 4 \|.*", "", text), "4 × B: no cell"),
        (
            lambda text: text.replace("test_unstored_response_ends", "test_unstored_response_does_not_end"),
            "4 × A: there is no test_unstored_response_does_not_end_within_the_grace[4-A-stream]",
        ),
        (
            lambda text: text.replace("`test_run_with_checkpoints_ends", "`test_resilient_run_ends"),
            "11 × A: there is no test_resilient_run_ends_within_the_grace[11-A-json]",
        ),
    ],
    ids=["cell without a test", "row left out", "test that is none", "test of another cell"],
)
def test_gap_in_the_table_is_noticed(broken: Callable[[str], str], fault: str, collected: set[str]) -> None:
    text = DOCUMENT.read_text()
    assert broken(text) != text
    assert fault in faults(cells_of(broken(text)), collected)


def test_test_without_one_mode_is_noticed(collected: set[str]) -> None:
    cells = cells_of(DOCUMENT.read_text())
    missing = "test_resilient_run_ends_within_the_grace[1-A-json]"
    assert faults(cells, collected - {missing}) == [f"1 × A: there is no {missing}"]
