"""The end of a run: everything has come to rest, and every response is held against what its clients were told."""

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol import sse
from protocol.response import strip_internal
from storage.connection import Storage
from storage.driver import RESPONSES
from storage.rows import ROW_PREFIX, ResponseRow, row_from_entity
from tests.chaos.hosts import Trouble
from tests.chaos.traffic import Told
from tests.chaos.troubles import PRINCIPAL
from tests.support.invariants import (
    Span,
    Stored,
    assert_chain,
    check_frames,
    check_nothing_left,
    check_response,
    check_stream,
    read_stored,
)
from tests.support.rest import left_to_do
from tests.support.turn_journal import Entry, read_entries

type Json = dict[str, Any]

AT_ONCE = 8
REST_SECONDS = 240.0
REST_LOOK_SECONDS = 5.0
AFTERMATH_SECONDS = 25.0
"""How long after its cause a worker may still lose a run: suspicion, and the message of a killed invocation."""

UNHEARD = ("exception was never retrieved", "was never awaited", "Unclosed")
NOISE = "noise"
DISPLACED = ("declared dead", "storage refused")
"""What a log says of a process that may still be in a handler whose response another has."""

LOST = ("declared dead", "storage refused", "broke off", "was handed over", "Draining", "stopping")
"""What a log says of a run that was lost for a reason of its process."""


@dataclass(frozen=True)
class Violation:
    """What is wrong with which response."""

    response_id: str
    mode: str
    what: str


def read_journal(path: Path) -> Mapping[str, list[Entry]]:
    """The entries by response, in their order."""
    entries: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in read_entries(path):
        entries[entry.response_id].append(entry)
    return entries


async def rest(storage: Storage, environment: dict[str, str], say: Callable[[str], None]) -> list[Violation]:
    """Wait until nothing is left to do; what is left after that is wrong."""
    deadline = asyncio.get_running_loop().time() + REST_SECONDS
    while True:
        left = await left_to_do(storage, environment)
        if not left:
            return []
        if asyncio.get_running_loop().time() > deadline:
            return [Violation(each, "", f"not at rest after {REST_SECONDS:.0f} s") for each in left]
        say(f"not at rest: {len(left)}, {left[:3]}")
        await asyncio.sleep(REST_LOOK_SECONDS)


