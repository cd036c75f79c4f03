"""What excuses a second entry or a failure, and what does not."""

from collections.abc import Iterable

import pytest

from tests.chaos.causes import AFTERMATH_SECONDS, Causes
from tests.chaos.evidence import ATTEMPT, ENTERED, LEFT, LEFT_AT_SHUTDOWN, Evidence, Line
from tests.chaos.hosts import BY_ITSELF, CRASH, EXIT, KILL, Trouble
from tests.chaos.silences import SILENCE
from tests.chaos.traffic import Cut
from tests.chaos.troubles import WEIGHTS
from tests.support.turn_journal import Entry

RESPONSE = "resp_1"
FIRST, SECOND, OTHER = 11, 12, 13
"""Processes: of the first entry, of the second one, and one that has nothing to do with it."""

BEFORE = Entry("aa", RESPONSE, FIRST, 100.0, is_recovery=False)
AFTER = Entry("bb", RESPONSE, SECOND, 110.0, is_recovery=True)
AGAIN_HERE = Entry("bb", RESPONSE, FIRST, 110.0, is_recovery=True)
CLAIMS = (
    Line(100.0, FIRST, ENTERED.format("aa"), RESPONSE, "1-wfirst"),
    Line(110.0, SECOND, ENTERED.format("bb"), RESPONSE, "2-wsecond"),
)


def trouble(kind: str, pid: int, began: float, ended: float | None = None) -> Trouble:
    return Trouble(kind, "queue", pid, began, began if ended is None else ended)


def line(at: float, message: str, pid: int = FIRST) -> Line:
    return Line(at, pid, message)


def why(troubles: Iterable[Trouble] = (), lines: Iterable[Line] = (), after: Entry = AFTER) -> str:
    return Causes([*troubles], Evidence([*CLAIMS, *lines])).of_reentry(BEFORE, after)


def test_an_entry_to_whose_process_nothing_was_done_has_no_cause() -> None:
    assert why() == ""


@pytest.mark.parametrize("kind", ["noise", "suspicion"])
def test_a_message_to_all_does_not_excuse_a_second_entry(kind: str) -> None:
    assert why([trouble(kind, 0, 99, 111)]) == ""


@pytest.mark.parametrize("kind", [KILL, f"{CRASH} row.replace:after:1", f"{EXIT} 0", f"{BY_ITSELF} 1"])
def test_the_end_of_the_process_that_had_it_excuses_a_second_entry(kind: str) -> None:
    assert why([trouble(kind, FIRST, 104)]) == "killed"
    assert why([trouble(kind, OTHER, 104)]) == "", "another process"
    assert why([trouble(kind, SECOND, 104)]) == "", "the one that entered it again"
    assert why([trouble(kind, FIRST, 114)]) == "", "later"


@pytest.mark.parametrize("kind", [kind for kind in WEIGHTS if kind not in (KILL, "leave")])
def test_what_hinders_a_process_is_no_cause_as_long_as_nobody_said_that_its_worker_is_dead(kind: str) -> None:
    assert why([trouble(kind, FIRST, 101, 109)]) == ""


@pytest.mark.parametrize(
    "said", ["worker {} is dead: 3 open entries", "worker {} was declared dead by another; its 3 runs are no longer …"]
)
def test_a_worker_that_was_declared_dead_excuses_a_second_entry(said: str) -> None:
    assert why(lines=[line(109.0, said.format("wfirst"), OTHER)]) == "declared dead"
    assert why(lines=[line(109.0, said.format("wother"), OTHER)]) == "", "another worker"
    assert why(lines=[line(119.0, said.format("wfirst"), OTHER)]) == "", "later"


def test_another_worker_of_the_same_process_may_have_died_without_an_excuse_for_this_one() -> None:
    earlier = Line(50.0, FIRST, ATTEMPT.format(1), "resp_0", "1-wearlier")
    assert why(lines=[earlier, line(105.0, "worker wearlier is dead: 1 open entries", OTHER)]) == ""


def test_an_entry_that_was_left_at_a_shutdown_excuses_the_next_one() -> None:
    assert why(lines=[line(106.0, LEFT_AT_SHUTDOWN.format("aa"))]) == "handed over"
    assert why(lines=[line(106.0, LEFT.format("aa"))]) == "", "it ended"
    assert why(lines=[line(106.0, LEFT_AT_SHUTDOWN.format("cc"))]) == "", "another entry"
    assert why(lines=[line(111.0, LEFT_AT_SHUTDOWN.format("aa"))]) == "", "later"


def test_a_process_that_was_told_to_leave_gives_its_runs_to_others() -> None:
    assert why([trouble("leave", FIRST, 103, 112)]) == "left"
    assert why([trouble("leave", OTHER, 103, 112)]) == ""


REFUSED = f"response {RESPONSE}: storage refused an append of generation 1 at 70"


