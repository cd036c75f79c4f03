"""The Agents SDK, unmodified: its runner over this server, with functions, turns, typed answers and streams."""

import agents
import pytest
from agents import (
    Agent,
    ItemHelpers,
    MessageOutputItem,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    ReasoningItem,
    RunConfig,
    Runner,
    ToolCallItem,
    ToolCallOutputItem,
)
from agents.exceptions import MaxTurnsExceeded
from openai import APIStatusError, AsyncOpenAI, NotFoundError
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

from tests.clients.judge import Judge
from tests.support.agents.versatile import ANSWER, SOURCE, THOUGHTS

CONFIG = RunConfig(tracing_disabled=True)


class City(BaseModel):
    name: str
    inhabitants: int


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


@pytest.fixture
def model(openai_client: AsyncOpenAI) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(model="m", openai_client=openai_client)


@pytest.fixture
def plain(model: OpenAIResponsesModel) -> Agent:
    return Agent(name="Plain", instructions="Be brief.", model=model)


@pytest.fixture
def equipped(model: OpenAIResponsesModel) -> Agent:
    return Agent(name="Equipped", instructions="Look it up.", model=model, tools=[get_weather])


async def test_a_run_ends_with_the_answer(plain: Agent, judge: Judge) -> None:
    result = await Runner.run(plain, "Hello there", run_config=CONFIG)
    assert result.final_output == "You said: Hello there"
    assert result.last_response_id
    (body,) = judge.responses
    assert body["instructions"] == "Be brief."


async def test_a_function_is_called_and_its_result_answered(equipped: Agent) -> None:
    result = await Runner.run(equipped, "Rome", run_config=CONFIG)
    assert result.final_output == "21 degrees in Rome"
    assert [type(item) for item in result.new_items] == [ToolCallItem, ToolCallOutputItem, MessageOutputItem]
    assert len(result.raw_responses) == 2


async def test_a_streamed_run_shows_every_step_and_every_word(equipped: Agent, judge: Judge) -> None:
    result = Runner.run_streamed(equipped, "Rome", run_config=CONFIG)
    deltas, items = "", []
    async for event in result.stream_events():
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
            deltas += event.data.delta
        elif event.type == "run_item_stream_event":
            items.append(event.name)
    assert deltas == result.final_output == "21 degrees in Rome"
    assert items == ["tool_called", "tool_output", "message_output_created"]
    assert len(judge.streams) == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_of_a_type_arrives_as_that_type(model: OpenAIResponsesModel, streamed: bool) -> None:
    agent = Agent(name="Typed", model=model, output_type=City)
    if streamed:
        run = Runner.run_streamed(agent, "Rome 2800000", run_config=CONFIG)
        async for _ in run.stream_events():
            pass
        assert run.final_output == City(name="Rome 2800000", inhabitants=2800000)
    else:
        result = await Runner.run(agent, "Rome 2800000", run_config=CONFIG)
        assert result.final_output_as(City, raise_if_incorrect_type=True) == City(
            name="Rome 2800000", inhabitants=2800000
        )
        assert result.context_wrapper.usage.total_tokens == 18
        assert result.context_wrapper.usage.input_tokens_details.cached_tokens == 4


@pytest.mark.parametrize("streamed", [False, True])
async def test_reasoning_comes_before_the_message_and_goes_back_with_the_next_turn(
    plain: Agent, streamed: bool
) -> None:
    first = (
        Runner.run_streamed(plain, "think", run_config=CONFIG)
        if streamed
        else await Runner.run(plain, "think", run_config=CONFIG)
    )
    if not isinstance(first, agents.RunResult):
        async for _ in first.stream_events():
            pass
    reasoning, message = first.new_items
    assert isinstance(reasoning, ReasoningItem)
    assert isinstance(message, MessageOutputItem)
    assert [part.text for part in reasoning.raw_item.summary] == list(THOUGHTS)
    assert reasoning.raw_item.encrypted_content == "c2VhbGVk"
    assert ItemHelpers.text_message_output(message) == "".join(ANSWER) + SOURCE
    # The client sends back what it got, word for word: the items have to be acceptable as input.
    again = await Runner.run(
        plain, [*first.to_input_list(), {"role": "user", "content": "And now?"}], run_config=CONFIG
    )
    assert again.final_output == "You said: And now?"


