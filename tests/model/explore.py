"""Going through a model: every state there is, or many ways through too large a world."""

import random
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.model.world import is_good, violation


class Stuck(AssertionError):
    """From here no good end can be reached any more."""

    def __init__(self, state: Any) -> None:
        super().__init__(f"{self.__doc__}\n{state}")
        self.state = state


class Endless(Stuck):
    """It goes on and on."""


class Violated(AssertionError):
    """Something happened that must not."""

    def __init__(self, what: str, state: Any) -> None:
        super().__init__(f"{what}\n{state}")
        self.state = state


@dataclass(frozen=True)
class Explored:
    """How many states there are, and how many of them are good ends."""

    states: int
    good: int


def explore[S](
    first: S,
    successors: Callable[[S], Iterator[S]],
    most: int = 3_000_000,
    *,
    good: Callable[[Any], bool] = is_good,
    wrong: Callable[[Any, Any], str] = violation,
) -> Explored:
    """Visit every state of a model; `good` are its ends, `wrong` tells what is wrong with a step.

    Raises:
        Violated: A step led to what must not be.
        Stuck: A state has no way to a good end.
    """
    numbers = {first: 0}
    # Who leads to whom, as pairs: a list per state would take more room than the states.
    sources, targets = array("l"), array("l")
    waiting = deque([first])
    ends = []
    while waiting:
        state = waiting.popleft()
        number = numbers[state]
        if good(state):
            ends.append(number)
        for after in successors(state):
            # Also of a step to where another one led before: what is wrong may be the step alone.
            if what := wrong(state, after):
                raise Violated(what, after)
            known = numbers.get(after)
            if known is None:
                known = numbers[after] = len(numbers)
                waiting.append(after)
            sources.append(number)
            targets.append(known)
        assert len(numbers) <= most, f"more than {most} states"
    stuck = _without_way(len(numbers), sources, targets, ends)
    if stuck is not None:
        raise Stuck(next(state for state, number in numbers.items() if number == stuck))
    return Explored(len(numbers), len(ends))


def _without_way(count: int, sources: "array[int]", targets: "array[int]", good: list[int]) -> int | None:
    """The first state from which none of the good ones can be reached."""
    before: list[list[int]] = [[] for _ in range(count)]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    reached = bytearray(count)
    for number in good:
        reached[number] = 1
    waiting = list(good)
    while waiting:
        for number in before[waiting.pop()]:
            if not reached[number]:
                reached[number] = 1
                waiting.append(number)
    stuck = reached.find(0)
    return None if stuck < 0 else stuck


def walk[S](
    first: S,
    successors: Callable[[S], Iterator[S]],
    chance: random.Random,
    most: int = 3_000,
    *,
    good: Callable[[Any], bool] = is_good,
    wrong: Callable[[Any, Any], str] = violation,
) -> int:
    """One way through the world until nothing can happen any more; how many steps it took.

    Raises:
        Violated: A step led to what must not be.
        Stuck: It ended, and the end is not good.
        Endless: It did not end.
    """
    state = first
    for steps in range(most):
        after = list(successors(state))
        if not after:
            if not good(state):
                raise Stuck(state)
            return steps
        chosen = chance.choice(after)
        if what := wrong(state, chosen):
            raise Violated(what, chosen)
        state = chosen
    raise Endless(state)


def wander[S](
    first: S,
    successors: Callable[[S], Iterator[S]],
    walks: int,
    *,
    good: Callable[[Any], bool] = is_good,
    wrong: Callable[[Any, Any], str] = violation,
) -> None:
    """So many walks, each by a chance of its own; they are the same ones every time."""
    for seed in range(walks):
        walk(first, successors, random.Random(seed), good=good, wrong=wrong)
