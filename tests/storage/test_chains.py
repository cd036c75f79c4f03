"""The chain row and its transactions with the rows of responses."""

import asyncio
from dataclasses import replace

import pytest

from storage.chains import ChainRow, Turn, own_chain_key
from storage.connection import Storage
from storage.driver import Insert, StorageDriver, Update, Value
from storage.errors import (
    AlreadyExists,
    ChainMoved,
    MalformedRecord,
    NotFound,
    PreconditionFailed,
    StorageUnavailable,
)
from storage.payloads import StoredPayload
from storage.rows import ResponseRow
from storage.seam import Fault

FULL = ChainRow(
    partition_key="p",
    last="resp_3",
    alternate="resp_4",
    ending="resp_0",
    active=Turn("resp_1", 1, True),
    pending=(Turn("resp_2", 2, False, "resp_1"), Turn("resp_3", 3, True, "resp_2")),
    turns=4,
    metadata=b'{"":{"\xc3\xbc":1}}',
    of_conversation=True,
)


def new_row(response_id: str = "resp_1") -> ResponseRow:
    return ResponseRow(
        partition_key="p",
        id=response_id,
        status="queued",
        disposition="row1",
        background=True,
        stream=False,
        created_at=1_700_000_000,
        turn=1,
        request=StoredPayload(inline=b"{}"),
    )


def joined(chain: ChainRow, response_id: str) -> ChainRow:
    return chain.with_turn(response_id, foreground=False)


async def test_a_missing_chain_reads_as_an_empty_one(storage: Storage) -> None:
    assert await storage.chains.read("p") == ChainRow(partition_key="p")
    assert await storage.chains.read("p", "chain-resp_1") == ChainRow(partition_key="p", key="chain-resp_1")


MARKER = ChainRow(partition_key="p", turns=4, deleted=True, deleted_by="m")


@pytest.mark.parametrize("chain", [ChainRow(partition_key="p"), FULL, MARKER], ids=["empty", "full", "marker"])
async def test_a_chain_comes_back_as_it_was_written(storage: Storage, chain: ChainRow) -> None:
    stored = await storage.chains.replace(chain)
    assert stored.etag
    assert replace(stored, etag="") == chain
    assert await storage.chains.read("p") == stored
    again = await storage.chains.replace(replace(FULL, etag=stored.etag))
    assert await storage.chains.read("p") == again
    # What is unset again does not stay behind.
    reset = await storage.chains.replace(ChainRow(partition_key="p", etag=again.etag))
    assert await storage.chains.read("p") == reset


async def test_a_response_of_its_own_has_a_chain_of_its_own_which_can_be_deleted(storage: Storage) -> None:
    await storage.chains.replace(FULL)
    key = own_chain_key("resp_1")
    own = await storage.chains.replace(ChainRow(partition_key="p", key=key, metadata=b"{}"))
    assert await storage.chains.read("p", key) == own
    for _ in range(2):
        await storage.chains.delete("p", key)
    assert not (await storage.chains.read("p", key)).etag
    assert replace(await storage.chains.read("p"), etag="") == FULL


async def test_a_chain_that_was_changed_is_not_replaced(storage: Storage) -> None:
    stale = await storage.chains.replace(ChainRow(partition_key="p"))
    with pytest.raises(ChainMoved):
        await storage.chains.replace(ChainRow(partition_key="p"))
    fresh = await storage.chains.replace(replace(stale, last="resp_1"))
    with pytest.raises(ChainMoved):
        await storage.chains.replace(replace(stale, last="resp_2"))
    await storage.chains.delete("p", "chain")
    with pytest.raises(ChainMoved):
        await storage.chains.replace(fresh)


async def test_of_twenty_turns_that_join_one_chain_exactly_one_wins(storage: Storage) -> None:
    """The first ones of a chain, then the next ones: no row without its chain."""
    for seen in (ChainRow(partition_key="p"), None):
        chain = seen or await storage.chains.read("p")
        rows = [new_row(f"resp_{chain.turns}_{n}") for n in range(20)]
        calls = (storage.chains.insert_row(row, joined(chain, row.id), mark=row.id) for row in rows)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        [(row, stored)] = [each for each in outcomes if isinstance(each, tuple)]
        assert sum(isinstance(each, ChainMoved) for each in outcomes) == 19
        assert await storage.chains.read("p") == stored
        assert stored.last == row.id
        assert await storage.rows.read("p", row.id) == row
    assert len(await storage.rows.list_partition("p")) == 2


async def test_a_response_that_is_there_already_leaves_the_chain_as_it_is(storage: Storage) -> None:
    row, chain = await storage.chains.insert_row(new_row(), joined(ChainRow(partition_key="p"), "resp_1"), mark="a")
    with pytest.raises(AlreadyExists):
        await storage.chains.insert_row(new_row(), joined(chain, "resp_1"), mark="b")
    assert await storage.chains.read("p") == chain
    assert await storage.rows.read("p", "resp_1") == row


