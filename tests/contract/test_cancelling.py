"""Who may cancel what, what a cancel leaves, and what the handler hears of it (B1, B3, B7, B11, B12, B24, §3)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilience import ResponseContext, ResponseEventStream, ResponsesServerOptions
from resilience.options import EngineSettings
from tests.contract.modes import MODES, ask
from tests.support.api_server import SETTINGS, ApiServer, events_in, queued, serving, until

type Json = dict[str, Any]

BACKGROUND = pytest.mark.parametrize("mode", ["C3", "C4"])
ENDINGS = {
    "completed": "Cannot cancel a completed response.",
    "failed": "Cannot cancel a failed response.",
    "incomplete": "Cannot cancel an incomplete response.",
}


class Actor:
    """Says something, then ends as the input names it; `stay` waits for its signal, `ignore` for nothing in reach."""

    def __init__(self) -> None:
        self.signal: asyncio.Event | None = None
        self.left = False

    async def __call__(
        self, stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncIterator[Json]:
        plot = await context.get_input_text()
        yield stream.emit_created()
        yield stream.emit_in_progress()
        for event in stream.output_item_message("Hello"):
            yield event
        if plot in ("stay", "ignore"):
            self.signal = signal
            try:
                await (signal.wait() if plot == "stay" else asyncio.Event().wait())
            finally:
                self.left = True
        match plot:
            case "failed":
                yield stream.emit_failed()
            case "incomplete":
                yield stream.emit_incomplete()
            case _:
                yield stream.emit_completed()


async def cancel(server: ApiServer, response_id: str) -> Any:
    return await server.client.post(f"/v1/responses/{response_id}/cancel")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", ENDINGS)
async def test_response_that_has_ended_is_not_cancelled(mode: str, status: str) -> None:
    """B12: that it ran in the foreground is what is said first; B14: what is not stored is not found."""
    async with serving(Actor()) as server:
        told = await ask(server, mode, input=status)
        assert told.response["status"] == status
        answer = await cancel(server, told.response["id"])
        if not MODES[mode].get("store", True):
            assert answer.status_code == 404
            return
        in_background = MODES[mode].get("background")
        expected = ENDINGS[status] if in_background else "Cannot cancel a synchronous response."
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["message"]) == (400, "invalid_request_error", expected)
        assert (await server.get(told.response["id"])).json() == told.response


@BACKGROUND
async def test_cancel_takes_the_output_and_stays_whatever_the_handler_says_then(mode: str) -> None:
    """B7, B3, V8: the handler hears of it, and completes all the same."""
    actor = Actor()
    async with serving(actor) as server:
        posted = asyncio.create_task(server.post(input="stay", **MODES[mode]))
        await until(lambda: actor.signal is not None)
        response_id = server.runs[0].response_id
        first = await cancel(server, response_id)
        assert first.status_code == 200
        assert (first.json()["status"], first.json()["output"], first.json()["error"]) == ("cancelled", [], None)
        await until(lambda: actor.left)
        assert server.runs[0].client_cancelled
        assert not server.runs[0].shutdown.is_set()
        answer = await posted
        again = await cancel(server, response_id)
        assert (again.status_code, again.json()) == (200, first.json())
        assert (await server.get(response_id)).json() == first.json()
        if mode == "C4":
            events = events_in(answer.content)
            assert (events[-1]["type"], events[-1]["response"]) == ("response.failed", first.json())
            assert (await server.get(response_id, stream="true")).content == answer.content


@BACKGROUND
async def test_cancel_does_not_wait_for_a_handler_that_takes_its_time(mode: str) -> None:
    """B11: it is answered at once, the stream ends at once, and after its grace the handler is ended."""
    actor = Actor()
    async with serving(actor) as server:
        posted = asyncio.create_task(server.post(input="ignore", **MODES[mode]))
        await until(lambda: actor.signal is not None)
        assert (await cancel(server, server.runs[0].response_id)).json()["status"] == "cancelled"
        await posted
        assert actor.signal is not None
        await until(actor.signal.is_set)
        assert not actor.left, "it was not given its grace"
        await until(lambda: actor.left)
    assert SETTINGS.cancel_grace < EngineSettings().cancel_grace == 10.0


async def test_response_that_nobody_runs_yet_is_cancelled_for_good() -> None:
    actor = Actor()
    async with serving(actor, settings=queued()) as server:
        response = (await server.post(input="completed", background=True)).json()
        assert response["status"] == "queued"
        assert (await cancel(server, response["id"])).json()["status"] == "cancelled"
        await server.run_messages()
        assert server.runs == []
        assert (await server.get(response["id"])).json()["status"] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_the_foreground_cancels_and_is_stored_as_such(stream: bool) -> None:
    """B17, with what the handler sees of it."""
    actor = Actor()
    async with serving(actor) as server:
        posted = asyncio.create_task(server.post(input="stay", stream=stream))
        await until(lambda: actor.signal is not None)
        posted.cancel()
        await until(lambda: actor.left)
        assert server.runs[0].client_cancelled
        assert not server.runs[0].shutdown.is_set()
        ended = await server.get_ended(server.runs[0].response_id)
        assert (ended["status"], ended["output"]) == ("cancelled", [])


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_what_is_not_stored_ends_the_handler_and_leaves_nothing(stream: bool) -> None:
    actor = Actor()
    async with serving(actor) as server:
        posted = asyncio.create_task(server.post(input="stay", stream=stream, store=False))
        await until(lambda: actor.signal is not None)
        posted.cancel()
        await until(lambda: actor.left)
        assert server.runs[0].client_cancelled
        assert server.storage.seam.total() == 0


@pytest.mark.parametrize("resilient", [True, False])
async def test_shutdown_is_no_cancel_until_a_client_cancels_too(resilient: bool) -> None:
    """§3: the two are told apart, and a client that cancels a run that has to leave is obeyed."""
    actor = Actor()
    options = ResponsesServerOptions(resilient_background=resilient, shutdown_grace_period_seconds=20)
    async with serving(actor, options=options) as server:
        response_id = (await server.post(input="stay", background=True)).json()["id"]
        await until(lambda: actor.signal is not None)
        draining = asyncio.create_task(server.engine.drain())
        context, signal = server.runs[0], actor.signal
        assert signal is not None
        await until(context.shutdown.is_set)
        assert (signal.is_set(), context.client_cancelled) == (False, False)
        assert (await server.get(response_id)).json()["status"] == "in_progress"
        assert (await cancel(server, response_id)).json()["status"] == "cancelled"
        await until(signal.is_set)
        assert (context.client_cancelled, context.shutdown.is_set()) == (True, True)
        await draining
        assert (await server.get(response_id)).json()["status"] == "cancelled"
