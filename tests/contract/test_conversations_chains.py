"""Chains as a client of HTTP meets them: locked, queued, forked, full, refused, and found under one key (§4, I1)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from resilience import ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions
from tests.contract.modes import MODES, STORED, ask
from tests.support.api_server import ApiServer, events_in, serving, until

type Json = dict[str, Any]

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
BACKGROUND = pytest.mark.parametrize("mode", ["C3", "C4"])


class Talker:
    """Says what it was asked; `hold` waits for its signal or the end of the test."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.heard: list[str] = []

    async def __call__(
        self, stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncIterator[Json]:
        text = await context.get_input_text()
        self.heard.append(text)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        if text == "hold":
            waits = {asyncio.ensure_future(event.wait()) for event in (signal, self.go_on)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in waits:
                each.cancel()
        for event in stream.output_item_message(f"{text}, steered: {context.is_steered_turn}"):
            yield event
        yield stream.emit_completed()


def error_of(answer: httpx.Response) -> tuple[int, str, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["code"], error["param"]


async def hold(server: ApiServer, talker: Talker, **body: Any) -> str:
    """The id of a background turn that runs until its signal is set, or the talker may go on."""
    answer = await server.post(input="hold", background=True, **body)
    await until(lambda: "hold" in talker.heard)
    return str(answer.json()["id"])


@STORED
async def test_a_second_turn_is_told_that_the_conversation_is_locked(mode: str) -> None:
    """S2."""
    talker = Talker()
    async with serving(talker) as server:
        first = await hold(server, talker, conversation="conv_a")
        answer = await server.post(input="Hello", conversation="conv_a", **MODES[mode])
        assert error_of(answer) == (409, "invalid_request_error", "conversation_locked", "conversation")
        talker.go_on.set()
        await server.get_ended(first)
        told = await ask(server, mode, conversation={"id": "conv_a"})
        assert told.response["status"] == "completed"
        assert told.response["conversation"] == {"id": "conv_a"}
        assert talker.heard == ["hold", "Hello"]


@BACKGROUND
async def test_a_steered_turn_is_answered_at_once_and_runs_afterwards(mode: str) -> None:
    """S3."""
    talker = Talker()
    async with serving(talker, options=STEERABLE) as server:
        first = await hold(server, talker)
        answer = await server.post(input="next", previous_response_id=first, **MODES[mode])
        assert answer.status_code == 200
        if mode == "C3":
            assert (answer.json()["status"], answer.json()["output"]) == ("queued", [])
            final = await server.get_ended(answer.json()["id"])
        else:
            final = events_in(answer.content)[-1]["response"]
        assert final["output"][0]["content"][0]["text"] == "next, steered: True"
        assert final["previous_response_id"] == first
        assert (await server.get_ended(first))["status"] == "completed"


@pytest.mark.parametrize("mode", ["C1", "C2"])
async def test_a_steered_foreground_turn_is_answered_when_it_has_run(mode: str) -> None:
    talker = Talker()
    async with serving(talker, options=STEERABLE) as server:
        first = await hold(server, talker)
        told = await ask(server, mode, input="next", previous_response_id=first)
        assert told.response["output"][0]["content"][0]["text"] == "next, steered: True"
        assert talker.heard == ["hold", "next"]


@STORED
async def test_a_fork_is_refused_where_chains_are_steerable(mode: str) -> None:
    """S4."""
    async with serving(Talker(), options=STEERABLE) as server:
        first = (await ask(server, mode)).response["id"]
        last = (await ask(server, mode, previous_response_id=first)).response["id"]
        answer = await server.post(input="fork", previous_response_id=first, **MODES[mode])
        expected = (409, "invalid_request_error", "conversation_fork_not_supported", "previous_response_id")
        assert error_of(answer) == expected
        assert (await ask(server, mode, previous_response_id=last)).response["status"] == "completed"


@STORED
async def test_forks_are_welcome_where_chains_are_not_steerable(mode: str) -> None:
    async with serving(Talker()) as server:
        first = (await ask(server, mode)).response["id"]
        told = await asyncio.gather(*(ask(server, mode, previous_response_id=first) for _ in range(3)))
        assert [each.response["status"] for each in told] == ["completed"] * 3


async def test_the_tenth_turn_that_would_wait_is_told_that_the_queue_is_full() -> None:
    """S5."""
    talker = Talker()
    async with serving(_stubborn(talker), options=STEERABLE) as server:
        first = await hold(server, talker, conversation="conv_a")
        queued = [(await server.post(input=f"{n}", conversation="conv_a", background=True)).json() for n in range(9)]
        assert [each["status"] for each in queued] == ["queued"] * 9
        answer = await server.post(input="too many", conversation="conv_a")
        assert error_of(answer)[::2] == (409, "conversation_queue_full")
        talker.go_on.set()
        await server.get_ended(queued[-1]["id"])
        assert (await server.get(first)).json()["status"] == "completed"
        assert talker.heard == ["hold", *(f"{n}" for n in range(9))]


def _stubborn(talker: Talker) -> Any:
    async def script(
        stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
    ) -> AsyncIterator[Json]:
        async for event in talker(stream, context, asyncio.Event()):
            yield event

    return script


@STORED
async def test_an_unknown_predecessor_is_not_found(mode: str) -> None:
    """S6, W8."""
    talker = Talker()
    async with serving(talker, options=STEERABLE) as server:
        known = (await ask(server, "C1")).response["id"]
        unknown = known[:-1] + ("a" if known[-1] != "a" else "b")
        answer = await server.post(input="next", previous_response_id=unknown, **MODES[mode])
        expected = (404, "invalid_request_error", "previous_response_not_found", "previous_response_id")
        assert error_of(answer) == expected
        assert "next" not in talker.heard


async def test_a_foreground_turn_in_flight_is_not_found_by_anybody() -> None:
    """B16."""
    talker = Talker()
    async with serving(talker, options=STEERABLE) as server:
        call = asyncio.create_task(server.post(input="hold", conversation="conv_a"))
        await until(lambda: "hold" in talker.heard)
        response_id = server.runs[0].response_id
        one = f"/v1/responses/{response_id}"
        for method, path in (("GET", one), ("POST", f"{one}/cancel"), ("DELETE", one), ("GET", f"{one}/input_items")):
            assert (await server.client.request(method, path)).status_code == 404, path
        talker.go_on.set()
        answer = await call
        assert (await server.get(response_id)).json() == answer.json()


@pytest.mark.parametrize(("error", "status"), [(ValueError("not now"), 400), (RuntimeError("secret"), 500)])
async def test_what_the_acceptor_refuses_is_refused(error: Exception, status: int) -> None:
    talker = Talker()
    app = _accepting(talker, error)
    async with serving(app=app) as server:
        first = (await server.post(input="hold", background=True, conversation="conv_a")).json()["id"]
        await until(lambda: "hold" in talker.heard)
        answer = await server.post(input="next", background=True, conversation="conv_a")
        assert answer.status_code == status
        assert ("not now" in answer.text, "secret" in answer.text) == (status == 400, False)
        talker.go_on.set()
        assert (await server.get_ended(first))["status"] == "completed"
        assert (await ask(server, "C1", conversation="conv_a")).response["status"] == "completed"
        assert talker.heard == ["hold", "Hello"]


async def test_what_the_acceptor_says_is_the_answer() -> None:
    talker = Talker()
    async with serving(app=_accepting(talker, {"metadata": {"place": "1"}})) as server:
        await server.post(input="hold", background=True, conversation="conv_a")
        await until(lambda: "hold" in talker.heard)
        answer = await server.post(input="next", background=True, conversation="conv_a")
        assert (answer.json()["status"], answer.json()["metadata"]) == ("queued", {"place": "1"})
        assert (await server.get_ended(answer.json()["id"]))["status"] == "completed"


def _accepting(talker: Talker, outcome: Any) -> ResponsesApp:
    app = ResponsesApp(STEERABLE)

    @app.response_handler
    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncIterator[Json]:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        # It goes on although it was told: the turn behind it stays queued.
        async for event in talker(stream, context, signal if isinstance(outcome, dict) else asyncio.Event()):
            yield event

    @app.response_acceptor
    async def acceptor(request: Any, context: ResponseContext) -> Json:
        if isinstance(outcome, Exception):
            raise outcome
        return dict(outcome)

    return app


@pytest.mark.parametrize("mode", ["C1", "C3"])
async def test_one_key_is_one_turn_and_a_refused_one_gives_it_back(mode: str) -> None:
    """I1."""
    talker = Talker()
    async with serving(talker) as server:
        body = {"input": "Hello", "conversation": "conv_a", **MODES[mode]}
        first = await hold(server, talker, conversation="conv_a")

        async def send() -> httpx.Response:
            return await server.client.post("/v1/responses", json=body, headers={"Idempotency-Key": "k"})

        assert error_of(await send())[2] == "conversation_locked"
        talker.go_on.set()
        await server.get_ended(first)
        answers = await asyncio.gather(send(), send())
        assert answers[0].json()["id"] == answers[1].json()["id"]
        await server.run_messages()
        await server.get_ended(answers[0].json()["id"])
        assert talker.heard == ["hold", "Hello"]


async def test_after_the_last_turn_was_deleted_the_chain_goes_on_from_the_one_before() -> None:
    async with serving(Talker(), options=STEERABLE) as server:
        first = (await ask(server, "C1")).response["id"]
        last = (await ask(server, "C3", previous_response_id=first)).response["id"]
        assert (await server.client.delete(f"/v1/responses/{last}")).json()["deleted"] is True
        answer = await server.post(input="next", previous_response_id=last)
        assert error_of(answer)[2] == "previous_response_not_found"
        assert (await ask(server, "C1", previous_response_id=first)).response["status"] == "completed"
