"""What is over a limit is refused before anything is stored, with the seconds after which to try again."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from api.keys import ApiKeys, hash_of
from api.limits import DEPTH_SECONDS, RETRY_QUEUE
from api.settings import ApiSettings
from resilience import ResponseContext, ResponseEventStream
from resilience.options import EngineSettings
from storage.driver import WORK_QUEUE
from storage.seam import Fault
from tests.support.api_server import SETTINGS, ApiServer, queued, serving, until
from tests.support.described import check, find

ACCESS = ApiKeys.parse(f"ann:{hash_of('a')},bob:{hash_of('b')}")
BACKGROUND: dict[str, Any] = {"background": True}
MODES: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"store": False},
    {"store": False, "stream": True},
    {"background": True},
    {"background": True, "stream": True},
]


def named(flags: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in flags.items()) or "default"


class Gate:
    """Holds every run of a server until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def script(
        self, stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncGenerator[dict[str, Any]]:
        yield stream.emit_created()
        yield stream.emit_in_progress()
        await self.open.wait()
        yield stream.emit_completed()


@asynccontextmanager
async def gated(settings: EngineSettings = SETTINGS, **limits: Any) -> AsyncGenerator[tuple[ApiServer, Gate]]:
    gate = Gate()
    async with serving(gate.script, settings=settings, api=ApiSettings(access=ACCESS, **limits)) as server:
        try:
            yield server, gate
        finally:
            gate.open.set()


async def post(server: ApiServer, key: str = "a", **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    answer = await server.client.post("/v1/responses", json={"input": "x", **body}, headers=headers)
    operation = find("POST", "/v1/responses")
    assert operation is not None
    check(operation, answer.status_code, answer.headers, answer.content)
    return answer


async def is_refused(server: ApiServer, seconds: int, key: str = "a", **body: Any) -> None:
    """Post, and assert that nothing came of it but a refusal."""

    def changes() -> dict[str, int]:
        # The ledger of the runs that go on has a rhythm of its own.
        counts = server.storage.seam.counts
        return {name: counts[name] for name in ("row.insert", "log.create", "key.claim", "queue.send_start")}

    before, entered = changes(), len(server.runs)
    answer = await post(server, key, **body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == str(seconds)
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert (changes(), len(server.runs)) == (before, entered)


@pytest.mark.parametrize("flags", MODES, ids=named)
async def test_a_run_takes_its_place_from_its_request_to_its_end(flags: dict[str, Any]) -> None:
    async with gated(max_runs=1) as (server, gate):
        first = asyncio.create_task(post(server, **flags))
        await until(lambda: len(server.runs) == 1)
        for other in ({}, {"store": False, "stream": True}, {"background": True}):
            await is_refused(server, 1, "b", **other)
        gate.open.set()
        assert (await first).status_code == 200
        await until(lambda: not server.engine.runtime.running)
        assert (await post(server, **flags)).status_code == 200


async def test_one_tenant_at_its_limit_leaves_room_for_others() -> None:
    async with gated(max_runs_per_tenant=2) as (server, _):
        for _ in range(2):
            assert (await post(server, **BACKGROUND)).status_code == 200
        await until(lambda: len(server.runs) == 2)
        await is_refused(server, 1)
        await is_refused(server, 1, **BACKGROUND)
        assert (await post(server, "b", **BACKGROUND)).status_code == 200


async def test_of_many_requests_at_once_no_more_are_let_in_than_there_are_places() -> None:
    async with gated(max_runs_per_tenant=3) as (server, gate):
        waiting = [asyncio.create_task(post(server, **MODES[number % len(MODES)])) for number in range(12)]
        await until(lambda: sum(task.done() for task in waiting) >= 9 and len(server.runs) == 3)
        gate.open.set()
        answers = [(await task).status_code for task in waiting]
        assert sorted(answers) == [200] * 3 + [429] * 9


@pytest.mark.parametrize("flags", [{}, {"stream": True}], ids=named)
async def test_a_client_that_goes_away_gives_its_place_back(flags: dict[str, Any]) -> None:
    async with gated(max_runs=1) as (server, gate):
        leaving = asyncio.create_task(post(server, **flags))
        await until(lambda: len(server.runs) == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until(lambda: server.runs[0].client_cancelled)
        gate.open.set()

        async def has_room() -> bool:
            return (await post(server)).status_code == 200

        await until(has_room)


@pytest.mark.parametrize(
    "body",
    [{"previous_response_id": "resp_" + "x" * 50}, {"background": True, "previous_response_id": "resp_" + "x" * 50}],
    ids=["foreground", "background"],
)
async def test_a_request_that_is_refused_gives_its_place_back(body: dict[str, Any]) -> None:
    async with serving(api=ApiSettings(max_runs=1, access=ACCESS)) as server:
        for _ in range(3):
            assert (await post(server, **body)).status_code == 404
        assert (await post(server)).status_code == 200


async def test_responses_that_wait_in_the_queue_have_a_limit_and_others_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(settings=queued(), api=ApiSettings(max_queue_depth=2, access=ACCESS)) as server:
        for _ in range(2):
            assert (await post(server, **BACKGROUND)).status_code == 200
        await is_refused(server, RETRY_QUEUE, **BACKGROUND)
        await is_refused(server, RETRY_QUEUE, "b", **BACKGROUND, stream=True)
        assert (await post(server)).status_code == 200
        assert server.storage.seam.counts["queue.depth"] == 1  # what was let in since is counted without asking
        while message := await server.storage.driver.receive_message(WORK_QUEUE, visibility=60):
            await server.storage.driver.delete_message(WORK_QUEUE, message.receipt)
        monkeypatch.setattr("api.limits.DEPTH_SECONDS", 0.0)
        assert (await post(server, **BACKGROUND)).status_code == 200
        assert server.storage.seam.counts["queue.depth"] == 2


async def test_all_requests_of_a_moment_share_one_question_for_the_depth() -> None:
    assert DEPTH_SECONDS > 0
    async with serving(settings=queued(), api=ApiSettings(access=ACCESS)) as server:
        slow = server.storage.seam.inject(Fault(operation="queue.depth", kind="hang"))
        waiting = [asyncio.create_task(post(server, **BACKGROUND)) for _ in range(8)]
        await until(lambda: slow.hits == 1)
        assert (await post(server)).status_code == 200  # the foreground does not ask
        slow.remove()
        assert [(await task).status_code for task in waiting] == [200] * 8
        assert server.storage.seam.counts["queue.depth"] == 1


async def test_a_depth_that_cannot_be_asked_refuses_as_storage_that_is_away() -> None:
    async with serving(settings=queued(), api=ApiSettings(access=ACCESS)) as server:
        away = server.storage.seam.inject(Fault(operation="queue.depth", kind="before"))
        answer = await post(server, **BACKGROUND)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
        assert server.storage.seam.total() == 1
        away.remove()
        assert (await post(server, **BACKGROUND)).status_code == 200


async def test_a_limit_of_zero_is_none() -> None:
    none = ApiSettings(max_runs=0, max_runs_per_tenant=0, max_queue_depth=0, max_input_items=0, access=ACCESS)
    async with serving(settings=queued(), api=none) as server:
        items = [{"role": "user", "content": "x"}] * 50
        for flags in ({}, BACKGROUND):
            assert (await post(server, input=items, **flags)).status_code == 200
        assert server.storage.seam.counts["queue.depth"] == 0


@pytest.mark.parametrize(
    ("limits", "body", "param"),
    [
        ({"max_input_items": 2}, {"input": [{"role": "user", "content": "x"}] * 3}, "input"),
        ({"max_body_bytes": 100}, {"input": "x" * 100}, None),
    ],
    ids=["items", "bytes"],
)
async def test_too_much_input_is_refused_before_anything_is_stored(
    limits: dict[str, Any], body: dict[str, Any], param: str | None
) -> None:
    async with serving(api=ApiSettings(access=ACCESS, **limits)) as server:
        for flags in MODES:
            answer = await post(server, **body, **flags)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
            assert answer.json()["error"]["param"] == param
        assert server.storage.seam.total() == 0


async def test_as_many_items_as_allowed_are_taken() -> None:
    async with serving(api=ApiSettings(max_input_items=2, access=ACCESS)) as server:
        assert (await post(server, input=[{"role": "user", "content": "x"}] * 2)).status_code == 200


async def test_runs_that_came_through_the_queue_take_places_too() -> None:
    async with gated(queued(), max_runs=1) as (server, gate):
        assert (await post(server, **BACKGROUND)).status_code == 200
        run = asyncio.create_task(server.run_messages())
        await until(lambda: len(server.runs) == 1)
        await is_refused(server, 1, "b")
        gate.open.set()
        await run
        assert (await post(server, "b")).status_code == 200


def test_a_client_that_waits_as_told_finds_a_new_count() -> None:
    assert RETRY_QUEUE > DEPTH_SECONDS
