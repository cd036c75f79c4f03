"""The end of a run: everything has come to rest, and every response is held against what its clients were told."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.core.exceptions import ServiceRequestError, ServiceResponseError

from protocol import sse
from protocol.response import strip_internal
from resilience.acceptance import InsertUnanswered
from storage.connection import Storage
from storage.driver import RESPONSES
from storage.errors import StorageUnavailable
from storage.rows import ROW_PREFIX, ResponseRow, row_from_entity
from tests.chaos.causes import Causes
from tests.chaos.evidence import Evidence, read_lines
from tests.chaos.hosts import BY_ITSELF, Trouble
from tests.chaos.traffic import Told
from tests.chaos.troubles import PRINCIPAL
from tests.support.invariants import (
    Span,
    Stored,
    View,
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

AT_ONCE = 4
"""Responses that are judged together: the emulator is a single process, and other work may go on beside it."""

PATIENCE_SECONDS = 120.0
"""So long storage is asked again for what one response is judged by; the judge's own reads say nothing of the hosts."""

ASK_AGAIN_SECONDS = 2.0
UNANSWERED = (StorageUnavailable, ServiceRequestError, ServiceResponseError)
"""The latter two where the storage client is used without the driver."""

REST_SECONDS = 240.0
REST_LOOK_SECONDS = 5.0
UNHEARD = ("exception was never retrieved", "was never awaited", "Unclosed")
BROKEN = re.compile(r"response \w+: (?:the run|a stream) broke off|request \S+(?: failed|: the stream broke off)")
"""A run, a stream or a request that ended for an exception, whatever its client was told."""

SILENCE = tuple(error.__name__ for error in (StorageUnavailable, InsertUnanswered))
"""What they may end for, and the only exceptions that a log may show at all: no handler here raises any."""

