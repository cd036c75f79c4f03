"""`OpenAIResponsesModel` of pydantic-ai, unmodified: runs, streams, functions, typed answers, background."""

from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.judge import Judge
from tests.support.agents.versatile import ANSWER, SOURCE, THOUGHTS

ROME = "Rome 2800000"


class City(BaseModel):
    name: str
    inhabitants: int


@pytest.fixture
def model(openai_client: AsyncOpenAI) -> OpenAIResponsesModel:
    return OpenAIResponsesModel("m", provider=OpenAIProvider(openai_client=openai_client))


@pytest.fixture
def equipped(model: OpenAIResponsesModel) -> Agent:
    agent = Agent(model)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"21 degrees in {city}"

    return agent


async def test_a_run_ends_with_the_answer(model: OpenAIResponsesModel, judge: Judge) -> None:
    result = await Agent(model, instructions="Be brief.").run("Hello there")
    assert result.output == "You said: Hello there"
    assert result.response.finish_reason == "stop"
    (body,) = judge.responses
    assert result.response.provider_response_id == body["id"]


async def test_a_streamed_run_gives_every_word(model: OpenAIResponsesModel) -> None:
    async with Agent(model).run_stream("Hello there") as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == "You said: Hello there"
    assert len(pieces) > 1


async def test_a_function_is_called_and_its_result_answered(equipped: Agent) -> None:
    result = await equipped.run("Rome")
    assert result.output == "21 degrees in Rome"
    parts = [part for message in result.all_messages() if isinstance(message, ModelResponse) for part in message.parts]
    assert [type(part) for part in parts] == [ToolCallPart, TextPart]


async def test_a_streamed_run_calls_functions_too(equipped: Agent, judge: Judge) -> None:
    async with equipped.run_stream("Rome") as result:
        assert await result.get_output() == "21 degrees in Rome"
    assert len(judge.streams) == 2


@pytest.mark.parametrize("marker", [ToolOutput, NativeOutput])
async def test_an_answer_of_a_type_arrives_as_that_type(model: OpenAIResponsesModel, marker: Any) -> None:
    agent = Agent(model, output_type=marker(City))
    assert (await agent.run(ROME)).output == City(name=ROME, inhabitants=2800000)
    async with agent.run_stream(ROME) as streamed:
        assert await streamed.get_output() == City(name=ROME, inhabitants=2800000)


@pytest.mark.parametrize("streamed", [False, True])
async def test_reasoning_and_usage_arrive_and_go_back_with_the_next_turn(
    model: OpenAIResponsesModel, streamed: bool
) -> None:
    agent = Agent(model)
    if streamed:
        async with agent.run_stream("think") as running:
            await running.get_output()
        messages, usage = running.all_messages(), running.usage
    else:
        result = await agent.run("think")
        messages, usage = result.all_messages(), result.usage
    answer = messages[-1]
    assert isinstance(answer, ModelResponse)
    assert [part.content for part in answer.parts if isinstance(part, ThinkingPart)] == list(THOUGHTS)
    assert "".join(part.content for part in answer.parts if isinstance(part, TextPart)) == "".join(ANSWER) + SOURCE
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (11, 4, 7)
    assert usage.details["reasoning_tokens"] == 5
    again = await agent.run("And now?", message_history=messages)
    assert again.output == "You said: And now?"


async def test_the_server_keeps_the_turns_when_asked_to(equipped: Agent, judge: Judge) -> None:
    settings = OpenAIResponsesModelSettings(openai_previous_response_id="auto")
    first = await equipped.run("Rome", model_settings=settings)
    second = await equipped.run("Paris", message_history=first.all_messages(), model_settings=settings)
    assert second.output == "21 degrees in Paris"
    ids = [response["id"] for response in judge.responses]
    assert [response["previous_response_id"] for response in judge.responses] == [None, *ids[:-1]]


async def test_a_background_response_is_polled_to_its_end(model: OpenAIResponsesModel, judge: Judge) -> None:
    settings = OpenAIResponsesModelSettings(openai_background=True)
    result = await Agent(model).run("count to 3", model_settings=settings)
    assert result.output.split() == ["1", "2", "3"]
    assert judge.responses[0]["status"] in ("queued", "in_progress")
    assert judge.responses[-1]["status"] == "completed"
    assert len({response["id"] for response in judge.responses}) == 1


async def test_a_background_response_is_streamed_to_its_end(model: OpenAIResponsesModel) -> None:
    settings = OpenAIResponsesModelSettings(openai_background=True)
    async with Agent(model).run_stream("count to 3", model_settings=settings) as result:
        assert (await result.get_output()).split() == ["1", "2", "3"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refused_request_is_the_clients_own_error(model: OpenAIResponsesModel, streamed: bool) -> None:
    async def ask(settings: OpenAIResponsesModelSettings) -> None:
        if streamed:
            async with Agent(model).run_stream("Hello", model_settings=settings) as result:
                await result.get_output()
        else:
            await Agent(model).run("Hello", model_settings=settings)

    with pytest.raises(ModelHTTPError) as hot:
        await ask(OpenAIResponsesModelSettings(temperature=3))
    assert hot.value.status_code == 400
    assert "temperature" in str(hot.value.body)
    with pytest.raises(ModelHTTPError) as lost:
        await ask(OpenAIResponsesModelSettings(openai_previous_response_id="resp_" + "0" * 50))
    assert lost.value.status_code == 404
    assert "previous_response_not_found" in str(lost.value.body)
