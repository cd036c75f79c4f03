"""The state machine: in the suite the same stories every time, with `MACHINE_STORIES` so many new ones."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.machine import World

STORIES = int(os.environ.get("MACHINE_STORIES", "0"))
OF_THE_SUITE = 50

LEAST = {
    "second entries": 10,
    "hand-overs": 3,
    "drains": 5,
    "lost watch messages": 5,
    "refusals": 10,
    "cancels": 1,
    "deletions": 1,
    "completed": 40,
    "failed": 3,
    "fault before": 15,
    "fault after": 15,
    "fault delay": 15,
    "fault hang": 3,
    "keyed requests": 10,
    "refused zombie writes": 1,
}
"""What has to happen at least in so many stories as the suite has; which ones they are goes with the code.

A fault counts where it changed a call, not where it was only set.
"""

HIT_IN = 20
"""So many pairs of a kind of fault and an operation that it hit."""


# Half a minute of computing on a quiet machine; as long as it likes, when it was asked for more.
@pytest.mark.timeout(0 if STORIES else 600)
def test_no_story_leads_to_a_wrong_or_unfinished_response() -> None:
    World.told.clear()
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=STORIES or OF_THE_SUITE,
            stateful_step_count=25,
            derandomize=not STORIES,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if STORIES else [Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    if STORIES in range(1, OF_THE_SUITE):
        return  # too few to be counted
    missing = {what: World.told[what] for what, least in LEAST.items() if World.told[what] < least}
    assert not missing, f"the stories have become tame: {missing}"
    hit = {what for what, times in World.told.items() if times and what.startswith("fault ") and "." in what}
    assert len(hit) >= HIT_IN, f"the stories have become tame: only {sorted(hit)}"