async def test_an_outcome_is_stored_with_the_chain_or_not_at_all(storage: Storage) -> None:
    row, chain = await storage.chains.insert_row(new_row(), joined(ChainRow(partition_key="p"), "resp_1"), mark="a")
    ended = replace(row, status="completed")
    moved = await storage.chains.replace(replace(chain, metadata=b"{}"))
    with pytest.raises(ChainMoved):
        await storage.chains.replace_row(ended, chain.without_turn("resp_1"), mark="b")
    assert await storage.rows.read("p", "resp_1") == row
    stored, left = await storage.chains.replace_row(ended, moved.without_turn("resp_1"), mark="b")
    assert (await storage.rows.read("p", "resp_1"), await storage.chains.read("p")) == (stored, left)
    assert (stored.status, left.active) == ("completed", None)
    with pytest.raises(PreconditionFailed):
        await storage.chains.replace_row(ended, left, mark="c")
    assert await storage.chains.read("p") == left


async def test_a_response_is_deleted_with_the_chain_or_not_at_all(storage: Storage) -> None:
    row, chain = await storage.chains.insert_row(new_row(), joined(ChainRow(partition_key="p"), "resp_1"), mark="a")
    with pytest.raises(ChainMoved):
        await storage.chains.delete_row(row, replace(chain, etag=row.etag).without_trace("resp_1"))
    with pytest.raises(PreconditionFailed):
        await storage.chains.delete_row(replace(row, etag=chain.etag), chain.without_trace("resp_1"))
    await storage.chains.delete_row(row, chain.without_trace("resp_1"))
    assert not await storage.rows.list_partition("p")
    assert (await storage.chains.read("p")).last == ""
    with pytest.raises(NotFound):
        await storage.chains.delete_row(row, chain)
    with pytest.raises(NotFound):
        await storage.chains.replace_row(row, chain, mark="b")


async def test_a_write_whose_reply_was_lost_is_known_again_by_its_mark(storage: Storage) -> None:
    empty = ChainRow(partition_key="p")
    storage.seam.inject(Fault(operation="row.*", kind="after", times=1))
    with pytest.raises(StorageUnavailable):
        await storage.chains.insert_row(new_row(), joined(empty, "resp_1"), mark="a")
    row, chain = await storage.chains.insert_row(new_row(), joined(empty, "resp_1"), mark="a")
    assert (await storage.rows.read("p", "resp_1"), await storage.chains.read("p")) == (row, chain)
    storage.seam.inject(Fault(operation="row.*", kind="after", times=1))
    ended, left = replace(row, status="completed"), chain.without_turn("resp_1")
    with pytest.raises(StorageUnavailable):
        await storage.chains.replace_row(ended, left, mark="b")
    again = await storage.chains.replace_row(ended, left, mark="b")
    assert (await storage.rows.read("p", "resp_1"), await storage.chains.read("p")) == again


async def test_what_was_stored_under_a_mark_counts_whatever_is_tried_again(storage: Storage) -> None:
    """It was tried as a turn that runs, stored as one that waits, and is tried as it was at first."""
    empty = ChainRow(partition_key="p")
    _, chain = await storage.chains.insert_row(new_row("resp_0"), joined(empty, "resp_0"), mark="other")
    waits = replace(new_row(), status="queued", turn=2, steered=True)
    stored, _ = await storage.chains.insert_row(waits, joined(chain, "resp_1"), mark="a")
    runs = replace(new_row(), status="in_progress", owner="me", generation=1)
    again, now = await storage.chains.insert_row(runs, joined(empty, "resp_1"), mark="a")
    assert again == stored
    assert now.may_start("resp_0")


async def test_the_chain_is_no_response_of_its_partition(storage: Storage) -> None:
    await storage.chains.replace(FULL)
    await storage.chains.replace(ChainRow(partition_key="p", key=own_chain_key("resp_1")))
    assert await storage.rows.list_partition("p") == []


async def test_missing_properties_take_their_defaults(storage: Storage, driver: StorageDriver) -> None:
    await driver.insert_entity("responses", Insert("p", "chain", {"v": 9, "later": "addition"}))
    assert replace(await storage.chains.read("p"), etag="") == ChainRow(partition_key="p")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("active", "[[1]]"),
        ("pending", "{"),
        ("pending", '[["a","b",true,""]]'),
        ("turns", "many"),
        ("metadata", "text"),
    ],
    ids=["active", "pending", "number", "turns", "metadata"],
)
async def test_a_damaged_chain_is_malformed(storage: Storage, driver: StorageDriver, name: str, value: Value) -> None:
    etag = (await storage.chains.replace(FULL)).etag
    await driver.update_entity("responses", Update("p", "chain", {name: value}, etag))
    with pytest.raises(MalformedRecord, match="chain"):
        await storage.chains.read("p")
