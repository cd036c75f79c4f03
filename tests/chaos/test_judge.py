"""The judge of a run of chaos, before real responses with made-up journals, troubles and logs."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from api.logs import JsonFormatter
from protocol import sse
from resilience.acceptance import InsertUnanswered
from resilience.options import ResponsesServerOptions
from storage.connection import SETTING
from storage.errors import StorageUnavailable
from storage.seam import Fault
from tests.chaos.__main__ import FULL_SECONDS, LEAST_KILLS, LEAST_RESPONSES, Run, least_of, shortfalls
from tests.chaos.agent import handler
from tests.chaos.hosts import BY_ITSELF, KILL, ROLES, Slot, Trouble
from tests.chaos.judge import AT_ONCE, PATIENCE_SECONDS, Judge
from tests.chaos.line import Line
from tests.chaos.test_evidence import logged
from tests.chaos.traffic import Cut, Told
from tests.chaos.troubles import PRINCIPAL, WEIGHTS, Troubles
from tests.support.engines import Fleet, Host, background, fleet, until
from tests.support.invariants import View
from tests.support.turn_journal import Entry
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop
AGENT: Any = handler
COUNT = 3
FIRST, SECOND, OTHER = 11, 12, 13


@pytest.fixture
async def hosts() -> AsyncIterator[Fleet]:
    async with fleet(AGENT) as made:
        yield made


def host(hosts: Fleet, *, resilient: bool = True) -> Host:
    return hosts.host(options=ResponsesServerOptions(resilient_background=resilient, steerable_conversations=True))


def script(**more: object) -> str:
    return json.dumps({"count": COUNT, "delay": 0.1, **more})


async def told_of(hosts: Fleet, one: Host, **fields: object) -> Told:
    """A response that has ended, as a client that saw all of it tells of it."""
    reader = await one.stream(background(script(), **fields), principal=PRINCIPAL)
    response_id = await reader.response_id()
    frames = await reader.whole()
    await hosts.finished(response_id, PRINCIPAL)
    told = Told("stream", {"count": COUNT}, 0.0, response_id=response_id, background=True)
    told.views, told.whole, told.connections = [frames], [True], [View(frames, ended=True)]
    told.final = await one.get(response_id, principal=PRINCIPAL)
    return told


def entered(response_id: str, *pids: int, ended: bool = False) -> dict[str, list[Entry]]:
    """The handler was entered in those processes, ten seconds apart."""
    return {
        response_id: [
            Entry(f"e{n}", response_id, pid, 100.0 + 10 * n, n > 0, 101.0 + 10 * n if ended else None)
            for n, pid in enumerate(pids)
        ]
    }


def trouble(kind: str, pid: int, began: float = 105.0, ended: float = 105.0) -> Trouble:
    return Trouble(kind, "queue", pid, began, ended)


async def violations(
    hosts: Fleet,
    logs: Path,
    told: Sequence[Told] = (),
    journal: dict[str, list[Entry]] | None = None,
    troubles: Sequence[Trouble] = (),
) -> list[str]:
    judge = Judge(hosts.storage, journal or {}, troubles, logs)
    await judge.all(told)
    return [violation.what for violation in judge.violations]


async def test_a_response_that_was_entered_once_is_as_it_should_be(hosts: Fleet, tmp_path: Path) -> None:
    told = await told_of(hosts, host(hosts))
    judge = Judge(hosts.storage, entered(told.response_id, FIRST), [], tmp_path)
    await judge.all([told])
    assert not judge.violations
    assert dict(judge.outcomes) == {"completed": 1}
    assert not judge.reentries


async def test_doubled_messages_do_not_excuse_a_second_entry(hosts: Fleet, tmp_path: Path) -> None:
    told = await told_of(hosts, host(hosts))
    twice = entered(told.response_id, FIRST, SECOND)
    for kind in ("noise", "suspicion"):
        (found,) = await violations(hosts, tmp_path, [told], twice, [trouble(kind, 0)])
        assert found.startswith("V7: nothing was done to")


async def test_the_kill_of_the_right_process_excuses_a_second_entry(hosts: Fleet, tmp_path: Path) -> None:
    told = await told_of(hosts, host(hosts))
    twice = entered(told.response_id, FIRST, SECOND)
    assert not await violations(hosts, tmp_path, [told], twice, [trouble(KILL, FIRST)])
    (found,) = await violations(hosts, tmp_path, [told], twice, [trouble(KILL, OTHER)])
    assert found.startswith("V7")


async def test_a_missing_log_is_no_excuse_and_neither_are_words_about_another_response(
    hosts: Fleet, tmp_path: Path
) -> None:
    told = await told_of(hosts, host(hosts))
    here = entered(told.response_id, FIRST, FIRST)
    assert await violations(hosts, tmp_path, [told], here)
    words = [
        "response resp_x: storage refused an append of generation 1 at 7",
        "response resp_x: the run broke off",
        "worker wx was declared dead by another; its 0 runs are no longer its own",
        "Stopping: 1 running, 8 s of grace.",
    ]
    log = tmp_path / f"queue-1-{FIRST}.log"
    log.write_text("\n".join([logged(ENTERED, 100.0, attempt_id="1-w1"), *(logged(each, 105.0) for each in words)]))
    found = await violations(hosts, tmp_path, [told], here)
    assert [each for each in found if each.startswith("V7")]


ENTERED = "chaos: entered e0"


async def test_a_second_entry_of_a_deleted_response_is_found(hosts: Fleet, tmp_path: Path) -> None:
    one = host(hosts)
    told = await told_of(hosts, one)
    await one.delete(told.response_id, principal=PRINCIPAL)
    await hosts.quiet()
    told.deleted = True
    assert not await violations(hosts, tmp_path, [told], entered(told.response_id, FIRST))
    (found,) = await violations(hosts, tmp_path, [told], entered(told.response_id, FIRST, SECOND))
    assert found.startswith("V7")


async def test_a_response_that_is_not_resilient_is_never_entered_again(hosts: Fleet, tmp_path: Path) -> None:
    told = await told_of(hosts, host(hosts, resilient=False))
    twice = entered(told.response_id, FIRST, SECOND)
    (found,) = await violations(hosts, tmp_path, [told], twice, [trouble(KILL, FIRST)])
    assert found == "V7: 2 entries of a response that is not resilient"


async def test_a_turn_is_entered_again_only_for_a_cause(hosts: Fleet, tmp_path: Path) -> None:
    one = host(hosts)
    turns = [await told_of(hosts, one, conversation="talk") for _ in range(2)]
    await hosts.resting()
    first, second = (turn.response_id for turn in turns)
    for turn in turns:
        turn.conversation = "talk"
    journal = {**entered(first, FIRST, SECOND), **entered(second, FIRST)}
    journal[first][0].ended, journal[first][1].ended = 101.0, 111.0
    journal[second][0].at = 120.0
    assert not await violations(hosts, tmp_path, turns, journal, [trouble(KILL, FIRST)])
    found = await violations(hosts, tmp_path, turns, journal, [trouble("noise", 0)])
    assert sorted(each[:20] for each in found) == ["V7: nothing was done", "V9: entered more tha"]


async def test_a_failure_without_a_cause_is_found(hosts: Fleet, tmp_path: Path) -> None:
    one = host(hosts, resilient=False)
    response_id = (await one.create(background(script(delay=5.0)), principal=PRINCIPAL))["id"]
    await until(lambda: hosts.entries[response_id], "the handler")
    await one.crash()
    host(hosts, resilient=False)
    assert (await hosts.finished(response_id, PRINCIPAL)).status == "failed"
    journal = entered(response_id, FIRST)
    assert not await violations(hosts, tmp_path, journal=journal, troubles=[trouble(KILL, FIRST)])
    (found,) = await violations(hosts, tmp_path, journal=journal, troubles=[trouble(KILL, OTHER), trouble("noise", 0)])
    assert found.startswith("R5: crash_recovery, but nothing was done")


async def test_every_connection_of_a_reader_is_held_against_the_log_from_its_cursor_on(
    hosts: Fleet, tmp_path: Path
) -> None:
    told = await told_of(hosts, host(hosts))
    journal = entered(told.response_id, FIRST)
    frames = told.views[0]
    told.connections = [View(frames[:2]), View(frames[2:], after=1, ended=True)]
    assert not await violations(hosts, tmp_path, [told], journal)
    told.connections = [View(frames[:2]), View(frames[3:], after=1, ended=True)]
    (found,) = await violations(hosts, tmp_path, [told], journal)
    assert found.startswith("V3"), "it began behind its cursor"
    told.connections = []
    told.views = [[frames[0], *frames[2:]]]
    (found,) = await violations(hosts, tmp_path, [told], journal)
    assert found.startswith("V3: who read to the end"), "a frame in the middle is missing"
    assert sse.is_terminal(frames[-1])


async def test_a_stream_that_ended_too_early_is_a_defect_unless_something_was_done_to_its_host(
    hosts: Fleet, tmp_path: Path
) -> None:
    told = await told_of(hosts, host(hosts))
    journal = entered(told.response_id, FIRST)
    frames = told.views[0]
    told.connections = [View(frames[:2]), View(frames[2:], after=1, ended=True)]
    told.cuts = [Cut(OTHER, 100.0, 104.0, last=1)]
    (found,) = await violations(hosts, tmp_path, [told], journal)
    assert found.startswith("V1: a stream ended in order behind 1, and nothing was done to its host")
    assert await violations(hosts, tmp_path, [told], journal, [trouble("partition", FIRST, 101, 103)])
    assert not await violations(hosts, tmp_path, [told], journal, [trouble("partition", OTHER, 101, 103)])


async def test_what_ends_or_fails_by_itself_is_a_defect(hosts: Fleet, tmp_path: Path) -> None:
    assert await violations(hosts, tmp_path, troubles=[trouble(f"{BY_ITSELF} 1", FIRST)]) == [
        f"process {FIRST}: {BY_ITSELF} 1"
    ]
    log = tmp_path / f"queue-1-{FIRST}.log"
    record = logging.LogRecord("x", logging.ERROR, "", 0, "response resp_1: the run broke off", (), None)
    log.write_text(_with_exception(record, "KeyError: 'x'"))
    assert await violations(hosts, tmp_path) == ["response resp_1: the run broke off\nKeyError: 'x'"]
    log.write_text(_with_exception(record, "storage.errors.StorageUnavailable: log.append: …"))
    assert not await violations(hosts, tmp_path)
    log.write_text(logged("sweep failed, 27.5 ms: AttributeError: 'str' object has no attribute 'x'"))
    assert await violations(hosts, tmp_path)
    log.write_text(logged("sweep failed, 27.5 ms: StorageUnavailable: ledger.time: Storage did not answer"))
    assert not await violations(hosts, tmp_path)


def a_log(message: str, *raised: str) -> str:
    """A line, and the traceback of exceptions each of which was raised while the one before was handled."""
    try:
        _raise(*raised)
    except Exception:
        record = logging.LogRecord("api", logging.ERROR, "", 0, message, (), sys.exc_info())
    return JsonFormatter().format(record)


def _raise(*names: str) -> None:
    *before, name = names
    kind = {each.__name__: each for each in (StorageUnavailable, InsertUnanswered, KeyError)}[name]
    error = kind("first line\nStorageUnavailable: x")
    try:
        if before:
            _raise(*before)
    except Exception as cause:
        raise error from cause
    raise error


@pytest.mark.parametrize(
    "message",
    [
        "request 4b1c-77 failed",
        "request 4b1c-77: the stream broke off",
        "response resp_1: a stream broke off",
        "response resp_1: the run broke off",
        "starting-resp_1 failed",
    ],
)
async def test_an_exception_in_a_log_is_a_defect_unless_storage_was_silent(
    hosts: Fleet, tmp_path: Path, message: str
) -> None:
    log = tmp_path / f"http-1-{FIRST}.log"
    for raised in (["KeyError"], ["StorageUnavailable", "KeyError"]):
        log.write_text(a_log(message, *raised))
        (found,) = await violations(hosts, tmp_path)
        assert found.startswith(f"{message}\n"), "it names the line and shows the traceback"
        assert "KeyError" in found
    for raised in (["StorageUnavailable"], ["KeyError", "StorageUnavailable"], ["InsertUnanswered"]):
        log.write_text(a_log(message, *raised))
        assert not await violations(hosts, tmp_path)


@pytest.mark.parametrize("message", ["request 4b1c-77 failed", "response resp_1: the run broke off"])
async def test_what_broke_off_and_nobody_says_why_is_a_defect(hosts: Fleet, tmp_path: Path, message: str) -> None:
    (tmp_path / f"http-1-{FIRST}.log").write_text(logged(message))
    assert await violations(hosts, tmp_path)


def _with_exception(record: logging.LogRecord, text: str) -> str:
    return json.dumps({**json.loads(logged(record.getMessage())), "exception": text})


async def test_a_storage_that_was_out_of_breath_is_asked_again_until_the_response_is_judged(
    hosts: Fleet, tmp_path: Path
) -> None:
    one = host(hosts)
    turns = [await told_of(hosts, one, conversation="talk") for _ in range(2)]
    await hosts.resting()
    for turn in turns:
        turn.conversation = "talk"
    journal = {**entered(turns[0].response_id, FIRST, ended=True), **entered(turns[1].response_id, FIRST, ended=True)}
    journal[turns[1].response_id][0].at, journal[turns[1].response_id][0].ended = 120.0, 121.0
    fault = hosts.storage.seam.inject(Fault(operation="*", kind="before", times=20))
    judge = Judge(hosts.storage, journal, [], tmp_path)
    await judge.all(turns)
    assert fault.hits == 20
    assert not judge.violations
    assert dict(judge.outcomes) == {"completed": 2}
    assert (judge.turns, judge.chains) == (2, 1)


async def test_a_response_that_nobody_heard_of_is_judged_as_patiently(hosts: Fleet, tmp_path: Path) -> None:
    told = await told_of(hosts, host(hosts))
    hosts.storage.seam.inject(Fault(operation="*", kind="before", times=20))
    judge = Judge(hosts.storage, entered(told.response_id, FIRST), [], tmp_path)
    await judge.all([])
    assert not judge.violations
    assert dict(judge.outcomes) == {"unheard of, completed": 1}


async def test_a_storage_that_never_answers_leaves_nothing_judged_and_is_not_waited_for_twice(
    hosts: Fleet, tmp_path: Path
) -> None:
    one = host(hosts)
    told = [await told_of(hosts, one) for _ in range(3 * AT_ONCE)]
    hosts.storage.seam.inject(Fault(operation="*", kind="before"))
    judge = Judge(hosts.storage, {}, [], tmp_path)
    clock = asyncio.get_running_loop().time
    began = clock()
    await judge.all(told)
    waited = clock() - began
    assert {violation.response_id for violation in judge.violations} == {each.response_id for each in told}
    assert all(violation.what.startswith("it cannot be judged: ") for violation in judge.violations)
    assert not judge.outcomes
    assert PATIENCE_SECONDS <= waited < 2 * PATIENCE_SECONDS, "each was asked for, and all of them were waited for once"


def test_a_run_of_too_few_kills_or_responses_proves_nothing() -> None:
    least = least_of(FULL_SECONDS / 100)
    assert least == {"kills": 3, "responses": 15}
    assert not shortfalls({"kills": 3, "responses": 15}, least)
    assert shortfalls({"kills": 2, "responses": 14}, least) == [
        "too few kills: 2, not 3",
        "too few responses: 14, not 15",
    ]
    assert least_of(FULL_SECONDS / 100, 1, 2) == {"kills": 1, "responses": 2}


@pytest.mark.parametrize("missing", [*WEIGHTS, "storage calls that failed", "appends refused", "status writes refused"])
def test_a_full_run_without_one_kind_of_trouble_or_of_refusals_proves_nothing(missing: str, tmp_path: Path) -> None:
    run = Run(FULL_SECONDS, 1, tmp_path)
    run.slots = [Slot(ROLES[0], Line(None, Random(1)), {SETTING: ""}, tmp_path, Random(1), run.troubles.append)]  # type: ignore[arg-type]
    run.made = Troubles([], None, Random(1), list, run.troubles.append)  # type: ignore[arg-type]
    run.made.done.update(WEIGHTS)
    run.slots[0].line.failed = 1
    run.seen.update({"appends refused": 1, "status writes refused": 2})
    had = {"kills": LEAST_KILLS, "responses": LEAST_RESPONSES}
    assert not shortfalls({**had, **run.happened}, least_of(FULL_SECONDS))
    del run.made.done[missing], run.seen[missing]
    run.slots[0].line.failed *= missing != "storage calls that failed"
    assert shortfalls({**had, **run.happened}, least_of(FULL_SECONDS)) == [f"too few {missing}: 0, not 1"]
    assert not shortfalls({**had, **run.happened}, least_of(FULL_SECONDS - 1)), "a shorter run may miss it"
