"""The table in docs/resilience.md and the tests it names: no row × path × mode without a test of its own.

What there has to be stands here in so many words: a list that was taken from what is judged would shrink with it.
"""

import ast
import re
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.resilience import test_rows_and_paths
from tests.support import paths

ROWS = ("1", "2", "3", "4", "11")
PATHS = ("A", "B", "C")
HEADER = ["Row", "Response", *PATHS]
MODES = ("json", "stream")
CUT_SHORT_ROWS = ("1", "2", "3", "11")
"""Where the host's grace ends before the app's, these have to come out as on path C."""

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "resilience.md"

EXCUSES = {"skip", "skipif", "xfail", "importorskip", "exit", "SkipTest", "skipTest", "expectedFailure"}
"""Names under which a test may be left out, or be allowed to fail."""

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


def shape_of(document: str) -> tuple[list[str], list[str]]:
    """The names of all columns of that table, without what is said of paths, and those of all its rows."""
    lines = [
        [column.strip() for column in line.strip().strip("|").split("|")] if line.startswith("|") else []
        for line in document.splitlines()
    ]
    (head,) = (number for number, columns in enumerate(lines) if columns[:1] == ["Row"])
    _, *rows = takewhile(bool, lines[head + 1 :])
    return [name.partition(":")[0] for name in lines[head]], [columns[0] for columns in rows]


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


def marks_of(marked: object) -> set[str]:
    """The names of the marks on a module, a test or a case."""
    marks: Any = getattr(marked, "pytestmark", getattr(marked, "marks", []))
    return {mark.name for mark in (marks if isinstance(marks, Iterable) else [marks])}


def collected_from(module: ModuleType) -> set[str]:
    """The tests as pytest names them, without those that it would not run."""
    found: set[str] = set()
    if marks_of(module) & EXCUSES:
        return found
    for name, function in vars(module).items():
        if not name.startswith("test_") or marks_of(function) & EXCUSES:
            continue
        (cases,) = (mark.args[1] for mark in function.pytestmark if mark.name == "parametrize")
        found |= {f"{name}[{case.id}]" for case in cases if not marks_of(case) & EXCUSES}
    return found


def excuses(source: str) -> list[str]:
    """Where a source names something by which a test ends early, or may fail."""
    names = ((node, getattr(node, "attr", getattr(node, "id", ""))) for node in ast.walk(ast.parse(source)))
    return [f"{name} in line {getattr(node, 'lineno', 0)}" for node, name in names if name in EXCUSES]


@pytest.fixture(scope="module")
def collected() -> set[str]:
    return collected_from(test_rows_and_paths)


def test_every_row_and_path_names_a_test_for_both_kinds_of_clients(collected: set[str]) -> None:
    cells = cells_of(DOCUMENT.read_text())
    assert len(cells) == len(ROWS) * len(PATHS)
    assert len(collected) == (len(cells) + len(CUT_SHORT_ROWS)) * len(MODES)
    assert faults(cells, collected) == []


def test_the_table_has_no_row_and_no_path_that_is_not_judged() -> None:
    assert shape_of(DOCUMENT.read_text()) == (HEADER, list(ROWS))


@pytest.mark.parametrize(
    ("planted", "shape"),
    [
        (lambda text: re.sub(r"(?m)^(\| (Row|1|2|3|4|11) .*)$", r"\1 D: new path |", text), ([*HEADER, "D"], [*ROWS])),
        (
            lambda text: text.replace("\n| 11 |", "\n| 5 | new | | | |\n| 11 |"),
            (HEADER, ["1", "2", "3", "4", "5", "11"]),
        ),
        (lambda text: re.sub(r"\n(\| 11 .*)", r"\n\1\n| 11b | new | | | |", text), (HEADER, [*ROWS, "11b"])),
        (lambda text: re.sub(r"\n(\| 11 .*)", r"\n\1\n\1", text), (HEADER, [*ROWS, "11"])),
    ],
    ids=["another path", "another row", "row without a number", "row that stands there twice"],
)
def test_what_the_table_has_and_nobody_judges_is_noticed(
    planted: Callable[[str], str], shape: tuple[list[str], list[str]]
) -> None:
    assert shape_of(planted(DOCUMENT.read_text())) == shape


@pytest.mark.parametrize("row", CUT_SHORT_ROWS)
def test_host_that_cuts_the_grace_short_is_judged_as_path_c(row: str, collected: set[str]) -> None:
    (name,) = cells_of(DOCUMENT.read_text())[row, "C"]
    assert {f"{name}[{row}-cut_short-{mode}]" for mode in MODES} <= collected


@pytest.mark.parametrize("module", [test_rows_and_paths, paths], ids=["the tests", "the play"])
def test_no_cell_is_excused(module: ModuleType) -> None:
    assert excuses(Path(str(module.__file__)).read_text()) == []
    assert not marks_of(module)


@pytest.mark.parametrize(
    "excuse",
    [
        "def test_a():\n    pytest.skip('later')",
        "def test_a():\n    if slow:\n        pytest.xfail()",
        "pytestmark = pytest.mark.skipif(True, reason='')",
        "@mark.xfail\ndef test_a(): ...",
        "from pytest import skip\nskip('all', allow_module_level=True)",
        "cell = pytest.param('1', 'A', marks=[pytest.mark.skip])",
    ],
)
def test_excuse_in_the_source_is_noticed(excuse: str) -> None:
    assert excuses(excuse)


def test_marked_module_and_marked_case_are_not_collected() -> None:
    def test_cells() -> None: ...

    cases = [pytest.param("1", id="1"), pytest.param("2", id="2", marks=pytest.mark.xfail)]
    module = ModuleType("planted")
    vars(module)["test_cells"] = pytest.mark.parametrize("row", cases)(test_cells)
    assert collected_from(module) == {"test_cells[1]"}
    vars(module)["pytestmark"] = pytest.mark.skip
    assert collected_from(module) == set()


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
