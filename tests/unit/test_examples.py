"""Hypothesis tells the same examples in every run of the suite, whatever the worker did before."""

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def examples() -> list[tuple[str, int]]:
    seen: list[tuple[str, int]] = []

    @settings(max_examples=100)
    @given(st.text(), st.integers())
    def look(text: str, number: int) -> None:
        seen.append((text, number))

    look()
    return seen


def test_what_is_imported_meanwhile_changes_no_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = examples()
    constants = [f"a text of nobody else {number}" for number in range(500)]
    numbers = [1_000_003 * number for number in range(500)]
    (tmp_path / "full_of_constants.py").write_text(f"TEXTS = {constants}\nNUMBERS = {numbers}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("full_of_constants")
    assert examples() == before
