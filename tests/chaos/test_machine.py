"""The state machine: in the suite the same stories every time, with `MACHINE_STORIES` so many new ones."""

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.machine import World

STORIES = int(os.environ.get("MACHINE_STORIES", "0"))


def test_no_story_leads_to_a_wrong_or_unfinished_response() -> None:
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=STORIES or 50,
            stateful_step_count=25,
            derandomize=not STORIES,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if STORIES else [Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
