"""A real host killed at a named point, before it and after it: nothing that was promised is lost (R1, R4-R7).

`make crash-points` goes through every point in every mode that leads to it, several processes at a time; the suite
takes some of each kind.
"""

import asyncio
import os

import pytest

from api.process import Process
from resilience.crash_points import HANDLER_POINTS, POINTS, SETTING, CrashAt, UnknownCrashPoint
from storage.seam import Operation
from tests.integration.test_engine_rare_points import KILLED_HERE
from tests.support.azurite import AzuriteServer
from tests.support.crash_cases import ALL, Case, every_case

EVERY = os.environ.get("CRASH_POINTS") == "every"
AT_ONCE = 3

ELSEWHERE = {
    Operation.QUEUE_DEPTH: "a readiness or load probe counts messages, and changes nothing",
    Operation.LEDGER_PULSE: "only a worker whose event loop is blocked gives one; it is no part of the fence",
}
"""What a death has nothing to do with. What no undisturbed host passes at a time of its choosing is `KILLED_HERE`."""

CHOSEN = [
    Case("accepting", "row.replace:after", mode="cancel"),
    Case("running", "log.append:after", 3),
    Case("running", "event:before", 9),
    Case("taking over", "ledger.mark_dead:after"),
    Case("taking over", "log.break:after"),
    Case("leaving", "log.release:before"),
    Case("running", "row.replace:after", 2, "background"),
    Case("accepting", "row.replace:after", 2, "steer"),
    Case("running", "chain.replace:before", mode="steer and cancel"),
]


async def _play(cases: list[Case], azurite: AzuriteServer) -> list[str]:
    """Several at once: most of a death is waiting for somebody to notice."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> str:
        async with turns:
            try:
                await case.play(azurite)
            except Exception as error:
                return "\n".join([f"{case}: {type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            return ""

    return [wrong for wrong in await asyncio.gather(*(one(case) for case in cases)) if wrong]


@pytest.mark.timeout(300)
async def test_a_host_killed_at_a_named_point_loses_nothing(azurite: AzuriteServer) -> None:
    wrong = await _play(CHOSEN, azurite)
    assert not wrong, "\n\n".join(wrong)


if EVERY:

    @pytest.mark.timeout(400)
    @pytest.mark.parametrize("case", every_case(), ids=str)
    async def test_a_host_killed_at_every_named_point_loses_nothing(case: Case, azurite: AzuriteServer) -> None:
        await case.play(azurite)


def test_no_point_is_left_out() -> None:
    """Every storage operation and every step of a handler is a point, and somebody dies there."""
    assert {point for point in POINTS if ":" not in point or point.split(":")[0] in ("event", "checkpoint")} == set(
        HANDLER_POINTS
    )
    died_at = {case.point for case in every_case()}
    left_out = set(POINTS) - died_at
    assert {point.rpartition(":")[0] for point in left_out} == KILLED_HERE | set(ELSEWHERE)
    assert {case.point for case in CHOSEN} <= died_at


def test_a_handlers_steps_are_passed_in_every_mode() -> None:
    for point in HANDLER_POINTS:
        modes = {case.mode for case in every_case() if case.point == point}
        assert modes == set(ALL), point


@pytest.mark.parametrize(
    "text", ["", "log.append", "log.append:before", "log.append:before:0", "no.such:after:1", "event:1"]
)
def test_a_point_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UnknownCrashPoint) as refused:
        CrashAt.parse(text)
    assert refused.value.text == text


def test_a_process_with_a_wrong_point_does_not_serve() -> None:
    environment = {"AzureWebJobsStorage": "UseDevelopmentStorage=true", SETTING: "nowhere:1"}
    with pytest.raises(UnknownCrashPoint):
        Process(environment, run_function="run_response").engine()
