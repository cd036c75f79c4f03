import asyncio
from dataclasses import replace

import pytest

from storage.connection import Storage
from storage.driver import Delete, Insert, StorageDriver, Update
from storage.errors import AlreadyExists, MalformedRecord, NotFound, PreconditionFailed
from storage.payloads import StoredPayload
from storage.rows import ResponseRow, Segment, row_key, row_properties


def new_row(response_id: str = "resp_1", partition: str = "p") -> ResponseRow:
    return ResponseRow(
        partition_key=partition,
        id=response_id,
        status="queued",
        disposition="row1",
        background=True,
        stream=False,
        created_at=1_700_000_000,
        request=StoredPayload(inline=b'{"input":"hi"}'),
    )


FULL = ResponseRow(
    partition_key="p",
    id="resp_full",
    status="completed",
    disposition="row2",
    background=False,
    stream=True,
    generation=3,
    attempt=2,
    owner="worker-1",
    lease_id="4fd1c2a0-0000-0000-0000-000000000000",
    segments=(
        Segment(name="p/resp_full/0-1", first_sequence=0, length=5_000_000_000),
        Segment(name="b", first_sequence=7),
    ),
    last_sequence=9,
    log_length=5_000_000_100,
    created_at=4_102_444_800,
    completed_at=4_102_444_900,
    error_code="server_error",
    conversation="conv_ü",
    previous_response_id="resp_0",
    turn=3,
    steered=True,
    request=StoredPayload(blob="p/resp_full/request-1"),
    snapshot=StoredPayload(inline=b"\x00\xff"),
    principal="user",
    deleted=True,
)


@pytest.mark.parametrize("row", [new_row(), FULL], ids=["new", "full"])
async def test_a_row_comes_back_as_it_was_written(storage: Storage, row: ResponseRow) -> None:
    inserted = await storage.rows.insert(row)
    assert inserted.etag
    assert replace(inserted, etag="") == row
    assert await storage.rows.read("p", row.id) == inserted


async def test_every_field_is_stored(storage: Storage) -> None:
    inserted = await storage.rows.insert(new_row())
    changed = await storage.rows.replace(replace(FULL, id="resp_1", etag=inserted.etag))
    assert await storage.rows.read("p", "resp_1") == changed
    assert replace(changed, id="resp_full", etag="") == FULL
    # What is unset again does not stay behind.
    reset = await storage.rows.replace(replace(new_row(), etag=changed.etag))
    assert await storage.rows.read("p", "resp_1") == reset


async def test_a_row_is_inserted_once(storage: Storage) -> None:
    inserted = await storage.rows.insert(new_row())
    with pytest.raises(AlreadyExists):
        await storage.rows.insert(replace(new_row(), status="other"))
    assert await storage.rows.read("p", "resp_1") == inserted


async def test_a_missing_row_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound) as caught:
        await storage.rows.read("p", "resp_1")
    assert caught.value.operation == "row.read"
    with pytest.raises(NotFound):
        await storage.rows.replace(replace(new_row(), etag="*"))


async def test_of_twenty_replacements_of_one_etag_exactly_one_wins(storage: Storage) -> None:
    row = await storage.rows.insert(new_row())
    # All write the very same content: equal content must not pass for one's own write.
    calls = (storage.rows.replace(replace(row, status="in_progress")) for _ in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, ResponseRow)]
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 19
    assert await storage.rows.read("p", "resp_1") == winner


async def test_of_twenty_inserts_exactly_one_wins(storage: Storage) -> None:
    outcomes = await asyncio.gather(*(storage.rows.insert(new_row()) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, ResponseRow) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyExists) for outcome in outcomes) == 19


async def test_replace_and_delete_with_a_stale_etag_are_refused(storage: Storage) -> None:
    stale = await storage.rows.insert(new_row())
    fresh = await storage.rows.replace(replace(stale, status="in_progress"))
    with pytest.raises(PreconditionFailed):
        await storage.rows.replace(replace(stale, status="cancelled"))
    with pytest.raises(PreconditionFailed):
        await storage.rows.delete(stale)
    assert (await storage.rows.read("p", "resp_1")).status == "in_progress"
    await storage.rows.delete(fresh)
    with pytest.raises(NotFound):
        await storage.rows.delete(fresh)


async def test_a_partition_lists_its_responses_and_nothing_else(storage: Storage, driver: StorageDriver) -> None:
    first = await storage.rows.insert(new_row("resp_1"))
    second = await storage.rows.insert(new_row("resp_2"))
    await storage.rows.insert(new_row("resp_3", partition="q"))
    await driver.insert_entity("responses", Insert("p", "chain-c", {"last": "resp_2"}))
    assert await storage.rows.list_partition("p") == [first, second]


async def test_unknown_properties_are_ignored_and_missing_ones_take_defaults(
    driver: StorageDriver, storage: Storage
) -> None:
    row = new_row()
    written = row_properties(row) | {"later": "addition", "v": 9}
    for name in ("owner", "segments", "last_sequence", "deleted", "generation"):
        del written[name]
    etag = await driver.insert_entity("responses", Insert("p", row_key("resp_1"), written))
    assert await storage.rows.read("p", "resp_1") == replace(row, etag=etag)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", None),
        ("background", 1),
        ("created_at", "soon"),
        ("segments", "[[1]]"),
        ("segments", "{"),
        ("request_inline", 5),
    ],
)
async def test_a_damaged_row_is_malformed(
    driver: StorageDriver, storage: Storage, name: str, value: str | int | None
) -> None:
    etag = (await storage.rows.insert(new_row())).etag
    await driver.update_entity(
        "responses", Update("p", row_key("resp_1"), row_properties(new_row()) | {name: value}, etag)
    )
    with pytest.raises(MalformedRecord, match=name.removesuffix("_inline")):
        await storage.rows.read("p", "resp_1")


async def test_replace_of_a_row_that_was_deleted_is_not_found(driver: StorageDriver, storage: Storage) -> None:
    row = await storage.rows.insert(new_row())
    await driver.delete_entity("responses", Delete("p", row_key("resp_1")))
    with pytest.raises(NotFound):
        await storage.rows.replace(row)
