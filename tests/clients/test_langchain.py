"""`ChatOpenAI` of langchain-openai, unmodified, with the Responses API switched on."""

from typing import Any

import httpx2
import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.clients.judge import Judge
from tests.support.agents.versatile import ANSWER, CITATION, REFUSAL, SOURCE, THOUGHTS


class City(BaseModel):
    """A city."""

    name: str
    inhabitants: int


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


@pytest.fixture
def model(base_url: str, http_client: httpx2.AsyncClient) -> ChatOpenAI:
    return chat(base_url, http_async_client=http_client)


def chat(base_url: str, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="m", base_url=base_url, api_key=SecretStr("local"), use_responses_api=True, max_retries=0, **settings
    )


async def collected(model: Any, question: Any) -> AIMessageChunk:
    """All chunks of a streamed answer, added up as the framework adds them."""
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(question):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


def test_invoke_and_stream_without_asyncio_give_the_same_words(base_url: str) -> None:
    model = chat(base_url)
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage("Hello there")])
    assert answer.text == "You said: Hello there"
    assert answer.response_metadata["status"] == "completed"
    assert answer.response_metadata["id"].startswith("resp_")
    assert "".join(chunk.text for chunk in model.stream("Hello there")) == answer.text


async def test_the_chunks_add_up_to_the_whole_answer(model: ChatOpenAI) -> None:
    whole = await collected(model, "Hello there")
    assert whole.text == "You said: Hello there"
    assert whole.response_metadata["status"] == "completed"
    assert whole.chunk_position == "last"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_bound_tool_is_called_and_its_result_answered(model: ChatOpenAI, streamed: bool) -> None:
    bound = model.bind_tools([get_weather])
    question = HumanMessage("Rome")
    call: AIMessage = await collected(bound, [question]) if streamed else await bound.ainvoke([question])
    (wanted,) = call.tool_calls
    assert (wanted["name"], wanted["args"]) == ("get_weather", {"city": "Rome"})
    result = await get_weather.ainvoke(wanted)
    assert isinstance(result, ToolMessage)
    # The call goes back to the server with all that the framework kept of it.
    assert (await bound.ainvoke([question, call, result])).text == "21 degrees in Rome"


async def test_a_tool_that_is_not_to_be_called_is_not_called(model: ChatOpenAI) -> None:
    answer = await model.bind_tools([get_weather], tool_choice="none").ainvoke("Rome")
    assert answer.tool_calls == []
    assert answer.text == "You said: Rome"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("version", ["v0", "responses/v1", "v1"])
async def test_reasoning_annotations_and_usage_arrive_and_go_back_with_the_next_turn(
    base_url: str, http_client: httpx2.AsyncClient, version: str, streamed: bool
) -> None:
    model = chat(base_url, http_async_client=http_client, output_version=version)
    answer: AIMessage = await collected(model, "think") if streamed else await model.ainvoke("think")
    assert answer.text == "".join(ANSWER) + SOURCE
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 18
    assert answer.usage_metadata["input_token_details"]["cache_read"] == 4
    assert answer.usage_metadata["output_token_details"]["reasoning"] == 5
    blocks = answer.content_blocks
    thoughts = [block["reasoning"] for block in blocks if block["type"] == "reasoning" and "reasoning" in block]
    assert "".join(thoughts) == "".join(THOUGHTS)
    citations = [note for block in blocks if block["type"] == "text" for note in block.get("annotations", [])]
    assert [note.get("url") for note in citations] == [CITATION["url"]]
    again = await model.ainvoke([HumanMessage("think"), answer, HumanMessage("And now?")])
    assert again.text == "You said: And now?"


async def test_an_answer_of_a_type_arrives_as_that_type(model: ChatOpenAI) -> None:
    by_schema = model.with_structured_output(City, method="json_schema")
    by_function = model.with_structured_output(City, method="function_calling")
    for typed in (by_schema, by_function):
        assert await typed.ainvoke("Rome 2800000") == City(name="Rome 2800000", inhabitants=2800000)


async def test_the_server_keeps_the_turns_when_asked_to(
    base_url: str, http_client: httpx2.AsyncClient, judge: Judge
) -> None:
    model = chat(base_url, http_async_client=http_client, use_previous_response_id=True)
    first = await model.ainvoke([HumanMessage("One")])
    second = await model.ainvoke([HumanMessage("One"), first, HumanMessage("Two")])
    assert second.text == "You said: Two"
    before, after = judge.responses
    assert after["previous_response_id"] == before["id"] == first.response_metadata["id"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal_is_told_apart_from_text(model: ChatOpenAI, streamed: bool) -> None:
    answer: AIMessage = await collected(model, "decline") if streamed else await model.ainvoke("decline")
    assert answer.text == ""
    assert isinstance(answer.content, list)
    (block,) = answer.content
    assert isinstance(block, dict)
    assert (block["type"], block["refusal"]) == ("refusal", REFUSAL)


async def test_settings_of_the_model_are_echoed(base_url: str, http_client: httpx2.AsyncClient, judge: Judge) -> None:
    model = chat(
        base_url,
        http_async_client=http_client,
        temperature=0.5,
        max_tokens=100,
        extra_body={"metadata": {"k": "v"}},  # the framework keeps a `metadata` of its own for tracing
        store=False,
        reasoning={"effort": "low", "summary": "auto"},
        truncation="auto",
        service_tier="default",
    )
    await model.ainvoke("Hello")
    await collected(model, "Hello")
    for response in judge.responses:
        assert (response["temperature"], response["max_output_tokens"]) == (0.5, 100)
        assert (response["metadata"], response["store"], response["truncation"]) == ({"k": "v"}, False, "auto")
        assert (response["reasoning"]["effort"], response["reasoning"]["summary"]) == ("low", "auto")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refused_request_is_the_clients_own_error(model: ChatOpenAI, streamed: bool) -> None:
    async def ask(bound: Any) -> None:
        await (collected(bound, "Hello") if streamed else bound.ainvoke("Hello"))

    with pytest.raises(openai.BadRequestError, match="temperature"):
        await ask(model.bind(temperature=3))
    with pytest.raises(openai.NotFoundError) as caught:
        await ask(model.bind(previous_response_id="resp_" + "0" * 50))
    assert caught.value.code == "previous_response_not_found"


async def test_a_failed_response_is_an_error(model: ChatOpenAI) -> None:
    with pytest.raises(Exception, match="broken as asked"):
        await model.ainvoke("break")
