"""Why a handler was entered again, a response failed or a stream ended early: each has a cause that the run knows of,
or is a defect.

What entitles to a second entry (V7) is what happened to the process, or the worker, of the entry before: its process
ended, its worker was declared dead, it left the run to others, or storage refused its writes although nobody else had
taken the run. A start message that comes twice entitles to nothing. The claim's number, not the clock, says which
entry is the later one: who was stopped between its claim and its handler enters late.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from tests.chaos.evidence import Attempt, Evidence, Refusal
from tests.chaos.hosts import Trouble
from tests.chaos.silences import SILENCE
from tests.chaos.traffic import Cut
from tests.support.turn_journal import Entry

NOTICE_SECONDS = 2.0
"""By how much the record of an end may come later than what it caused: the adopter's line is behind its deed, and the
end of a process is noted by who looks at it now and then."""

AFTERMATH_SECONDS = 25.0
"""How long after its cause a worker may still lose a run: suspicion, and the message of a killed invocation."""

ATTEMPTS = 5
CLAIMS_WITHOUT_ENTRY = 2
"""So many of the attempts may have died between their claim and the handler, where the journal has nothing of them."""

HINDRANCES = ("storm", "partition", "watch_lost", "freeze", "held_then_frozen", "held_then_killed", SILENCE)
NO_STORAGE = ("storm", "partition", "freeze", "held_then_frozen", "held_then_killed", SILENCE)
LATE_WRITES = ("storm", "partition", "held_then_frozen", "held_then_killed", SILENCE)
"""After which storage may refuse a write of an owner that nobody displaced: a lease is broken late, a reply is lost."""


class Causes:
    """Knows what was done to whom."""

    def __init__(self, troubles: Sequence[Trouble], evidence: Evidence) -> None:
        self._troubles = troubles
        self._evidence = evidence
        self._ends = {trouble.pid: trouble.ended for trouble in troubles if trouble.is_end}

    def in_order(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries of one response by their claims."""
        return sorted(entries, key=lambda entry: (self._claim(entry).generation, entry.at))

    def reentries(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry, str]]:
        """Each entry that was not the last, the next one, and why there was a next one: "" is a violation of V7."""
        for before, after in itertools.pairwise(self.in_order(entries)):
            yield before, after, self.of_reentry(before, after)

    def of_reentry(self, before: Entry, after: Entry) -> str:
        """What had happened to an entry when the next one began; "" if nothing had."""
        if self._ends.get(before.pid, math.inf) <= after.at + NOTICE_SECONDS:
            return "killed"
        if self._evidence.shut_down.get(before.entry, math.inf) <= after.at:
            return "handed over"
        if self._died(before) <= after.at + NOTICE_SECONDS:
            return "declared dead"
        if self._hit(before.pid, ("leave",), before.at, after.at):
            return "left"
        if before.pid == after.pid:
            return self._reclaimed(before, after.at)
        return ""

    def _reclaimed(self, entry: Entry, until: float) -> str:
        """Its own process went on with a new claim: after silence, or after a refusal that others caused."""
        for refusal in self._refusals(entry.response_id, entry.pid, entry.at, until):
            if refusal.broke_off:
                return "storage was silent"
            if refusal.generation == self._claim(entry).generation and self._are_late_writes(entry.at, refusal.at):
                return "refused"
        return ""

    def displaced(self, entry: Entry) -> bool:
        """Whether the process of an entry may have lost its response without knowing it.

        Here effects count as well: whom storage refuses has lost it, whatever the reason.
        """
        ended = entry.ended or math.inf
        if self._died(entry) < ended or self._hit(entry.pid, (*HINDRANCES, "leave"), entry.at, ended):
            return True
        generation = self._claim(entry).generation
        return any(each.generation == generation for each in self._refusals(entry.response_id, entry.pid, entry.at))

    # -- failures ---------------------------------------------------------------------------------------------------

    def of_failure(self, reason: str, response_id: str, created_at: float, entries: Sequence[Entry]) -> bool:
        """Whether something was done that entitles to the failure of a response."""
        if reason == "attempts_exhausted":
            return self._were_exhausted(response_id, created_at, entries)
        check = {
            "storage_error": self._had_no_storage,
            "crash_recovery": self._lost_its_worker,
            "grace_exhausted": self._was_told_to_leave,
        }.get(reason)
        if check is None:
            return False
        holders = list(entries) or self._without_entry(response_id)
        if not holders:  # its worker died, or was cut off, before it said anything
            holders = [Entry("", response_id, pid, created_at - 1, is_recovery=False) for pid in self._pids()]
        return any(check(entry) for entry in holders)

    def _were_exhausted(self, response_id: str, created_at: float, entries: Sequence[Entry]) -> bool:
        if len(entries) >= ATTEMPTS:
            return True
        attempts = self._evidence.attempts.get(response_id, [])
        last = attempts[-1].at if attempts else math.inf
        if any(created_at - 1 <= at <= last for at in self._evidence.poisoned) and (
            not attempts or attempts[-1].number <= ATTEMPTS
        ):
            return True
        missing = ATTEMPTS - len(entries)
        ends = sum(created_at - 1 <= end <= last for end in self._ends.values())
        return missing <= min(CLAIMS_WITHOUT_ENTRY, ends)

    def _had_no_storage(self, entry: Entry) -> bool:
        return self._hit(entry.pid, NO_STORAGE, entry.at, entry.ended or math.inf)

    def _lost_its_worker(self, entry: Entry) -> bool:
        """Its process ended, in the handler or before the outcome was stored, or its worker was declared dead."""
        until = math.inf if entry.ended is None else entry.ended + AFTERMATH_SECONDS
        if entry.at - NOTICE_SECONDS <= self._ends.get(entry.pid, math.inf) < until:
            return True
        if self._died(entry) < until or self._hit(entry.pid, ("leave",), entry.at, until):
            return True
        return any(True for _ in self._refusals(entry.response_id, entry.pid, entry.at, until))

    def _was_told_to_leave(self, entry: Entry) -> bool:
        if entry.entry in self._evidence.shut_down:
            return True
        return self._hit(entry.pid, ("leave",), entry.at, entry.ended or math.inf)

    def _without_entry(self, response_id: str) -> list[Entry]:
        """Who had a response whose handler was never entered; the last run is the one that recorded the failure."""
        attempts = self._evidence.attempts.get(response_id, [])
        had = attempts[:-1] or attempts
        return [Entry("", response_id, each.pid, each.at, is_recovery=False) for each in had]

    # -- streams ----------------------------------------------------------------------------------------------------

    def of_cut(self, response_id: str, cut: Cut) -> bool:
        """Whether its host had a reason to end a stream in order before its last event.

        It left or ended, or its storage was silent for longer than it has patience for, which it may say itself.
        """
        if cut.began <= self._ends.get(cut.pid, math.inf) <= cut.ended + NOTICE_SECONDS:
            return True
        if self._hit(cut.pid, (*NO_STORAGE, "leave"), cut.began, cut.ended):
            return True
        said = self._evidence.cuts.get(response_id, [])
        return any(pid == cut.pid and cut.began <= at <= cut.ended + NOTICE_SECONDS for at, pid in said)

    # -- what is known of an entry ----------------------------------------------------------------------------------

    def _claim(self, entry: Entry) -> Attempt:
        """The claim of an entry; without a line in the log, whose process died at that very moment, nothing of it."""
        return self._evidence.entries.get(entry.entry) or Attempt(entry.at, entry.pid, 0, "")

    def _died(self, entry: Entry) -> float:
        """When the worker of an entry was declared dead. One of its process, where it is not known which."""
        worker = self._claim(entry).worker
        deaths = self._evidence.deaths
        if worker:
            return deaths.get(worker, math.inf)
        of_process = (deaths.get(each, math.inf) for each in self._evidence.workers(entry.pid))
        return min((at for at in of_process if at >= entry.at - AFTERMATH_SECONDS), default=math.inf)

    def _refusals(self, response_id: str, pid: int, since: float, until: float = math.inf) -> Iterator[Refusal]:
        for refusal in self._evidence.refusals.get(response_id, []):
            if refusal.pid == pid and since <= refusal.at <= until:
                yield refusal

    def _are_late_writes(self, since: float, until: float) -> bool:
        return any(
            trouble.began <= until and since <= trouble.ended + AFTERMATH_SECONDS
            for trouble in self._troubles
            if trouble.kind in LATE_WRITES
        )

    def _hit(self, pid: int, kinds: Sequence[str], since: float, until: float) -> bool:
        """Whether that was done to that process, or to all, at the time or shortly before."""
        return any(
            trouble.began <= until and since <= trouble.ended + AFTERMATH_SECONDS
            for trouble in self._troubles
            if (trouble.pid == pid or trouble.kind == SILENCE) and trouble.kind in kinds
        )

    def _pids(self) -> Mapping[int, None]:
        return dict.fromkeys(trouble.pid for trouble in self._troubles)
