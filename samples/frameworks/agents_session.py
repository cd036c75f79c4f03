"""An agent of the OpenAI Agents SDK, whose session is the conversation that this server keeps.

Run it: `RESPONSES_AGENT=samples.frameworks.agents_session:app make start`; with `OPENAI_API_KEY` and `OPENAI_MODEL` in
the environment that model answers, otherwise a script does.

A client sees the agent's messages, word by word, and its calls of tools together with what they gave: they are made
here, the client has nothing to do for them. It names the turn before by `previous_response_id` or a `conversation`.

The session reads the history and writes nothing: a turn's items are stored with its response, at the same moment as
its outcome, so that there is no second store to disagree with. In the background the tools' outputs are persisted as
they come; after a crash the agent goes on from them, and a tool whose output is persisted is not called again.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, cast

import agents
from agents.items import ModelResponse, TResponseInputItem, TResponseStreamEvent
from agents.memory import Session, SessionSettings
from pydantic import TypeAdapter

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

TEMPERATURES = {"Turin": 21, "Rome": 27, "Oslo": 9}

app = ResponsesApp(ResponsesServerOptions(resilient_background=True))


class ConversationSession(Session):
    """A session of the SDK over the earlier turns of a response."""

    def __init__(self, context: ResponseContext) -> None:
        self.session_id = context.conversation_chain_id
        self.session_settings: SessionSettings | None = None
        self._context = context

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items of the earlier turns, oldest first; the newest `limit` of them."""
        items = for_the_model(await self._context.get_history())
        return items if limit is None else items[max(0, len(items) - limit) :]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Nothing: they are stored with the response."""

    async def pop_item(self) -> TResponseInputItem | None:
        """Nothing: a stored response is not changed."""
        return None

    async def clear_session(self) -> None:
        """Nothing: a client that wants to forget begins another conversation."""


@agents.function_tool
def get_temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{TEMPERATURES[city]} degrees" if city in TEMPERATURES else "unknown"


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Let the agent work, from where it was persisted."""
    if context.persisted_response is None:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
    else:
        stream = ResponseEventStream(response=context.persisted_response)
    yield stream.emit_created()
    yield stream.emit_in_progress()

    agent = agents.Agent(
        name="Weather",
        instructions=request.get("instructions") or "Tell the temperature.",
        model=os.environ.get("OPENAI_MODEL") or Script(),
        tools=[get_temperature],
    )
    run = agents.Runner.run_streamed(
        agent,
        for_the_model([*await context.get_input_items(), *stream.response["output"]]),
        session=ConversationSession(context),
        run_config=agents.RunConfig(tracing_disabled=True),
    )
    translation = Translation(stream)
    try:
        async for happened in run.stream_events():
            for event in translation.events(happened):
                yield event
            if cancellation_signal.is_set():
                yield stream.emit_incomplete()
                return
            if context.shutdown.is_set():
                with suppress(RuntimeError):  # in the foreground: hurry up instead
                    await context.exit_for_recovery()
    finally:
        run.cancel()  # the agent works in a task of its own
    yield stream.emit_completed()


class Translation:
    """What happens in a run of the SDK, in this server's events."""

    def __init__(self, stream: ResponseEventStream) -> None:
        self._stream = stream
        self._message: Any = None
        self._text: Any = None
        self._calls_without_output = 0

    def events(self, happened: agents.StreamEvent) -> Iterator[dict[str, Any]]:
        """The events to yield now."""
        if happened.type == "raw_response_event":
            yield from self._of_the_model(happened.data)
        elif happened.type == "run_item_stream_event" and happened.name == "tool_called":
            call: Any = happened.item.raw_item
            self._calls_without_output += 1
            yield from self._stream.output_item_function_call(call.name, call.call_id, call.arguments)
        elif happened.type == "run_item_stream_event" and happened.name == "tool_output":
            given: Any = happened.item.raw_item
            self._calls_without_output -= 1
            yield from self._stream.output_item_function_call_output(given["call_id"], given["output"])
            # No model takes a call without its output, so what is persisted has all of them.
            if self._calls_without_output == 0:
                yield self._stream.checkpoint()

    def _of_the_model(self, data: TResponseStreamEvent) -> Iterator[dict[str, Any]]:
        """The messages, as they come."""
        if data.type == "response.output_item.added" and data.item.type == "message":
            self._message = self._stream.add_output_item_message()
            yield self._message.emit_added()
        elif data.type == "response.content_part.added" and data.part.type == "output_text":
            self._text = self._message.add_text_content()
            yield self._text.emit_added()
        elif data.type == "response.output_text.delta":
            yield self._text.emit_delta(data.delta)
        elif data.type == "response.content_part.done" and data.part.type == "output_text":
            yield self._text.emit_text_done()
            yield self._text.emit_done()
        elif data.type == "response.output_item.done" and data.item.type == "message":
            yield self._message.emit_done()


def for_the_model(items: list[dict[str, Any]]) -> list[TResponseInputItem]:
    """Items as a model takes them: without what only this server knows of them."""
    ours = ("id", "status", "response_id", "agent_reference")
    return [cast("TResponseInputItem", {key: item[key] for key in item if key not in ours}) for item in items]


class Script(agents.Model):
    """In place of a model: asks for the temperature in each city that it knows, one by one, and tells what it heard."""

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Not used: the runs of this sample are streamed."""
        raise NotImplementedError

    async def stream_response(
        self, system_instructions: str | None, input: str | list[TResponseInputItem], *args: Any, **kwargs: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        """The events of one answer; this server's builders make them as well."""
        given: list[Any] = list(input)
        asked = [number for number, item in enumerate(given) if item.get("role") == "user"]
        turn = given[asked[-1] :] if asked else []
        cities = [city for city in TEMPERATURES if city in str(turn[:1])]
        heard = [item["output"] for item in turn if item.get("type") == "function_call_output"]

        stream = ResponseEventStream(response_id="resp_script", model="script")
        events = [stream.emit_created(), stream.emit_in_progress()]
        if len(heard) < len(cities):
            arguments = json.dumps({"city": cities[len(heard)]})
            events += stream.output_item_function_call("get_temperature", f"call_{len(given)}", arguments)
        else:
            sentences = [f" {city}: {output}." for city, output in zip(cities, heard, strict=True)]
            events += stream.output_item_message([f"Question {len(asked)}.", *sentences])
        events.append(stream.emit_completed())
        for event in events:
            yield EVENT.validate_python(event)


EVENT: TypeAdapter[TResponseStreamEvent] = TypeAdapter(TResponseStreamEvent)
"""Makes the SDK's typed events of plain ones."""
