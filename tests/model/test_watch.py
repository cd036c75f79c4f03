"""The epochs of watch messages hold, and the model notices each of the mistakes that one could think are none."""

from functools import partial

import pytest

from tests.model.explore import Stuck, Violated, explore
from tests.model.watch import Mistake, State, is_good, successors, violation

CAUGHT: dict[Mistake, type[AssertionError]] = {
    Mistake.COMMIT_FIRST: Stuck,
    Mistake.EPOCH_IGNORED: Violated,
    Mistake.MARKED_BLINDLY: Violated,
    Mistake.NOT_TOLD: Violated,
    Mistake.OVERDUE_IGNORED: Violated,
    Mistake.PUT_BACK_FOR_EVER: Stuck,
    Mistake.EPOCH_KEPT: Violated,
}


def test_a_lost_message_never_hides_a_death_and_a_superseded_one_never_makes_one() -> None:
    explored = explore(State(), successors, good=is_good, wrong=violation)
    assert explored.states > 500, "the model became smaller"
    assert explored.good


@pytest.mark.parametrize("mistake", Mistake, ids=lambda mistake: mistake.name.lower())
def test_a_planted_mistake_is_noticed(mistake: Mistake) -> None:
    with pytest.raises(CAUGHT[mistake]):
        explore(State(), partial(successors, mistake=mistake), good=is_good, wrong=violation)
