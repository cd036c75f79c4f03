"""The rows of a conversation, on the twin and on the emulator: every write is fenced by the chain."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from storage.chains import CHAIN_ROW, ChainRow
from storage.connection import Storage
from storage.conversations import CONVERSATION_ROW, ConversationRow, Conversations, ItemBatch, batch_key, gone_key
from storage.driver import PAYLOADS, RESPONSES, Insert, StorageDriver
from storage.errors import AlreadyExists, ChainMoved, MalformedRecord, NotFound, PreconditionFailed, StorageUnavailable
from storage.payloads import StoredPayload
from storage.seam import Fault
from tests.storage.test_rows import new_row

KEY = "p"
ROW = ConversationRow(partition_key=KEY, id="conv_ü", created_at=1_700_000_000, metadata=b'{"a":"b"}')


@pytest.fixture
def rows(storage: Storage) -> Conversations:
    return Conversations(storage.driver, storage.seam)


def batch(number: int, text: bytes = b"[]") -> ItemBatch:
    return ItemBatch(partition_key=KEY, number=number, items=StoredPayload(inline=text))


async def keys(driver: StorageDriver) -> list[str]:
    return [entity.row_key for entity in await driver.query_entities(RESPONSES, partition_key=KEY)]


async def test_a_conversation_comes_back_as_it_was_written(rows: Conversations) -> None:
    assert not (await rows.head(KEY)).exists
    inserted = await rows.insert(ROW, mark="m")
    head = await rows.head(KEY)
    assert head.exists
    assert head.conversation == inserted
    assert (head.chain, head.changed_at) == (ChainRow(partition_key=KEY), None)
    assert await rows.insert(ROW, mark="m") == inserted
    with pytest.raises(AlreadyExists):
        await rows.insert(ROW, mark="other")


async def test_items_are_counted_by_the_chain_and_read_in_one_query_with_everything_else(
    storage: Storage, rows: Conversations
) -> None:
    await rows.append(batch(1, b"[1]"), ChainRow(partition_key=KEY), mark="m", conversation=ROW)
    chain = (await rows.head(KEY)).chain
    assert chain.turns == 1
    joined = chain.with_turn("resp_1", foreground=False)
    await storage.chains.insert_row(replace(new_row(), turn=joined.turns), joined, mark="t")
    chain = (await rows.head(KEY)).chain
    assert (chain.turns, chain.last) == (2, "resp_1")
    await rows.append(batch(3, b"[3]"), chain, mark="m3")
    await rows.leave_out("an/item#of?a\\turn", (await rows.head(KEY)).chain, mark="g")
    before = storage.seam.total()
    found = await rows.partition(KEY)
    assert storage.seam.total() == before + 1
    assert [row.id for row in found.rows] == ["resp_1"]
    assert [(each.number, each.items.inline) for each in found.batches] == [(1, b"[1]"), (3, b"[3]")]
    assert (found.has("an/item#of?a\\turn"), found.has("another")) == (False, True)
    assert found.head.conversation is not None
    assert (found.head.conversation.id, found.head.chain.turns) == ("conv_ü", 3)


async def test_of_many_appends_on_one_state_of_the_chain_one_is_stored(rows: Conversations) -> None:
    await rows.insert(ROW, mark="m")
    outcomes = await asyncio.gather(
        *(
            rows.append(batch(1, b"[%d]" % number), ChainRow(partition_key=KEY), mark=str(number))
            for number in range(8)
        ),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, ChainMoved) for outcome in outcomes) == 7
    assert len((await rows.partition(KEY)).batches) == 1


@pytest.mark.parametrize("write", ["append", "rewrite", "leave_out", "adopt", "mark_deleted"])
async def test_a_write_is_refused_when_the_chain_has_moved(storage: Storage, rows: Conversations, write: str) -> None:
    await rows.append(batch(1), ChainRow(partition_key=KEY), mark="m")
    head = await rows.head(KEY)
    stored = (await rows.partition(KEY)).batches[0]
    await storage.chains.replace(head.chain.with_turn("resp_1", foreground=True))
    calls = {
        "append": lambda: rows.append(batch(2), head.chain, mark="x"),
        "rewrite": lambda: rows.rewrite(stored, head.chain, mark="x"),
        "leave_out": lambda: rows.leave_out("i", head.chain, mark="x"),
        "adopt": lambda: rows.adopt(ROW, head.chain, mark="x"),
        "mark_deleted": lambda: rows.mark_deleted(head, mark="x"),
    }
    before = await keys(storage.driver)
    with pytest.raises(ChainMoved):
        await calls[write]()
    assert await keys(storage.driver) == before


@pytest.mark.parametrize("write", ["append", "rewrite", "leave_out", "adopt", "mark_deleted", "insert", "replace"])
async def test_a_write_whose_reply_was_lost_is_known_again_by_its_mark(
    storage: Storage, rows: Conversations, write: str
) -> None:
    if write not in ("insert", "replace"):
        await rows.append(batch(1), ChainRow(partition_key=KEY), mark="m")
    if write == "replace":
        await rows.insert(ROW, mark="m")
    found = await rows.partition(KEY)
    head = found.head
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "append": lambda: rows.append(batch(2), head.chain, mark="x"),
        "rewrite": lambda: rows.rewrite(found.batches[0], head.chain, mark="x"),
        "leave_out": lambda: rows.leave_out("i", head.chain, mark="x"),
        "adopt": lambda: rows.adopt(ROW, head.chain, mark="x"),
        "mark_deleted": lambda: rows.mark_deleted(head, mark="x"),
        "insert": lambda: rows.insert(ROW, mark="x"),
        "replace": lambda: rows.replace(replace(ROW, etag=head.conversation.etag), mark="x"),  # type: ignore[union-attr]
    }
    storage.seam.inject(Fault(operation="conversation.*", kind="after", times=1))
    with pytest.raises(StorageUnavailable):
        await calls[write]()
    written = await keys(storage.driver)
    await calls[write]()
    assert await keys(storage.driver) == written


async def test_items_that_were_put_in_are_known_again_though_one_was_taken_out_since(
    storage: Storage, rows: Conversations
) -> None:
    empty = ChainRow(partition_key=KEY)
    storage.seam.inject(Fault(operation="conversation.append", kind="after", times=1))
    with pytest.raises(StorageUnavailable):
        await rows.append(batch(1, b"[1,2]"), empty, mark="m")
    found = await rows.partition(KEY)
    await rows.rewrite(replace(found.batches[0], items=StoredPayload(inline=b"[2]")), found.head.chain, mark="r")
    await rows.append(batch(1, b"[1,2]"), empty, mark="m")
    assert [each.items.inline for each in (await rows.partition(KEY)).batches] == [b"[2]"]
    with pytest.raises(ChainMoved):
        await rows.append(batch(1, b"[1,2]"), empty, mark="other")


async def test_a_deletion_is_known_again_though_a_turn_left_its_marker_since(
    storage: Storage, rows: Conversations
) -> None:
    await rows.append(batch(1), ChainRow(partition_key=KEY), mark="m", conversation=ROW)
    head = await rows.head(KEY)
    storage.seam.inject(Fault(operation="conversation.delete", kind="after", times=1))
    with pytest.raises(StorageUnavailable):
        await rows.mark_deleted(head, mark="d")
    row = await storage.rows.insert(replace(new_row(), turn=1))
    await storage.chains.replace_row(row, (await rows.head(KEY)).chain, mark="r")
    await rows.mark_deleted(head, mark="d")
    with pytest.raises(ChainMoved):
        await rows.mark_deleted(head, mark="other")
    assert (await rows.head(KEY)).deleted


async def test_metadata_are_changed_by_compare_and_swap(rows: Conversations) -> None:
    first = await rows.insert(ROW, mark="m")
    await rows.replace(replace(first, metadata=b"{}"), mark="n")
    with pytest.raises(PreconditionFailed):
        await rows.replace(replace(first, metadata=b'{"late":"1"}'), mark="o")
    head = await rows.head(KEY)
    assert head.conversation is not None
    assert head.conversation.metadata == b"{}"


async def test_a_deleted_conversation_leaves_its_marker_and_its_responses(
    storage: Storage, rows: Conversations
) -> None:
    await rows.append(batch(1), ChainRow(partition_key=KEY), mark="m", conversation=ROW)
    stored = await storage.rows.insert(new_row())
    for number in range(2, 140):
        await rows.append(batch(number), (await rows.head(KEY)).chain, mark=str(number))
    await rows.leave_out("i", (await rows.head(KEY)).chain, mark="g")
    late = await rows.head(KEY)
    await rows.mark_deleted(late, mark="d")
    head = await rows.head(KEY)
    assert (head.deleted, head.exists, head.conversation) == (True, False, None)
    with pytest.raises(ChainMoved):
        await rows.append(batch(140), late.chain, mark="late")
    with pytest.raises(NotFound):
        await rows.replace(replace(ROW, etag=late.conversation.etag), mark="late")  # type: ignore[union-attr]
    await asyncio.gather(*(rows.clean_up(KEY) for _ in range(3)))
    assert await keys(storage.driver) == [CHAIN_ROW, f"response-{stored.id}"]
    assert (await rows.head(KEY)).deleted


async def test_a_conversation_without_a_chain_can_be_deleted(storage: Storage, rows: Conversations) -> None:
    await rows.insert(ROW, mark="m")
    await rows.mark_deleted(await rows.head(KEY), mark="d")
    assert await keys(storage.driver) == [CHAIN_ROW]
    assert (await rows.head(KEY)).deleted


async def test_the_blob_of_replaced_items_goes(storage: Storage, rows: Conversations) -> None:
    stored = await storage.payloads.put(KEY, CONVERSATION_ROW, "items", b"x" * 40_000)
    await rows.forget(stored)
    await rows.forget(stored)
    await rows.forget(StoredPayload(inline=b""))
    assert await storage.driver.list_blobs(PAYLOADS, KEY) == []


@pytest.mark.parametrize(
    ("row_key", "properties"),
    [
        (CONVERSATION_ROW, {"v": 1}),
        (CONVERSATION_ROW, {"v": 1, "id": "c", "created_at": "x", "metadata": b""}),
        (batch_key(1), {"v": 1}),
        (batch_key(1) + "x", {"v": 1, "items_inline": b"[]"}),
    ],
)
async def test_a_damaged_row_is_noticed(
    storage: Storage, rows: Conversations, row_key: str, properties: dict[str, int | str | bytes]
) -> None:
    await storage.driver.insert_entity(RESPONSES, Insert(KEY, row_key, properties))
    with pytest.raises(MalformedRecord):
        await rows.partition(KEY)


def test_keys_are_ordered_and_safe() -> None:
    assert batch_key(2) < batch_key(10)
    assert gone_key("a/b\\c#d?e" * 500).removeprefix("gone-").isalnum()