def test_a_refusal_excuses_only_the_process_that_goes_on_itself_and_after_writes_that_may_come_late() -> None:
    late = trouble("held_then_killed", OTHER, 99, 100)
    refused = line(108.0, REFUSED)
    assert why([late], [refused], AGAIN_HERE) == "refused"
    assert why([late], [refused]) == "", "it was refused because another had entered"
    assert why([], [refused], AGAIN_HERE) == "", "no write was late"
    assert why([late], [line(108.0, REFUSED, OTHER)], AGAIN_HERE) == "", "another was refused"
    assert why([late], [line(108.0, REFUSED.replace("generation 1", "generation 2"))], AGAIN_HERE) == "", "a lost claim"
    assert why([late], [line(108.0, REFUSED.replace(RESPONSE, "resp_2"))], AGAIN_HERE) == "", "another response"


def test_a_run_that_broke_off_goes_on_in_its_process() -> None:
    broke_off = line(108.0, f"response {RESPONSE}: the run broke off")
    assert why([], [broke_off], AGAIN_HERE) == "storage was silent"
    assert why([], [broke_off]) == ""


def test_the_claims_tell_the_order_of_entries_where_the_clock_does_not() -> None:
    """A process that was stopped between its claim and its handler enters when its successor has done so."""
    late = Entry("aa", RESPONSE, FIRST, 115.0, is_recovery=False)
    causes = Causes([], Evidence([*CLAIMS, line(109.0, "worker wfirst is dead: 1 open entries", OTHER)]))
    assert causes.in_order([AFTER, late]) == [late, AFTER]
    assert [why for _, _, why in causes.reentries([AFTER, late])] == ["declared dead"]


# -- who may still be in a handler ------------------------------------------------------------------------------------


def displaced(troubles: Iterable[Trouble] = (), lines: Iterable[Line] = ()) -> bool:
    return Causes([*troubles], Evidence([*CLAIMS, *lines])).displaced(BEFORE)


def test_who_was_hindered_or_declared_dead_or_refused_may_have_lost_its_response_unknowingly() -> None:
    assert not displaced()
    assert displaced([trouble("freeze", FIRST, 101, 109)])
    assert not displaced([trouble("freeze", OTHER, 101, 109)])
    assert not displaced([trouble("noise", 0, 101, 109), trouble("suspicion", 0, 101, 109)])
    assert displaced(lines=[line(120.0, "worker wfirst is dead: 2 open entries", OTHER)])
    assert displaced(lines=[line(120.0, REFUSED)])
    assert not displaced(lines=[line(120.0, REFUSED.replace(RESPONSE, "resp_2"))])


# -- streams that ended early -----------------------------------------------------------------------------------------

CUT = Cut(FIRST, 100.0, 110.0, last=7)


def cut(troubles: Iterable[Trouble] = (), lines: Iterable[Line] = ()) -> bool:
    return Causes([*troubles], Evidence([*CLAIMS, *lines])).of_cut(RESPONSE, CUT)


def test_a_stream_that_ended_early_on_an_undisturbed_host_has_no_cause() -> None:
    assert not cut()
    assert not cut([trouble(kind, 0, 99, 111) for kind in ("noise", "suspicion")])
    assert not cut([trouble("watch_lost", FIRST, 99, 111)]), "it keeps nobody from its log"


@pytest.mark.parametrize("kind", ["storm", "partition", "freeze", "held_then_frozen", "held_then_killed", "leave"])
def test_a_stream_may_end_early_on_a_host_that_left_or_had_no_storage(kind: str) -> None:
    assert cut([trouble(kind, FIRST, 104, 112)])
    assert cut([trouble(kind, FIRST, 90, 95)]), "shortly before"
    assert not cut([trouble(kind, OTHER, 104, 112)])
    assert not cut([trouble(kind, FIRST, 111, 112)]), "later"


@pytest.mark.parametrize("kind", [KILL, f"{CRASH} row.replace:after:1", f"{EXIT} 0", f"{BY_ITSELF} 1"])
def test_a_stream_may_end_early_at_the_end_of_its_host(kind: str) -> None:
    assert cut([trouble(kind, FIRST, 111)]), "noted a little late"
    assert not cut([trouble(kind, OTHER, 110)])
    assert not cut([trouble(kind, FIRST, 113)]), "later"
    assert not cut([trouble(kind, FIRST, 99)]), "an earlier process of that number"


def test_a_stream_may_end_early_where_its_host_says_why() -> None:
    said = f"response {RESPONSE}: a stream broke off"
    assert cut(lines=[line(109.9, said)])
    assert not cut(lines=[line(109.9, said, OTHER)])
    assert not cut(lines=[line(99.0, said)]), "another stream"
    assert not cut(lines=[line(109.9, said.replace(RESPONSE, "resp_2"))])


# -- failures ---------------------------------------------------------------------------------------------------------