async def test_the_server_keeps_the_turns_when_asked_to(equipped: Agent, judge: Judge) -> None:
    first = await Runner.run(equipped, "Rome", auto_previous_response_id=True, run_config=CONFIG)
    second = await Runner.run(
        equipped,
        "Paris",
        previous_response_id=first.last_response_id,
        auto_previous_response_id=True,
        run_config=CONFIG,
    )
    assert second.final_output == "21 degrees in Paris"
    ids = [response["id"] for response in judge.responses]
    assert [response["previous_response_id"] for response in judge.responses] == [None, *ids[:-1]]


async def test_a_conversation_id_joins_runs(plain: Agent, judge: Judge) -> None:
    for text in ("One", "Two"):
        await Runner.run(plain, text, conversation_id="conv_of_the_agents_sdk", run_config=CONFIG)
    assert [response["conversation"] for response in judge.responses] == [{"id": "conv_of_the_agents_sdk"}] * 2


async def test_a_session_keeps_the_conversation_on_the_server(equipped: Agent, base_url: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="local", max_retries=0) as client:
        session = OpenAIConversationsSession(openai_client=client)
        first = await Runner.run(equipped, "Rome", session=session, run_config=CONFIG)
        assert first.final_output == "21 degrees in Rome"
        await Runner.run(equipped, "Paris", session=session, run_config=CONFIG)
        items = await session.get_items()
        kinds = ["message", "function_call", "function_call_output", "message"] * 2
        assert [item.get("type") for item in items] == kinds
        assert await session.get_items(limit=3) == items[-3:]
        assert await session.pop_item() == items[-1]
        assert await session.get_items() == items[:-1]
        await session.add_items([{"role": "user", "content": f"{number}"} for number in range(45)])
        assert len(await session.get_items()) == 7 + 45
        conversation = session.session_id
        await session.clear_session()
        with pytest.raises(NotFoundError):
            await client.conversations.retrieve(conversation)


async def test_settings_of_the_model_are_echoed(model: OpenAIResponsesModel, judge: Judge) -> None:
    settings = ModelSettings(
        temperature=0.5, max_tokens=100, metadata={"k": "v"}, store=False, parallel_tool_calls=False, truncation="auto"
    )
    agent = Agent(name="Set", model=model, model_settings=settings, tools=[get_weather])
    await Runner.run(agent, "Rome", run_config=CONFIG)
    for response in judge.responses:
        assert response["temperature"] == 0.5
        assert response["max_output_tokens"] == 100
        assert response["metadata"] == {"k": "v"}
        assert response["store"] is False
        assert response["parallel_tool_calls"] is False
        assert response["truncation"] == "auto"
        assert response["tools"][0]["strict"] is True


async def test_an_endless_loop_of_calls_ends_at_the_limit(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="Stubborn", model=model, tools=[get_weather], reset_tool_choice=False)
    with pytest.raises(MaxTurnsExceeded):
        await Runner.run(agent, "Rome", max_turns=1, run_config=CONFIG)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_unknown_predecessor_is_the_clients_own_error(plain: Agent, streamed: bool) -> None:
    unknown = "resp_" + "0" * 50

    async def ask() -> None:
        if streamed:
            run = Runner.run_streamed(plain, "Hello", previous_response_id=unknown, run_config=CONFIG)
            async for _ in run.stream_events():
                pass
        else:
            await Runner.run(plain, "Hello", previous_response_id=unknown, run_config=CONFIG)

    with pytest.raises(APIStatusError) as caught:
        await ask()
    assert caught.value.status_code == 404
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


async def test_a_setting_out_of_range_is_the_clients_own_error(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="Hot", model=model, model_settings=ModelSettings(temperature=3))
    with pytest.raises(APIStatusError, match="temperature") as caught:
        await Runner.run(agent, "Hello", run_config=CONFIG)
    assert caught.value.status_code == 400
