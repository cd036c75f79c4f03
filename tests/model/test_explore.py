"""The search itself, on graphs that can be drawn: what it visits, and what it notices."""

from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.model.explore import Explored, Stuck, Violated, explore

type Graph = Mapping[str, str]
"""Which letters lead to which; `z` is the good end."""


def steps(graph: Graph) -> Callable[[str], Iterator[str]]:
    return lambda state: iter(graph.get(state, ""))


def is_end(state: str) -> bool:
    return state == "z"


def nothing(before: str, after: str) -> str:
    return ""


def test_every_state_is_visited_once() -> None:
    graph = {"a": "bc", "b": "cz", "c": "abz"}
    assert explore("a", steps(graph), good=is_end, wrong=nothing) == Explored(states=4, good=1)


def test_a_state_without_a_way_to_a_good_end_is_found() -> None:
    with pytest.raises(Stuck) as stuck:
        explore("a", steps({"a": "bz", "b": "c", "c": "b"}), good=is_end, wrong=nothing)
    assert stuck.value.state == "b"


@pytest.mark.parametrize("graph", [{"a": "bc", "b": "z", "c": "z"}, {"a": "zc", "c": "z"}, {"a": "z", "z": "az"}])
def test_a_wrong_step_to_a_state_that_was_reached_rightly_before_is_noticed(graph: Graph) -> None:
    """As `cancelled` after `completed` is, where another way to the same state is a good one."""
    first = explore("a", steps(graph), good=is_end, wrong=nothing)
    assert first.good
    bad = ("c", "z") if "c" in graph else ("z", "z")
    with pytest.raises(Violated, match="wrong way"):
        explore("a", steps(graph), good=is_end, wrong=lambda *step: "wrong way" if step == bad else "")
