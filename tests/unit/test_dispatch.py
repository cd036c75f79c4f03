"""The row decision, cell by cell (contract section 2)."""

import itertools

import pytest

from resilience.dispatch import Disposition, decide

FLAGS = list(itertools.product((True, False), repeat=3))


@pytest.mark.parametrize(("store", "background", "resilient"), FLAGS)
def test_each_combination_has_its_row(store: bool, background: bool, resilient: bool) -> None:
    decided = decide(store=store, background=background, resilient_background=resilient)
    if not store:
        assert decided is Disposition.TRANSIENT
    elif not background:
        assert decided is Disposition.FOREGROUND
    else:
        assert decided is (Disposition.RESILIENT if resilient else Disposition.BACKGROUND)


def test_only_stored_background_runs_leave_the_request() -> None:
    assert [each for each in Disposition if each.runs_in_background] == [Disposition.RESILIENT, Disposition.BACKGROUND]


def test_a_recorded_decision_is_read_back_as_itself() -> None:
    assert [Disposition(str(each)) for each in Disposition] == list(Disposition)
