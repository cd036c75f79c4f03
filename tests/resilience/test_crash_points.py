"""A real host killed at a named point, before it and after it: nothing that was promised is lost (R1, R4-R7).

`make crash-points` goes through every point in every mode that leads to it, several processes at a time; the suite
takes some of each kind.
"""

import asyncio
import os

import pytest

from api.process import Process
from resilience.crash_points import HANDLER_POINTS, MOMENTS, POINTS, SETTING, CrashAt, UnknownCrashPoint
from storage.seam import Operation
from tests.integration.test_engine_rare_points import KILLED_HERE
from tests.support.azurite import AzuriteServer
from tests.support.crash_cases import ALL, BACKGROUND_ONLY, ENDED, LOG_ONLY, STEER, Case, every_case

EVERY = os.environ.get("CRASH_POINTS") == "every"
AT_ONCE = 3

ELSEWHERE = {
    Operation.QUEUE_DEPTH: "a readiness or load probe counts messages, and changes nothing",
    Operation.LEDGER_PULSE: "only a worker whose event loop is blocked gives one; it is no part of the fence",
}
"""What a death has nothing to do with. What no undisturbed host passes at a time of its choosing is `KILLED_HERE`."""

MODES: dict[tuple[str, ...], frozenset[Operation]] = {
    ALL: frozenset(
        {
            Operation.PAYLOAD_PUT,
            Operation.PAYLOAD_GET,
            Operation.ROW_INSERT,
            Operation.ROW_READ,
            Operation.ROW_REPLACE,
            Operation.LEDGER_BEGIN,
            Operation.LEDGER_END,
            Operation.LEDGER_READ,
            Operation.LEDGER_MARK_DEAD,
            Operation.LEDGER_ENTRIES,
            Operation.LEDGER_WIPE,
            Operation.QUEUE_SEND_START,
            Operation.QUEUE_SEND_WATCH,
            Operation.QUEUE_PUSH_WATCH,
            Operation.QUEUE_DELETE_WATCH,
        }
    ),
    LOG_ONLY: frozenset(
        {
            Operation.LOG_CREATE,
            Operation.LOG_ACQUIRE,
            Operation.LOG_APPEND,
            Operation.LOG_BREAK,
            Operation.LOG_INFO,
            Operation.LOG_READ,
        }
    ),
    STEER: frozenset({Operation.CHAIN_READ}),
    ("steer and cancel",): frozenset({Operation.CHAIN_REPLACE}),
    ENDED: frozenset({Operation.LEDGER_COMMIT}),
    ("stream",): frozenset(
        {
            Operation.LOG_RELEASE,
            Operation.LOG_LIST,
            Operation.LOG_DELETE,
            Operation.PAYLOAD_LIST,
            Operation.PAYLOAD_DELETE,
            Operation.CHAIN_DELETE,
        }
    ),
    BACKGROUND_ONLY: frozenset(
        {
            Operation.KEY_CLAIM,
            Operation.KEY_READ,
            Operation.PING,
            Operation.LEDGER_TIME,
            Operation.LEDGER_STALE,
        }
    ),
}
"""In which modes somebody dies at an operation, on whatever way."""

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


def test_a_death_at_an_operation_is_tried_in_every_mode_that_leads_there() -> None:
    died_in: dict[str, set[str]] = {}
    for case in every_case():
        if case.point not in HANDLER_POINTS:
            died_in.setdefault(case.point, set()).add(case.mode)
    assert died_in == {
        f"{operation}:{moment}": set(modes)
        for modes, operations in MODES.items()
        for operation in operations
        for moment in MOMENTS
    }


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
