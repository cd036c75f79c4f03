"""Every row of the table in docs/resilience.md, on every path, for clients that stream and clients that do not.

Real processes, real signals, over HTTP. Each path is played once, with the responses of all rows at work at the same
time (`tests.support.paths`); every test looks at what became of one of them. What a phase says tells which entry of
the handler wrote it: `L0_phase1` is phase 1, by the first entry. Where the host ends the process before the app's grace
is over, path B turns into path C: the tests of C judge that too.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from protocol.response import strip_internal
from storage.connection import Storage
from tests.support.azurite import AzuriteServer
from tests.support.invariants import (
    Stored,
    View,
    check_body,
    check_frames,
    check_nothing_left,
    check_response,
    check_stream,
)
from tests.support.paths import (
    BEFORE_SIGNAL,
    CLIENT_HEADERS,
    CUT_SHORT,
    HANDLER_GRACE,
    MODES,
    PHASE,
    QUERY,
    SETTINGS,
    Journal,
    Played,
    Scene,
    lifetime_of,
    markers,
    play,
)
from tests.support.servers import Deployment, deployment

PRINCIPAL = "local"

FIRST_ENTRY_ONLY = ["L0_phase0", "L0_phase1", "L0_phase2"]
CUT_OFF = ["L0_phase0", "L0_phase1", "L0_"]
SECOND_ENTRY_ONLY = ["L1_phase0", "L1_phase1", "L1_phase2"]
BOTH_ENTRIES = ["L0_phase0", "L0_phase1", "L1_phase2"]

RESET = "response.in_progress"


TOGETHER = (("A", "B"), ("C", CUT_SHORT))
"""Paths that are played at the same time: most of it is waiting."""


class Theatre:
    """Plays each path once, when the first test asks for it, and keeps its storage."""

    def __init__(self, azurite: AzuriteServer, directory: Path, stack: ExitStack) -> None:
        self._azurite = azurite
        self._directory = directory
        self._stack = stack
        self._played: dict[str, tuple[Scene, Deployment] | BaseException] = {}

    def play(self, path: str) -> tuple[Scene, Deployment]:
        """The path, played to its end; if it could not be, the same error for every test that asks."""
        if path not in self._played:
            asyncio.run(self._play_all(next(paths for paths in TOGETHER if path in paths)))
        played = self._played[path]
        if isinstance(played, BaseException):
            raise played
        return played

    async def _play_all(self, paths: Sequence[str]) -> None:
        self._played |= zip(paths, await asyncio.gather(*(self._play(path) for path in paths)), strict=True)

    async def _play(self, path: str) -> tuple[Scene, Deployment] | BaseException:
        journal = Journal(self._directory / path)
        settings = {"PHASES_JOURNAL": str(journal.path), "PHASES_GRACE": str(HANDLER_GRACE[path])}
        made = self._stack.enter_context(deployment(self._azurite, **settings, **SETTINGS[path]))
        try:
            return await play(made, path, journal), made
        except Exception as error:
            error.add_note(made.account())
            return error
        finally:
            await asyncio.to_thread(made.stop)


@pytest.fixture(scope="module")
def theatre(azurite: AzuriteServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    with ExitStack() as stack:
        yield Theatre(azurite, tmp_path_factory.mktemp("journals"), stack)


@pytest.fixture
def stage(theatre: Theatre, path: str) -> tuple[Scene, Deployment]:
    """One path, played to its end, and its storage."""
    return theatre.play(path)


@pytest.fixture
def scene(stage: tuple[Scene, Deployment]) -> Scene:
    return stage[0]


@pytest.fixture
def seen(scene: Scene, row: str, path: str, mode: str) -> Played:
    """What became of the response of one cell."""
    played = scene.played[f"{row}-{path}-{mode}"]
    if played.error is not None:
        raise played.error
    return played


@pytest.fixture
async def storage(stage: tuple[Scene, Deployment]) -> AsyncIterator[Storage]:
    async with stage[1].storage() as storage:
        yield storage


def cell(row: str, path: str, *same: str) -> pytest.MarkDecorator:
    """A test of one cell of the table, in both modes; `same` are other paths on which the same has to happen."""
    cases = [pytest.param(row, each, mode, id=f"{row}-{each}-{mode}") for each in (path, *same) for mode in MODES]
    return pytest.mark.parametrize(("row", "path", "mode"), cases)


# -- what holds of several cells --------------------------------------------------------------------------------------


async def check_stored(storage: Storage, seen: Played, *, restarts: int = 0) -> Stored:
    """The invariants, and that a GET elsewhere shows what the client was told."""
    # A client that was cut off and resumed has two views, which are one after the other.
    whole = [View(seen.frames, ended=True)] if seen.frames and seen.whole else []
    stored = await check_response(
        storage,
        PRINCIPAL,
        seen.response_id,
        seen=whole,
        entries=len(seen.entries),
        crashes=restarts,
        generation_of=lifetime_of,
    )
    assert seen.got is not None
    assert stored.snapshot is not None
    assert seen.got.json() == strip_internal(stored.snapshot)
    assert seen.input_items is not None
    (item,) = seen.input_items.json()["data"]
    assert item["content"][0]["text"] == seen.request()["input"]
    assert seen.got.json()["model"] == "test-model"
    return stored


def final(seen: Played) -> dict[str, Any]:
    """The response as a GET has it, after everything."""
    assert seen.got is not None
    assert seen.got.status_code == 200
    response: dict[str, Any] = seen.got.json()
    return response


def told(seen: Played) -> dict[str, Any]:
    """The final response as a foreground client was told it."""
    if seen.mode == "stream":
        response: dict[str, Any] = seen.events[-1]["response"]
        return response
    assert seen.answer is not None
    assert seen.answer.status_code == 200
    answered: dict[str, Any] = seen.answer.json()
    return answered


def assert_numbered(seen: Played) -> None:
    """V2, of a stream whose client is its only witness."""
    check_frames(seen.frames)
    numbers = [event["sequence_number"] for event in seen.events]
    assert numbers == list(range(len(numbers)))


def types(seen: Played) -> list[str]:
    return [event["type"] for event in seen.events]


def assert_failed(response: dict[str, Any], reason: str) -> None:
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert response["error"]["message"]
    assert response["error"]["additionalInfo"]["shutdown_reason"] == reason


def assert_cut_off(response: dict[str, Any]) -> None:
    """What there was when the grace was over is kept."""
    assert markers(response) == CUT_OFF
    assert [item["status"] for item in response["output"]] == ["completed", "completed", "incomplete"]


def assert_entered_once(seen: Played) -> None:
    (entry,) = seen.entries
    assert not entry["is_recovery"]


def assert_ended_as_if_nothing_had_happened(seen: Played, response: dict[str, Any]) -> None:
    assert_entered_once(seen)
    assert response["status"] == "completed"
    assert markers(response) == FIRST_ENTRY_ONLY
    if seen.mode == "stream":
        assert types(seen) == [*BEFORE_SIGNAL, *PHASE[3:], "response.completed"]
        assert seen.connections == 1


def assert_entered_again_elsewhere(scene: Scene, seen: Played) -> None:
    """R3: another process, told that it is a recovery, and given the very same."""
    first, second = seen.entries
    assert (first["pid"], second["pid"]) == (scene.worker, scene.successor)
    assert (first["is_recovery"], second["is_recovery"]) == (False, True)
    assert second["given"] == first["given"]
    assert first["given"]["client_headers"] == CLIENT_HEADERS
    assert first["given"]["query_parameters"] == QUERY


def assert_goes_on_in_the_same_stream(seen: Played, kept: int) -> None:
    """R7: what was sent stays, the reset says what of it counts, and what follows is the rest, without a gap."""
    if seen.mode == "json":
        return
    assert seen.connections == 1, "the client's own connection was to another process"
    assert types(seen) == [*BEFORE_SIGNAL, RESET, *PHASE * (3 - kept), "response.completed"]
    reset = seen.events[len(BEFORE_SIGNAL)]
    assert markers(reset["response"]) == FIRST_ENTRY_ONLY[:kept]
    added = [event["output_index"] for event in seen.events if event["type"] == "response.output_item.added"]
    assert added == [0, 1, 2, *range(kept, 3)]


# -- row 1: stored, background, resilient ------------------------------------------------------------------------------


@cell("1", "A")
async def test_resilient_run_ends_within_the_grace(scene: Scene, seen: Played, storage: Storage) -> None:
    stored = await check_stored(storage, seen)
    assert_ended_as_if_nothing_had_happened(seen, final(seen))
    assert seen.entries[0]["pid"] == scene.worker
    assert stored.row.generation == 1


@cell("1", "B")
async def test_resilient_run_goes_to_another_worker_when_its_grace_is_over(
    scene: Scene, seen: Played, storage: Storage
) -> None:
    stored = await check_stored(storage, seen, restarts=1)
    assert_entered_again_elsewhere(scene, seen)
    assert_goes_on_in_the_same_stream(seen, kept=0)
    assert final(seen)["status"] == "completed"
    assert markers(final(seen)) == SECOND_ENTRY_ONLY
    # Handed over, not taken away: that was no failed attempt.
    assert (stored.row.generation, stored.row.attempt) == (2, 1)


@cell("1", "C", CUT_SHORT)
async def test_resilient_run_of_a_killed_worker_is_done_again_by_another(
    scene: Scene, seen: Played, storage: Storage
) -> None:
    stored = await check_stored(storage, seen, restarts=1)
    assert_entered_again_elsewhere(scene, seen)
    assert_goes_on_in_the_same_stream(seen, kept=0)
    assert final(seen)["status"] == "completed"
    assert markers(final(seen)) == SECOND_ENTRY_ONLY
    assert (stored.row.generation, stored.row.attempt) == (2, 2)


# -- row 2: stored, background, not resilient --------------------------------------------------------------------------


@cell("2", "A")
async def test_fragile_run_ends_within_the_grace(scene: Scene, seen: Played, storage: Storage) -> None:
    stored = await check_stored(storage, seen)
    assert_ended_as_if_nothing_had_happened(seen, final(seen))
    assert stored.row.generation == 1


@cell("2", "B")
async def test_fragile_run_is_failed_by_its_own_worker_when_its_grace_is_over(seen: Played, storage: Storage) -> None:
    stored = await check_stored(storage, seen)
    assert_entered_once(seen)
    assert_failed(final(seen), "grace_exhausted")
    assert_cut_off(final(seen))
    if seen.mode == "stream":
        assert types(seen) == [*BEFORE_SIGNAL, "response.output_item.done", "response.failed"]
    assert stored.row.generation == 1, "another worker did it"


@cell("2", "C", CUT_SHORT)
async def test_fragile_run_of_a_killed_worker_is_failed_by_whoever_finds_it(seen: Played, storage: Storage) -> None:
    stored = await check_stored(storage, seen)
    assert_entered_once(seen)
    assert_failed(final(seen), "crash_recovery")
    assert markers(final(seen)) == [], "a checkpoint is nothing to a run that cannot be resumed"
    if seen.mode == "stream":
        assert types(seen) == [*BEFORE_SIGNAL, "response.failed"]
        assert seen.connections == 2, "the first connection was to a killed process"
    assert stored.row.generation == 2


# -- row 3: stored, foreground -----------------------------------------------------------------------------------------


@cell("3", "A")
async def test_foreground_client_gets_its_response_within_the_grace(seen: Played, storage: Storage) -> None:
    await check_stored(storage, seen)
    assert_ended_as_if_nothing_had_happened(seen, told(seen))
    assert told(seen) == final(seen)


@cell("3", "B")
async def test_foreground_client_is_told_of_the_failure_when_the_grace_is_over(seen: Played, storage: Storage) -> None:
    await check_stored(storage, seen)
    assert_entered_once(seen)
    assert_failed(told(seen), "grace_exhausted")
    assert told(seen) == final(seen)
    assert_cut_off(final(seen))
    if seen.mode == "stream":
        assert types(seen) == [*BEFORE_SIGNAL, "response.output_item.done", "response.failed"]


@cell("3", "C", CUT_SHORT)
async def test_foreground_response_of_a_killed_process_is_recorded_as_failed(seen: Played, storage: Storage) -> None:
    await check_stored(storage, seen)
    assert_entered_once(seen)
    assert_failed(final(seen), "crash_recovery")
    assert markers(final(seen)) == []
    assert seen.answer is None or (seen.path == CUT_SHORT and seen.answer.status_code == 502), "it cannot answer"
    if seen.mode == "stream":
        assert types(seen) == list(BEFORE_SIGNAL), "a killed process cannot end its stream"
        assert_numbered(seen)


# -- row 4: not stored -------------------------------------------------------------------------------------------------


@cell("4", "A")
async def test_unstored_response_ends_within_the_grace(seen: Played, storage: Storage) -> None:
    check_body(told(seen))
    assert_ended_as_if_nothing_had_happened(seen, told(seen))
    if seen.mode == "stream":
        check_stream(seen.frames)
    await assert_not_stored(storage, seen)


@cell("4", "B")
async def test_client_of_an_unstored_response_is_told_of_the_failure_when_the_grace_is_over(
    seen: Played, storage: Storage
) -> None:
    check_body(told(seen))
    assert_entered_once(seen)
    assert_failed(told(seen), "grace_exhausted")
    assert_cut_off(told(seen))
    if seen.mode == "stream":
        assert types(seen) == [*BEFORE_SIGNAL, "response.output_item.done", "response.failed"]
        check_stream(seen.frames)
    await assert_not_stored(storage, seen)


@cell("4", "C")
async def test_nothing_is_left_of_an_unstored_response_of_a_killed_process(seen: Played, storage: Storage) -> None:
    assert_entered_once(seen)
    assert seen.answer is None
    if seen.mode == "stream":
        assert types(seen) == list(BEFORE_SIGNAL)
        assert_numbered(seen)
    await assert_not_stored(storage, seen)


async def assert_not_stored(storage: Storage, seen: Played) -> None:
    """B14, and nothing beside a row either."""
    assert seen.got is not None
    assert seen.input_items is not None
    assert (seen.got.status_code, seen.input_items.status_code) == (404, 404)
    await check_nothing_left(storage, PRINCIPAL, seen.response_id)


# -- row 11: row 1 with checkpoints ------------------------------------------------------------------------------------


@cell("11", "A")
async def test_run_with_checkpoints_ends_within_the_grace(scene: Scene, seen: Played, storage: Storage) -> None:
    stored = await check_stored(storage, seen)
    assert_ended_as_if_nothing_had_happened(seen, final(seen))
    assert stored.row.generation == 1


@cell("11", "B")
async def test_run_with_checkpoints_goes_on_after_the_last_one_when_its_grace_is_over(
    scene: Scene, seen: Played, storage: Storage
) -> None:
    stored = await check_stored(storage, seen, restarts=1)
    assert_entered_again_elsewhere(scene, seen)
    assert_goes_on_in_the_same_stream(seen, kept=2)
    assert final(seen)["status"] == "completed"
    assert markers(final(seen)) == BOTH_ENTRIES
    assert (stored.row.generation, stored.row.attempt) == (2, 1)


@cell("11", "C", CUT_SHORT)
async def test_run_with_checkpoints_goes_on_after_the_last_one_when_its_worker_is_killed(
    scene: Scene, seen: Played, storage: Storage
) -> None:
    stored = await check_stored(storage, seen, restarts=1)
    assert_entered_again_elsewhere(scene, seen)
    assert_goes_on_in_the_same_stream(seen, kept=2)
    assert final(seen)["status"] == "completed"
    assert markers(final(seen)) == BOTH_ENTRIES
    assert (stored.row.generation, stored.row.attempt) == (2, 2)
