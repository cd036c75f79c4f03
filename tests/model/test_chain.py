"""The model of chains holds, and notices each of the slips that one could think are none (V9)."""

from functools import partial

import pytest

from tests.model.chain import Slip, State, begin, is_good, successors, violation
from tests.model.explore import Explored, Stuck, Violated, explore, wander

BACK, FORE = "background", "foreground"
WALKS = 200


def explored(first: State, slip: Slip | None = None) -> Explored:
    return explore(first, partial(successors, slip=slip), good=is_good, wrong=violation)


@pytest.mark.parametrize(
    ("first", "least"),
    [
        pytest.param(begin(BACK, BACK), 2_000, id="undisturbed"),
        pytest.param(begin(BACK, BACK, crashes=1), 10_000, id="crash"),
        pytest.param(begin(BACK, BACK, BACK, posted=3, crashes=1), 10_000, id="crash-while-draining"),
        pytest.param(begin(BACK, BACK, posted=2, cancels=1), 10_000, id="cancel"),
        pytest.param(begin(FORE, BACK, crashes=1, refusals=1), 5_000, id="foreground-first"),
        pytest.param(begin(BACK, FORE, crashes=1), 5_000, id="foreground-behind"),
        pytest.param(begin(FORE, FORE, crashes=1), 2_000, id="only-foreground"),
    ],
)
def test_every_turn_can_end_in_whatever_order_things_happen_and_none_runs_out_of_order(
    first: State, least: int
) -> None:
    """V9: nobody waits for ever, never two handlers, in the order in which they joined."""
    found = explored(first)
    assert found.states >= least, "the model became smaller"
    assert found.good


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(begin(BACK, BACK, BACK, posted=2, cancels=2, crashes=1), id="background"),
        pytest.param(begin(BACK, FORE, BACK, posted=1, cancels=1, crashes=1, refusals=1), id="mixed"),
        pytest.param(begin(BACK, FORE, BACK, FORE, workers=3, cancels=2, crashes=2, refusals=1), id="three-workers"),
    ],
)
def test_longer_chains_end_well_on_many_ways_through_worlds_too_large_to_be_searched(first: State) -> None:
    wander(first, successors, WALKS, good=is_good, wrong=violation)


CAUGHT: dict[Slip, tuple[State, type[AssertionError]]] = {
    Slip.NOT_REVIVED: (begin(BACK, BACK, posted=2, crashes=1), Stuck),
    Slip.ENTRY_CLOSED_FIRST: (begin(BACK, BACK, posted=2, crashes=1), Stuck),
    Slip.FAILED_STAYS: (begin(FORE, crashes=1), Stuck),
    Slip.REFUSED_IS_FORGOTTEN: (begin(FORE, BACK, crashes=1, refusals=1), Stuck),
    Slip.NOBODY_IS_ENDING: (begin(BACK, FORE), Violated),
    Slip.NO_LOOK_AT_THE_CHAIN: (begin(BACK, BACK), Violated),
    Slip.JOINS_BLINDLY: (begin(BACK, BACK), AssertionError),
    Slip.ENDS_BLINDLY: (begin(BACK, BACK, posted=2, crashes=1), Stuck),
}


@pytest.mark.parametrize("slip", CAUGHT, ids=lambda slip: slip.name.lower())
def test_a_planted_slip_is_noticed(slip: Slip) -> None:
    first, outcome = CAUGHT[slip]
    with pytest.raises(outcome):
        explored(first, slip)


def test_every_slip_has_a_test() -> None:
    assert CAUGHT.keys() == set(Slip)
