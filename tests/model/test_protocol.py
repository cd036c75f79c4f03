"""The protocol's model holds, and notices each of the mistakes that one could think are none."""

from functools import partial

import pytest

from tests.model.explore import Endless, Stuck, Violated, explore, wander
from tests.model.protocol import successors
from tests.model.world import Bounds, Mistake, State, begin, disowned, sleeping

WALKS = 60


@pytest.mark.parametrize(
    ("first", "least"),
    [
        pytest.param(begin(Bounds()), 20, id="undisturbed"),
        pytest.param(begin(Bounds(crashes=1)), 500, id="crash"),
        pytest.param(begin(Bounds(suspicions=1)), 10_000, id="suspicion"),
        pytest.param(begin(Bounds(crashes=1, suspicions=1)), 150_000, id="crash-and-suspicion"),
        pytest.param(begin(Bounds(responses=2, crashes=1)), 40_000, id="crash-of-two-runs"),
        pytest.param(begin(Bounds(crashes=1, cancels=1)), 5_000, id="crash-and-cancel"),
        pytest.param(begin(Bounds(crashes=1, hand_overs=1)), 5_000, id="crash-and-hand-over"),
        pytest.param(begin(Bounds(cancels=1, hand_overs=1)), 5_000, id="cancel-and-hand-over"),
        pytest.param(begin(Bounds(workers=3, crashes=1), midway=True), 10_000, id="death-of-the-adopter"),
        pytest.param(begin(Bounds(workers=3, cancels=1), midway=True), 2_000, id="cancel-during-recovery"),
        pytest.param(sleeping(Bounds()), 1_000, id="sleeping-challenger"),
        pytest.param(disowned(Bounds()), 400, id="disowned-owner"),
        pytest.param(disowned(Bounds(cancels=1)), 400, id="disowned-owner-and-cancel"),
    ],
)
def test_whatever_happens_in_any_order_every_response_can_end_well_and_none_ends_badly(
    first: State, least: int
) -> None:
    """V1, V5, V8, and that nobody is stuck: in every order there is."""
    explored = explore(first, successors)
    assert explored.states >= least, "the model became smaller"
    assert explored.good


@pytest.mark.parametrize(
    ("bounds", "midway"),
    [
        (Bounds(workers=3, crashes=2, suspicions=2, cancels=1, hand_overs=1), False),
        (Bounds(workers=3, responses=2, crashes=1, suspicions=2, cancels=1, hand_overs=1), False),
        (Bounds(workers=3, responses=2, crashes=1, suspicions=2), True),
    ],
    ids=["one-response", "two-responses", "midway"],
)
def test_three_workers_end_well_on_many_ways_through_worlds_too_large_to_be_searched(
    bounds: Bounds, midway: bool
) -> None:
    wander(begin(bounds, midway=midway), successors, WALKS)


# What each mistake leads to, and from where it is found quickest.
SLEEPER = sleeping(Bounds())
CAUGHT: dict[Mistake, tuple[State, type[AssertionError]]] = {
    Mistake.APPEND_WITHOUT_FENCE: (disowned(Bounds()), Violated),
    Mistake.STATUS_WITHOUT_ETAG: (disowned(Bounds(cancels=1)), Violated),
    Mistake.LEDGER_AFTER_ROW: (begin(Bounds(workers=3, crashes=1), midway=True), Stuck),
    Mistake.LOSER_LEAVES: (begin(Bounds(crashes=1, cancels=1)), Stuck),
    Mistake.NO_SECOND_LOOK: (SLEEPER, Violated),
    Mistake.SLEEPER_LEAVES: (begin(Bounds(crashes=1, cancels=1)), Stuck),
    Mistake.NO_REPAIR: (begin(Bounds(crashes=1)), Stuck),
    Mistake.FRAME_BEFORE_ROW: (begin(Bounds(crashes=1)), Violated),
    Mistake.NO_ADOPTION_ENTRY: (begin(Bounds(workers=3, crashes=1), midway=True), Stuck),
    Mistake.NOT_MARKED_DEAD: (begin(Bounds(crashes=1)), Stuck),
    Mistake.WIPED_FIRST: (begin(Bounds(workers=3, crashes=1), midway=True), Stuck),
    Mistake.NO_MESSAGE_AT_HAND_OVER: (begin(Bounds(crashes=1, hand_overs=1)), Stuck),
    Mistake.REFUSED_OWNER_LEAVES: (SLEEPER, Stuck),
}


@pytest.mark.parametrize("mistake", CAUGHT, ids=lambda mistake: mistake.name.lower())
def test_a_planted_mistake_is_noticed(mistake: Mistake) -> None:
    first, outcome = CAUGHT[mistake]
    with pytest.raises(outcome):
        explore(first, partial(successors, mistake=mistake))


def test_a_dead_owners_lease_that_is_only_waited_for_is_noticed() -> None:
    mistaken = partial(successors, mistake=Mistake.OWNER_NOT_DISPLACED)
    with pytest.raises(Endless):
        wander(begin(Bounds(workers=3, crashes=1), midway=True), mistaken, WALKS)


def test_a_worker_id_that_is_used_again_hides_a_run() -> None:
    """Its owner was declared dead, makes its ledger anew for another run, and looks alive to who would take over."""
    mistake = Mistake.ID_USED_AGAIN
    first = disowned(Bounds(responses=2, crashes=1), mistake)
    with pytest.raises(Stuck):
        wander(first, partial(successors, mistake=mistake), 40 * WALKS)


def test_every_mistake_has_a_test() -> None:
    others = {Mistake.OWNER_NOT_DISPLACED, Mistake.ID_USED_AGAIN}
    assert CAUGHT.keys() | others == set(Mistake)