class Judge:
    """Checks every response there is."""

    def __init__(
        self, storage: Storage, journal: Mapping[str, list[Entry]], troubles: Sequence[Trouble], logs: Path
    ) -> None:
        self._storage = storage
        self._journal = journal
        self._troubles = troubles
        self._logs = logs
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.violations: list[Violation] = []
        self.outcomes: defaultdict[str, int] = defaultdict(int)
        self.turns = 0
        """Turns of conversations that were judged."""
        self.chains = 0
        self._texts: dict[int, list[str]] = {}

    async def all(self, told: Sequence[Told]) -> None:
        """Judge what clients were told, and what is stored although no client was told of it."""
        self._check_logs()
        heard_of: defaultdict[str, list[Told]] = defaultdict(list)
        for each in told:
            self._say(each.response_id, each.mode, each.wrong)
            if each.response_id:
                heard_of[each.response_id].append(each)
        entities = await self._storage.driver.query_entities(RESPONSES, row_key_prefix=ROW_PREFIX)
        rows = {row.id: row for row in map(row_from_entity, entities)}
        unheard = list(rows)
        checks = [self._judge(one) for each in heard_of.values() for one in each]
        checks += [self._judge_unheard(each) for each in unheard if each not in heard_of]
        checks += [self._judge_chain(key, turns) for key, turns in _chains(rows.values())]
        await asyncio.gather(*checks)

    async def _judge_chain(self, key: str, turns: Mapping[str, ResponseRow]) -> None:
        """V9; how often a turn may have been entered is another check's, who tells each entry's reason."""
        self.turns += len(turns)
        self.chains += 1
        async with self._slots:
            try:
                spans = self._spans(turns)
                await assert_chain(self._storage, PRINCIPAL, next(iter(turns)), spans, crashes=len(spans))
            except AssertionError as error:
                self._say(max(turns, key=lambda each: turns[each].turn), f"chain {key}", [str(error)[:2000]])

    def _spans(self, turns: Mapping[str, ResponseRow]) -> list[Span]:
        """The entries that count for the order of turns.

        Who was frozen or cut off may still be in its handler, or even enter it, when the turns behind it run: storage
        refuses whatever comes of it.
        """
        entries = sorted((entry for turn in turns for entry in self._journal.get(turn, [])), key=lambda each: each.at)
        counted: list[Span] = []
        begun: set[str] = set()
        newest = 0
        for entry in entries:
            row = turns[entry.response_id]
            displaced = self._displaced(entry)
            late = entry.response_id in begun or row.status in ("cancelled", "failed")
            begun.add(entry.response_id)
            if displaced and row.turn < newest and late:
                continue
            newest = max(newest, row.turn)
            counted.append((entry.response_id, entry.at, None if displaced else entry.ended))
        return counted

    def _displaced(self, entry: Entry) -> bool:
        """Whether the process of an entry may have lost its response without knowing it."""
        ended = entry.ended or math.inf
        for trouble in self._troubles:
            overlaps = trouble.began <= ended and entry.at <= trouble.ended + AFTERMATH_SECONDS
            if overlaps and trouble.kind != NOISE and trouble.pid in (0, entry.pid):
                return True
        return any(word in text for text in self._logs_of(entry) for word in DISPLACED)

    def _logs_of(self, entry: Entry) -> list[str]:
        if entry.pid not in self._texts:
            self._texts[entry.pid] = [path.read_text() for path in self._logs.glob(f"*-{entry.pid}.log")]
        return self._texts[entry.pid]

    def _check_logs(self) -> None:
        """A task that dies unheard is a defect even where nothing came of it."""
        for path in sorted(self._logs.iterdir()):
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if any(word in line for word in UNHEARD):
                    self._say("", path.name, ["\n".join(lines[number : number + 30])])

    def _say(self, response_id: str, mode: str, what: Sequence[str]) -> None:
        self.violations += [Violation(response_id, mode, each) for each in what]

    async def _judge(self, told: Told) -> None:
        async with self._slots:
            try:
                await self._compare(told)
            except AssertionError as error:
                self._say(told.response_id, told.mode, [str(error)[:2000]])
            except Exception as error:
                self._say(told.response_id, told.mode, [f"it cannot be judged: {error!r}"])

    async def _judge_unheard(self, response_id: str) -> None:
        async with self._slots:
            try:
                stored = await check_response(self._storage, PRINCIPAL, response_id)
                self.outcomes[f"unheard of, {stored.row.status}"] += 1
                self._check_story(stored)
            except AssertionError as error:
                self._say(response_id, "unheard of", [str(error)[:2000]])

    async def _compare(self, told: Told) -> None:
        assert len(told.ids) <= 1, f"I1: one key, {told.ids}"
        if not told.store:
            self._compare_unstored(told)
            return
        if told.deleted:
            await check_nothing_left(self._storage, PRINCIPAL, told.response_id)
            self.outcomes["deleted"] += 1
            return
        views = told.views if told.background else [view for view, _ in _whole(told)]
        stored = await read_stored(self._storage, PRINCIPAL, told.response_id)
        if not told.background and _is_late(told):
            assert stored.row.status == "failed", f"R14: {stored.row.status} after storage_error"
            return
        stored = await check_response(self._storage, PRINCIPAL, told.response_id, seen=views, cancelled=told.cancelled)
        for view in told.views:
            check_frames(view)
        for view, _ in _whole(told):
            if told.background:
                assert view[-1] == stored.frames[-1], "V4: the stream ended in another way"
        if told.final is not None:
            assert stored.snapshot is not None
            assert told.final == strip_internal(stored.snapshot), "V1: the response changed after its end"
        self.outcomes[stored.row.status] += 1
        self._check_story(stored, None if told.conversation else told.script["count"])

    def _compare_unstored(self, told: Told) -> None:
        for view, _ in _whole(told):
            check_stream(view)
        self.outcomes["not stored"] += 1

    def _check_story(self, stored: Stored, count: int | None = None) -> None:
        """What became of it is what its disposition and what was done to its workers allow."""
        row = stored.row
        snapshot = stored.snapshot or {}
        entries = self._journal.get(row.id, [])
        if row.status == "completed":
            words = "".join(part["text"] for item in snapshot["output"] for part in item["content"]).split()
            numbers = [int(word.partition(".")[2]) for word in words]
            assert numbers == list(range(len(numbers))), f"R7: the output counts {numbers}"
            assert count is None or len(numbers) == count, f"V6: {len(numbers)} of {count}"
        if row.status == "failed":
            self._check_failure(row.disposition, snapshot)
        told_by = [entry for event in stored.events if (entry := _entry_of(event))]
        runs = [entry for number, entry in enumerate(told_by) if number == 0 or told_by[number - 1] != entry]
        assert len(runs) == len(set(runs)), f"V5: the entries spoke in turns: {runs}"
        if row.disposition != "resilient":
            assert len(entries) <= 1, f"V7: {len(entries)} entries of a response that is not resilient"
        for before, after in itertools.pairwise(entries):
            assert self._explained(before, after), f"V7: nothing was done to {before} until {after}"

    def _check_failure(self, disposition: str, snapshot: Json) -> None:
        error = snapshot["error"]
        reason = (error.get("additionalInfo") or {}).get("shutdown_reason", error["code"])
        self.outcomes[f"failed: {reason}"] += 1
        allowed = {"attempts_exhausted", "storage_error"}
        if disposition != "resilient":
            allowed |= {"crash_recovery", "grace_exhausted"}
        assert reason in allowed, f"R5: a {disposition} response failed with {error}"

    def _explained(self, before: Entry, after: Entry) -> bool:
        """V7: something was done to the process of an entry that was not the last."""
        for trouble in self._troubles:
            overlaps = trouble.began <= after.at and before.at <= trouble.ended + AFTERMATH_SECONDS
            if overlaps and trouble.pid in (0, before.pid):
                return True
        logs = self._logs_of(before)
        return not logs or any(word in text for text in logs for word in LOST)


def _chains(rows: Iterable[ResponseRow]) -> list[tuple[str, dict[str, ResponseRow]]]:
    """The turns of each conversation, by its partition."""
    chains: defaultdict[str, dict[str, ResponseRow]] = defaultdict(dict)
    for row in rows:
        if row.turn:
            chains[row.partition_key][row.id] = row
    return [(key, turns) for key, turns in chains.items() if len(turns) > 1]


def _whole(told: Told) -> list[tuple[list[bytes], bool]]:
    return [(view, whole) for view, whole in zip(told.views, told.whole, strict=True) if whole]


def _is_late(told: Told) -> bool:
    """The client heard of a storage that did not answer, before there was a record (R14)."""
    ends = [told.final] if told.final else [sse.decode(view[-1])["response"] for view, _ in _whole(told)]
    return any((end.get("error") or {}).get("code") == "storage_error" for end in ends)


def _entry_of(event: Json) -> str:
    return str(event["delta"]).partition(".")[0] if event["type"] == "response.output_text.delta" else ""
