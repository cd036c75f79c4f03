"""The official Python client's `conversations`, unmodified, against a real host; items strictly of its types."""

from collections.abc import AsyncIterator
from typing import Any, get_args

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.conversations import (
    Conversation,
    ConversationDeletedResource,
    ConversationItem,
    ConversationItemList,
    Message,
)
from openai.types.responses import CompactedResponse
from pydantic import BaseModel


def strict(model: BaseModel) -> None:
    """Assert that what came is of the client's type, not only made into it."""
    type(model).model_validate(model.model_dump(mode="json", exclude_unset=True), strict=True)


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base_url, api_key="local", max_retries=0) as made:
        yield made


def text_of(item: Any) -> str:
    assert isinstance(item, Message)
    return str(item.content[0].text)  # type: ignore[union-attr]


async def test_a_conversation_is_made_changed_and_deleted(client: AsyncOpenAI) -> None:
    made = await client.conversations.create(metadata={"topic": "demo"})
    strict(made)
    assert await client.conversations.retrieve(made.id) == made
    changed = await client.conversations.update(made.id, metadata={"topic": "other"})
    assert isinstance(changed, Conversation)
    assert changed.metadata == {"topic": "other"}
    gone = await client.conversations.delete(made.id)
    assert isinstance(gone, ConversationDeletedResource)
    strict(gone)
    for call in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError):
            await call(made.id)
    with pytest.raises(openai.NotFoundError) as refused:
        await client.responses.create(model="m", input="Hello", conversation=made.id)
    assert refused.value.param == "conversation"


async def test_items_are_put_in_listed_read_and_taken_out(client: AsyncOpenAI) -> None:
    made = await client.conversations.create(items=[{"type": "message", "role": "user", "content": "first"}])
    put: Any = [{"role": "user" if number % 2 else "assistant", "content": f"{number}"} for number in range(20)]
    page = await client.conversations.items.create(made.id, items=put)
    assert isinstance(page, ConversationItemList)
    strict(page)
    assert [text_of(item) for item in page.data] == [str(number) for number in range(20)]
    forwards = [item async for item in client.conversations.items.list(made.id, order="asc", limit=6)]
    assert [text_of(item) for item in forwards] == ["first", *(str(number) for number in range(20))]
    backwards = [item async for item in client.conversations.items.list(made.id)]
    assert backwards == forwards[::-1]
    assert forwards[3].id
    one = await client.conversations.items.retrieve(forwards[3].id, conversation_id=made.id)
    assert one == forwards[3]
    strict(one)
    assert (await client.conversations.items.delete(forwards[3].id, conversation_id=made.id)).id == made.id
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(forwards[3].id, conversation_id=made.id)
    with pytest.raises(openai.BadRequestError):
        await client.conversations.items.create(made.id, items=put * 2)


async def test_turns_of_a_conversation_add_what_they_were_asked_and_answered(client: AsyncOpenAI) -> None:
    made = await client.conversations.create()
    first = await client.responses.create(model="m", input="Hello there", conversation=made.id)
    await client.conversations.items.create(made.id, items=[{"role": "developer", "content": "Be brief."}])
    events = [
        event
        async for event in await client.responses.create(
            model="m", input="think", conversation=made.id, background=True, stream=True
        )
    ]
    assert events[-1].type == "response.completed"
    items = [item async for item in client.conversations.items.list(made.id, order="asc")]
    assert [item.type for item in items] == ["message", "message", "message", "message", "reasoning", "message"]
    assert items[1].id == first.output[0].id
    for item in items:
        strict(item)
        assert type(item) in get_args(get_args(ConversationItem)[0])


async def test_a_conversation_of_the_clients_own_naming_can_be_read(client: AsyncOpenAI) -> None:
    await client.responses.create(model="m", input="Hello", conversation="the-clients-own-name")
    made = await client.conversations.retrieve("the-clients-own-name")
    strict(made)
    assert len([item async for item in client.conversations.items.list(made.id)]) == 2


async def test_tokens_are_counted_and_history_is_compacted(client: AsyncOpenAI) -> None:
    counted = await client.responses.input_tokens.count(model="m", input="x" * 400)
    strict(counted)
    assert counted.input_tokens == 100
    first = await client.responses.create(model="m", input="My name is Ada")
    raw = await client.responses.with_raw_response.compact(model="m", previous_response_id=first.id, input="And now?")
    compacted = raw.parse()
    assert isinstance(compacted, CompactedResponse)
    assert [item.type for item in compacted.output] == ["compaction", "message"]
    # The package's type of an output message does not know what a user's message holds: so the JSON goes back.
    given = raw.http_response.json()["output"]
    again = await client.responses.create(model="m", input=given)
    assert again.status == "completed"
    listed = [item async for item in client.responses.input_items.list(again.id, order="asc")]
    assert [item.type for item in listed] == ["message"] * 3
