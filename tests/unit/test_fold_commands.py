"""The commands of a shell call are gathered piece by piece, and come out as a reader adds them up at once (V6)."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.fold import Fold
from tests.support.plain_fold import snapshot_after

Event = dict[str, Any]

BASE: dict[str, Any] = {"id": "r", "output": []}
ADDED: Event = {
    "type": "response.output_item.added",
    "output_index": 0,
    "item": {"type": "shell_call", "action": {"commands": ["a", "b"]}},
}


def command(step: str, index: int, said: str) -> Event:
    told = {"delta": said} if step == "delta" else {"command": said}
    return {"type": f"response.shell_call_command.{step}", "output_index": 0, "command_index": index, **told}


SAID = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
STEPS = st.one_of(
    st.builds(command, st.sampled_from(["delta", "delta", "added", "done"]), st.integers(0, 1), SAID),
    st.builds(command, st.sampled_from(["added", "done"]), st.just(2), SAID),
    st.just(ADDED),
    st.none(),
)
"""None is a look in between."""


@settings(deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_commands_are_what_a_reader_makes_of_them_however_often_somebody_looks(steps: list[Event | None]) -> None:
    events = [ADDED, *(step for step in steps if step is not None)]
    watched, unwatched = Fold(BASE), Fold(BASE)
    for event in [ADDED, *steps]:
        if event is None:
            watched.snapshot()
        else:
            watched.apply(event)
            unwatched.apply(event)

    expected = snapshot_after([{"type": "response.created", "response": BASE}, *events])
    assert watched.items() == unwatched.items() == expected["output"]