_TRACEBACK = "Traceback (most recent call last):"
FAILED = re.compile(r"(\w+) failed, [\d.]+ ms: (\w+)")
MAY_FAIL_WITH = (*SILENCE, "CancelledError")
"""What an invocation may end with: the latter at the end of its process."""


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
        try:
            left = await left_to_do(storage, environment)
        except UNANSWERED as error:  # an emulator out of breath says nothing about the hosts
            left = [f"storage: {error.__cause__ or error!r}"]
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
        self.evidence = Evidence.read(logs)
        self._causes = Causes(troubles, self.evidence)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._is_silent = False
        """Storage did not answer for a whole `PATIENCE_SECONDS`; until it does, nothing is waited for any more."""
        self.violations: list[Violation] = []
        self.outcomes: defaultdict[str, int] = defaultdict(int)
        self.turns = 0
        """Turns of conversations that were judged."""
        self.chains = 0
        self.reentries: defaultdict[str, int] = defaultdict(int)
        """Second entries into handlers, by what had happened to the one before."""

    async def all(self, told: Sequence[Told]) -> None:
        """Judge what clients were told, and what is stored although no client was told of it."""
        self._check_troubles()
        self._check_logs()
        heard_of: defaultdict[str, list[Told]] = defaultdict(list)
        for each in told:
            self._say(each.response_id, each.mode, [*each.wrong, *self._uncaused_cuts(each)])
            if each.response_id:
                heard_of[each.response_id].append(each)
        rows = await self._rows()
        for response_id in self._journal:
            self._check_entries(response_id, rows.get(response_id))
        checks = [self._judge(one) for each in heard_of.values() for one in each]
        checks += [self._judge_unheard(row) for row in rows.values() if row.id not in heard_of]
        checks += [self._judge_chain(key, turns) for key, turns in _chains(rows.values())]
        await asyncio.gather(*checks)

    async def _rows(self) -> dict[str, ResponseRow]:
        rows: dict[str, ResponseRow] = {}

        async def read() -> None:
            entities = await self._storage.driver.query_entities(RESPONSES, row_key_prefix=ROW_PREFIX)
            rows.update((row.id, row) for row in map(row_from_entity, entities))

        await self._hold(read, "", "what is stored")
        return rows

    async def _hold(self, check: Callable[[], Awaitable[None]], response_id: str, mode: str) -> None:
        """Note what a check finds; one that storage left without an answer has found nothing, and passed nothing."""
        async with self._slots:
            try:
                await self._patiently(check)
            except AssertionError as error:
                self._say(response_id, mode, [str(error)[:2000]])
            except Exception as error:
                self._say(response_id, mode, [f"it cannot be judged: {error!r}"])

    async def _patiently(self, check: Callable[[], Awaitable[None]]) -> None:
        loop_time = asyncio.get_running_loop().time
        deadline = loop_time() + PATIENCE_SECONDS
        while True:
            try:
                await check()
            except UNANSWERED:
                if self._is_silent or loop_time() >= deadline:
                    self._is_silent = True
                    raise
            except BaseException:
                self._is_silent = False
                raise
            else:
                self._is_silent = False
                return
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def _judge_chain(self, key: str, turns: Mapping[str, ResponseRow]) -> None:
        """V9; a turn may have been entered again as often as there was a cause, which `_check_entries` looks for."""
        self.turns += len(turns)
        self.chains += 1

        async def check() -> None:
            spans = self._spans(turns)
            crashes = max(len(self._caused(turn)) for turn in turns)
            await assert_chain(self._storage, PRINCIPAL, next(iter(turns)), spans, crashes=crashes)

        await self._hold(check, max(turns, key=lambda each: turns[each].turn), f"chain {key}")

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
            displaced = self._causes.displaced(entry)
            late = entry.response_id in begun or row.status in ("cancelled", "failed")
            begun.add(entry.response_id)
            if displaced and row.turn < newest and late:
                continue
            newest = max(newest, row.turn)
            counted.append((entry.response_id, entry.at, None if displaced else entry.ended))
        return counted

    def _caused(self, response_id: str) -> list[str]:
        """Why a response was entered more than once, for each entry that had a cause."""
        return [why for _, _, why in self._causes.reentries(self._journal.get(response_id, [])) if why]

    def _check_entries(self, response_id: str, row: ResponseRow | None) -> None:
        """V7: nobody is entered again but for a cause; only a resilient response is entered again at all."""
        entries = self._journal[response_id]
        disposition = row.disposition if row is not None else "not stored"
        if disposition != "resilient" and len(entries) > 1:
            self._say(response_id, disposition, [f"V7: {len(entries)} entries of a response that is not resilient"])
        for before, after, why in self._causes.reentries(entries):
            self.reentries[why or "nobody knows why"] += 1
            if not why:
                self._say(response_id, disposition, [f"V7: nothing was done to {before} until {after}"])

    def _uncaused_cuts(self, told: Told) -> list[str]:
        """A client that resumes hides a stream that ends too early; a host to which nothing was done ends none."""
        return [
            f"V1: a stream ended in order behind {cut.last}, and nothing was done to its host: {cut}"
            for cut in told.cuts
            if not self._causes.of_cut(told.response_id, cut)
        ]

    def _check_troubles(self) -> None:
        """A process that ends by itself, at no named point, is a defect."""
        for trouble in self._troubles:
            if trouble.kind.startswith(BY_ITSELF):
                self._say("", trouble.slot, [f"process {trouble.pid}: {trouble.kind}"])

    def _check_logs(self) -> None:
        """A task that dies unheard is a defect even where nothing came of it; so is what fails by itself."""
        for path in sorted(self._logs.iterdir()):
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if any(word in line for word in UNHEARD):
                    self._say("", path.name, ["\n".join(lines[number : number + 30])])
            for said in read_lines(path):
                failed = FAILED.match(said.message)
                if failed is not None and failed[2] not in MAY_FAIL_WITH:
                    self._say(said.response_id, path.name, [said.message])
                if (said.exception or BROKEN.match(said.message)) and raised(said.exception) not in SILENCE:
                    self._say(said.response_id, path.name, [f"{said.message}\n{said.exception}"])

    def _say(self, response_id: str, mode: str, what: Sequence[str]) -> None:
        self.violations += [Violation(response_id, mode, each) for each in what]

    async def _judge(self, told: Told) -> None:
        await self._hold(lambda: self._compare(told), told.response_id, told.mode)

    async def _judge_unheard(self, row: ResponseRow) -> None:
        async def check() -> None:
            if row.deleted:  # the insert of its row was not answered, and it was given up
                await check_nothing_left(self._storage, PRINCIPAL, row.id)
                self.outcomes["unheard of, given up"] += 1
                return
            stored = await check_response(self._storage, PRINCIPAL, row.id)
            self.outcomes[f"unheard of, {stored.row.status}"] += 1
            self._check_story(stored)

        await self._hold(check, row.id, "unheard of")

    async def _compare(self, told: Told) -> None:
        assert len(told.ids) <= 1, f"I1: one key, {told.ids}"
        if not told.store:
            self._compare_unstored(told)
            return
        if told.deleted:
            await check_nothing_left(self._storage, PRINCIPAL, told.response_id)
            self.outcomes["deleted"] += 1
            return
        views = told.connections if told.background else [View(view, ended=True) for view, _ in _whole(told)]
        stored = await read_stored(self._storage, PRINCIPAL, told.response_id)
        if not told.background and _is_late(told):
            assert stored.row.status == "failed", f"R14: {stored.row.status} after storage_error"
            self._check_cause("storage_error", stored.row)
            return
        stored = await check_response(self._storage, PRINCIPAL, told.response_id, seen=views, cancelled=told.cancelled)
        for view in told.views:
            check_frames(view)
        for view, _ in _whole(told):
            if told.background:
                assert view == stored.frames, "V3: who read to the end has something else than the log"
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
        if row.status == "completed":
            words = "".join(part["text"] for item in snapshot["output"] for part in item["content"]).split()
            numbers = [int(word.partition(".")[2]) for word in words]
            assert numbers == list(range(len(numbers))), f"R7: the output counts {numbers}"
            assert count is None or len(numbers) == count, f"V6: {len(numbers)} of {count}"
        if row.status == "failed":
            self._check_failure(row, snapshot)
        told_by = [entry for event in stored.events if (entry := _entry_of(event))]
        runs = [entry for number, entry in enumerate(told_by) if number == 0 or told_by[number - 1] != entry]
        assert len(runs) == len(set(runs)), f"V5: the entries spoke in turns: {runs}"

    def _check_failure(self, row: ResponseRow, snapshot: Json) -> None:
        error = snapshot["error"]
        reason = (error.get("additionalInfo") or {}).get("shutdown_reason", error["code"])
        self.outcomes[f"failed: {reason}"] += 1
        allowed = {"attempts_exhausted", "storage_error"}
        if row.disposition != "resilient":
            allowed |= {"crash_recovery", "grace_exhausted"}
        assert reason in allowed, f"R5: a {row.disposition} response failed with {error}"
        self._check_cause(reason, row)

    def _check_cause(self, reason: str, row: ResponseRow) -> None:
        entries = self._journal.get(row.id, [])
        caused = self._causes.of_failure(reason, row.id, row.created_at, entries)
        assert caused, f"R5: {reason}, but nothing was done that leads to it; entries: {entries}"


def raised(trace: str) -> str:
    """The class of the exception that a logged traceback ends with, whatever it was raised from; "" without one."""
    last = trace.rpartition(_TRACEBACK)[2]
    for line in last.splitlines():
        if line and not line.startswith(" "):  # the stack is indented, and a message may have lines of its own
            return line.partition(":")[0].rpartition(".")[2]
    return ""


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