ENDED = Entry("aa", RESPONSE, FIRST, 100.0, is_recovery=False, ended=105.0)


def fails(
    reason: str, troubles: Iterable[Trouble] = (), lines: Iterable[Line] = (), entries: Iterable[Entry] = (ENDED,)
) -> bool:
    return Causes([*troubles], Evidence([*CLAIMS, *lines])).of_failure(reason, RESPONSE, 99, [*entries])


@pytest.mark.parametrize("reason", ["attempts_exhausted", "storage_error", "crash_recovery", "grace_exhausted", "else"])
def test_a_failure_without_a_cause_is_none_that_may_be(reason: str) -> None:
    noise = [trouble("noise", 0, 100, 101), trouble("suspicion", 0, 100, 101)]
    assert not fails(reason, [*noise, trouble("storm", OTHER, 100, 105), trouble(KILL, OTHER, 103)])


@pytest.mark.parametrize("kind", ["storm", "partition", "held_then_frozen", "freeze"])
def test_storage_error_needs_a_storage_that_did_not_answer_that_process(kind: str) -> None:
    assert fails("storage_error", [trouble(kind, FIRST, 101, 104)])
    assert not fails("storage_error", [trouble(kind, FIRST, 106, 110)]), "later"
    assert not fails("storage_error", [trouble(kind, FIRST, 10, 99 - AFTERMATH_SECONDS)]), "long before"


def test_a_silence_of_the_emulator_is_one_for_every_process() -> None:
    assert fails("storage_error", [trouble(SILENCE, 0, 101, 140)])
    assert not fails("storage_error", [trouble(SILENCE, 0, 106, 140)]), "later"
    assert not fails("crash_recovery", [trouble(SILENCE, 0, 101, 140)])
    assert displaced([trouble(SILENCE, 0, 101, 140)])
    assert why([trouble(SILENCE, 0, 101, 109)]) == "", "who cannot reach storage is not dead yet"


def test_crash_recovery_needs_the_end_of_the_process_that_had_it() -> None:
    in_handler = Entry("aa", RESPONSE, FIRST, 100.0, is_recovery=False)
    killed = trouble(KILL, FIRST, 103)
    assert fails("crash_recovery", [killed], entries=[in_handler])
    assert fails("crash_recovery", [killed])
    assert not fails("crash_recovery", [trouble(KILL, FIRST, 90)])
    assert not fails("crash_recovery", [trouble(KILL, FIRST, 105.1 + AFTERMATH_SECONDS)]), "long after its handler"
    assert fails("crash_recovery", lines=[line(104.0, "worker wfirst is dead: 2 open entries", OTHER)])


def test_crash_recovery_of_a_response_that_was_never_entered_needs_the_end_of_whoever_had_it() -> None:
    had = Line(100.0, OTHER, ATTEMPT.format(1), RESPONSE, "1-wother")
    failed = Line(120.0, SECOND, ATTEMPT.format(2), RESPONSE, "2-wsecond")
    assert fails("crash_recovery", [trouble(KILL, OTHER, 101)], [had, failed], [])
    assert not fails("crash_recovery", [trouble(KILL, SECOND, 121)], [had, failed], []), "it recorded the failure"
    assert fails("crash_recovery", [trouble(KILL, SECOND, 121)], entries=[]), "nobody said that he had it"


def test_grace_exhausted_needs_a_shutdown() -> None:
    assert fails("grace_exhausted", [trouble("leave", FIRST, 104, 106)])
    assert fails("grace_exhausted", lines=[line(105.0, LEFT_AT_SHUTDOWN.format("aa"))])


def entered(times: int) -> list[Entry]:
    return [Entry(f"e{number}", RESPONSE, 20 + number, 100.0 + number, is_recovery=True) for number in range(times)]


def test_attempts_are_exhausted_after_five_entries_or_a_poison_message() -> None:
    last = Line(130.0, FIRST, ATTEMPT.format(6), RESPONSE, "6-wfirst")
    assert fails("attempts_exhausted", lines=[last], entries=entered(5))
    assert not fails("attempts_exhausted", lines=[last], entries=entered(4))
    ends = [trouble(KILL, 20 + number, 101.0 + number) for number in range(5)]
    assert fails("attempts_exhausted", ends, [last], entered(4)), "one died between its claim and its handler"
    assert not fails("attempts_exhausted", ends, [last], entered(2)), "not so many"
    poison = line(115.0, "Message 5 of t1responses-work, received 5 times, moves to the poison queue.", OTHER)
    assert not fails("attempts_exhausted", lines=[last, poison], entries=entered(1)), "it was not given up for poison"
    second = Line(116.0, FIRST, ATTEMPT.format(2), RESPONSE, "2-wfirst")
    assert fails("attempts_exhausted", lines=[second, poison], entries=entered(1))
    assert not fails("attempts_exhausted", lines=[second], entries=entered(1))
