"""What clients send, what handlers say, and keys, stand in no log record: in no mode, and in no error."""

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import pytest

from api.keys import ApiKeys, hash_of
from api.settings import ApiSettings
from protocol import ids
from resilience import ResponseContext, ResponseEventStream
from storage.seam import Fault
from tests.support.api_server import ApiServer, serving, until

LOGGED = logging.INFO
"""One level lower than what `host.json` lets through."""

CANARIES = {
    name: f"canary-{name}-7f3a"
    for name in (
        "key",
        "wrong",
        "prompt",
        "output",
        "metadata",
        "instructions",
        "header",
        "query",
        "idempotency",
        "tool",
    )
}
API = ApiSettings(access=ApiKeys.parse(f"ann:{hash_of(CANARIES['key'])}"), max_body_bytes=20_000)
MODES: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"store": False},
    {"store": False, "stream": True},
    {"background": True},
    {"background": True, "stream": True},
]
DEEDS = (
    "speak",
    "raise",
    "raise-late",
    "refuse",
    "invalid",
    "not-json",
    "out-of-order",
    "odd-type",
    "odd-item",
    "nothing",
    "fail",
)


class HandlerFailed(Exception):
    """The handler failed."""


async def script(
    stream: ResponseEventStream, context: ResponseContext, signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Do what the model's name says, with a canary in every word."""
    deed = str(context.request.get("model"))
    said = CANARIES["output"]
    if deed == "raise":
        raise HandlerFailed
    if deed == "refuse":
        raise ValueError("refused")
    yield stream.emit_created()
    yield stream.emit_in_progress()
    for event in stream.output_item_message(said):
        yield event
    if deed == "raise-late":
        raise HandlerFailed
    if deed == "invalid":
        yield {"type": "response.no_such_event", "text": said}
    if deed == "not-json":
        yield {"type": "response.output_text.delta", "delta": {said}}
    if deed == "out-of-order":
        yield {"type": "response.output_text.delta", "item_id": said, "output_index": 7, "delta": said}
    if deed == "odd-item":
        yield {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message", "content": said}}
    if deed == "fail":
        yield stream.emit_failed(code="server_error", message=said)
    if deed in ("speak", "wait"):
        if deed == "wait":
            await signal.wait()
        yield stream.emit_completed()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """All that the process would write to its log, tracebacks included."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    handler.addFilter(lambda record: not record.name.startswith("httpx"))  # the client, which logs what it asks
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(LOGGED)
    try:
        yield written
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def asked(deed: str, **flags: Any) -> dict[str, Any]:
    return {
        "model": deed,
        "input": [
            {"role": "user", "content": CANARIES["prompt"]},
            {"type": "function_call_output", "call_id": "c", "output": CANARIES["tool"]},
        ],
        "metadata": {"note": CANARIES["metadata"]},
        "instructions": CANARIES["instructions"],
        **flags,
    }


async def send(server: ApiServer, body: Any, *, key: str = CANARIES["key"], number: int = 0) -> str:
    """Post, and the id of what was made, if anything was."""
    headers = {
        "authorization": f"Bearer {key}",
        "x-client-note": CANARIES["header"],
    }
    if not (isinstance(body, dict) and body.get("background")):  # with a key it would wait for the queue function
        headers["idempotency-key"] = f"{CANARIES['idempotency']}-{number}"
    query = {"note": CANARIES["query"]}
    answer = await server.client.post("/v1/responses", json=body, headers=headers, params=query)
    made = answer.json() if answer.headers["content-type"] == "application/json" else {}
    return str(made.get("id", ""))


def found_in(text: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary in text or hash_of(canary) in text]


async def test_no_canary_is_logged_in_any_mode_whatever_the_handler_does(logged: io.StringIO) -> None:
    number = 0
    async with serving(script, api=API) as server:
        for deed in DEEDS:
            for flags in MODES:
                await send(server, asked(deed, **flags), number=(number := number + 1))
        await until(lambda: not server.engine.runtime.running)
        key = {"authorization": f"Bearer {CANARIES['key']}"}
        running = await send(server, asked("wait", background=True, stream=False), number=number + 1)
        for method, path in (
            ("GET", running),
            ("GET", f"{running}/input_items"),
            ("DELETE", running),
            ("POST", f"{running}/cancel"),
            ("GET", f"{running}?stream=true"),
            ("GET", CANARIES["query"]),
        ):
            await server.client.request(method, f"/v1/responses/{path}", headers=key)
        server.judge.check()
    text = logged.getvalue()
    assert "HandlerFailed" in text, "the log was not read: nothing is proven"
    assert found_in(text) == [], text


REFUSED: list[Any] = [
    CANARIES["prompt"],
    [CANARIES["prompt"]],
    {"input": {"text": CANARIES["prompt"]}},
    {"input": [{"role": CANARIES["prompt"], "content": 1}]},
    {"input": "x", "temperature": CANARIES["prompt"]},
    {"input": "x", "metadata": {CANARIES["metadata"] * 10: "x"}},
    {"input": "x", "previous_response_id": CANARIES["prompt"]},
    {"input": "x", "previous_response_id": ids.new_response_id(ids.new_partition())},
    {"input": "x", "conversation_id": CANARIES["prompt"]},
    {"input": CANARIES["prompt"] * 2_000},
    {"input": CANARIES["prompt"], "store": False, "background": True},
]


async def test_no_canary_is_logged_of_what_is_refused(logged: io.StringIO) -> None:
    async with serving(script, api=API) as server:
        for number, body in enumerate(REFUSED):
            assert await send(server, body, number=number) == ""
        for wrong in (CANARIES["wrong"], f"{CANARIES['wrong']} {CANARIES['key']}"):
            assert await send(server, asked("speak"), key=wrong) == ""
        answer = await server.client.post(
            "/v1/responses",
            content=b'{"input": "' + CANARIES["prompt"].encode(),
            headers={"authorization": f"Bearer {CANARIES['key']}"},
        )
        assert answer.status_code == 400
    assert found_in(logged.getvalue()) == [], logged.getvalue()


@pytest.mark.parametrize("operation", ["row.*", "log.*", "ledger.*", "queue.*", "key.*", "payload.*"])
async def test_no_canary_is_logged_when_storage_fails(operation: str, logged: io.StringIO) -> None:
    settings = ApiSettings(access=API.access)
    async with serving(script, api=settings) as server:
        for number, flags in enumerate(MODES):
            body = asked("speak", **flags)
            body["input"][0]["content"] = CANARIES["prompt"] * 3_000  # large enough for a payload of its own
            for kind in ("before", "after"):
                away = server.storage.seam.inject(Fault(operation=operation, kind=kind, times=2))
                await send(server, body, number=10 * number + (kind == "after"))
                away.remove()
        await until(lambda: not server.engine.runtime.running, 20)
    assert found_in(logged.getvalue()) == [], logged.getvalue()


def test_a_canary_that_is_logged_is_found(logged: io.StringIO) -> None:
    def raising() -> AsyncIterator[Any]:
        raise HandlerFailed(CANARIES["output"])

    logging.getLogger("api").info("%s", {"input": CANARIES["prompt"]})
    try:
        raising()
    except HandlerFailed:
        logging.getLogger("resilience.run").exception("it failed")
    assert found_in(logged.getvalue()) == ["prompt", "output"]
