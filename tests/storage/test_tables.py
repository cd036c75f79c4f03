"""What the nouns rely on in tables: types, conditions, transactions, queries."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import pytest

from storage.driver import Delete, Entity, Insert, Properties, StorageDriver, TableOperation, Update, Upsert
from storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageError, StorageRejected
from tests.storage.conftest import Account

TABLE = "responses"


async def put(driver: StorageDriver, key: str, properties: Properties, partition: str = "p") -> str:
    return await driver.insert_entity(TABLE, Insert(partition, key, properties))


async def keys(driver: StorageDriver, partition: str = "p") -> list[str]:
    return [entity.row_key for entity in await driver.query_entities(TABLE, partition_key=partition)]


VALUES: dict[str, str | int | bool | float | bytes | datetime] = {
    "text": "Grüße, 'world' \U0001f600",
    "empty": "",
    "small": 7,
    "negative": -1,
    "edge": 2**31 - 1,
    "beyond": 2**31,
    "large": 2**62,
    "low": -(2**63),
    "yes": True,
    "no": False,
    "real": 0.25,
    "whole": 3.0,
    "bytes": bytes(range(256)),
    "no_bytes": b"",
    "time": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    "date": "2026-01-02T03:04:05Z",
}


async def test_values_come_back_with_their_types(driver: StorageDriver) -> None:
    etag = await put(driver, "r", VALUES)
    entity = await driver.get_entity(TABLE, "p", "r")
    assert entity.properties == VALUES
    assert {name: type(value) for name, value in entity.properties.items()} == {
        name: type(value) for name, value in VALUES.items()
    }
    assert (entity.partition_key, entity.row_key, entity.etag) == ("p", "r", etag)


async def test_values_of_a_transaction_and_a_query_keep_their_types(driver: StorageDriver) -> None:
    await driver.transact(TABLE, [Insert("p", "r", VALUES)])
    [entity] = await driver.query_entities(TABLE, partition_key="p")
    assert entity.properties == VALUES
    assert type(entity.properties["large"]) is int
    assert type(entity.properties["yes"]) is bool


async def test_times_come_back_in_utc(driver: StorageDriver) -> None:
    local = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    await put(driver, "r", {"time": local})
    time = (await driver.get_entity(TABLE, "p", "r")).properties["time"]
    assert time == local
    assert isinstance(time, datetime)
    assert time.tzinfo is UTC


async def test_none_is_not_stored(driver: StorageDriver) -> None:
    await put(driver, "r", {"a": 1, "b": None})
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"a": 1}


async def test_a_missing_row_is_not_found(driver: StorageDriver) -> None:
    with pytest.raises(NotFound):
        await driver.get_entity(TABLE, "p", "r")
    with pytest.raises(NotFound):
        await driver.update_entity(TABLE, Update("p", "r", {}, "*"))
    with pytest.raises(NotFound):
        await driver.delete_entity(TABLE, Delete("p", "r"))


async def test_a_row_is_inserted_once(driver: StorageDriver) -> None:
    await put(driver, "r", {"a": 1})
    with pytest.raises(AlreadyExists):
        await put(driver, "r", {"a": 2})
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"a": 1}


async def test_update_replaces_and_merge_keeps(driver: StorageDriver) -> None:
    etag = await put(driver, "r", {"a": 1, "b": 1})
    etag = await driver.update_entity(TABLE, Update("p", "r", {"b": 2}, etag, merge=True))
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"a": 1, "b": 2}
    await driver.update_entity(TABLE, Update("p", "r", {"c": 3}, etag))
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"c": 3}


async def test_update_and_delete_with_a_stale_etag_are_refused(driver: StorageDriver) -> None:
    stale = await put(driver, "r", {"a": 1})
    etag = await driver.update_entity(TABLE, Update("p", "r", {"a": 2}, stale))
    assert etag != stale
    with pytest.raises(PreconditionFailed):
        await driver.update_entity(TABLE, Update("p", "r", {"a": 3}, stale))
    with pytest.raises(PreconditionFailed):
        await driver.delete_entity(TABLE, Delete("p", "r", stale))
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"a": 2}
    await driver.delete_entity(TABLE, Delete("p", "r", etag))
    assert await keys(driver) == []


async def test_of_twenty_writers_on_one_etag_exactly_one_wins(driver: StorageDriver) -> None:
    etag = await put(driver, "r", {"writer": -1})
    calls = (driver.update_entity(TABLE, Update("p", "r", {"writer": number}, etag)) for number in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    [winner] = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 19
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"writer": winner}


async def test_of_twenty_inserts_exactly_one_wins(driver: StorageDriver) -> None:
    calls = (put(driver, "r", {"writer": number}) for number in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    [winner] = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert sum(isinstance(outcome, AlreadyExists) for outcome in outcomes) == 19
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"writer": winner}


async def test_of_twenty_transactions_with_insert_and_swap_exactly_one_wins(driver: StorageDriver) -> None:
    etag = await put(driver, "chain", {"last": -1})
    calls = (
        driver.transact(TABLE, [Insert("p", f"turn-{n:02}", {}), Update("p", "chain", {"last": n}, etag)])
        for n in range(20)
    )
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    [winner] = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, list)]
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 19
    assert await keys(driver) == ["chain", f"turn-{winner:02}"]


async def test_a_transaction_does_all_its_operations_and_gives_the_etags(driver: StorageDriver) -> None:
    etag = await put(driver, "merged", {"a": 1, "b": 1})
    await put(driver, "replaced", {"a": 1})
    await put(driver, "deleted", {})
    etags = await driver.transact(
        TABLE,
        [
            Insert("p", "inserted", {"a": 2}),
            Update("p", "merged", {"a": 2}, etag, merge=True),
            Upsert("p", "replaced", {"c": 3}),
            Upsert("p", "upserted", {"c": 4}),
            Delete("p", "deleted"),
        ],
    )
    rows = {entity.row_key: entity for entity in await driver.query_entities(TABLE, partition_key="p")}
    assert {key: entity.properties for key, entity in rows.items()} == {
        "inserted": {"a": 2},
        "merged": {"a": 2, "b": 1},
        "replaced": {"c": 3},
        "upserted": {"c": 4},
    }
    assert etags == [rows[key].etag for key in ("inserted", "merged", "replaced", "upserted")] + [""]


CONFLICTS: list[tuple[TableOperation, type[StorageError]]] = [
    (Insert("p", "there", {}), AlreadyExists),
    (Update("p", "there", {}, "W/\"datetime'2020-01-01T00%3A00%3A00.0000000Z'\""), PreconditionFailed),
    (Update("p", "missing", {}, "*"), NotFound),
    (Delete("p", "there", "W/\"datetime'2020-01-01T00%3A00%3A00.0000000Z'\""), PreconditionFailed),
    (Delete("p", "missing"), NotFound),
]


@pytest.mark.parametrize(("failing", "error"), CONFLICTS)
@pytest.mark.parametrize("first", [True, False])
async def test_a_transaction_with_a_conflict_changes_nothing(
    driver: StorageDriver, failing: TableOperation, error: type[StorageError], first: bool
) -> None:
    await put(driver, "there", {"a": 1})
    await put(driver, "other", {"a": 1})
    good: list[TableOperation] = [Insert("p", "new", {}), Upsert("p", "other", {"a": 2})]
    with pytest.raises(error):
        await driver.transact(TABLE, [failing, *good] if first else [*good, failing])
    rows = {entity.row_key: entity.properties for entity in await driver.query_entities(TABLE, partition_key="p")}
    assert rows == {"there": {"a": 1}, "other": {"a": 1}}


async def test_a_transaction_takes_a_hundred_operations(driver: StorageDriver) -> None:
    etags = await driver.transact(TABLE, [Insert("p", f"{number:03}", {"n": number}) for number in range(100)])
    assert len(etags) == 100
    assert len(await keys(driver)) == 100


@pytest.mark.parametrize(
    "operations",
    [
        [],
        [Insert("p", str(number), {}) for number in range(101)],
        [Insert("p", "a", {}), Insert("q", "b", {})],
        [Insert("p", "a", {}), Delete("p", "a")],
        [Insert("p", "a", {"text": "x" * 32_769})],
        [Insert("p", "a", {"bytes": b"x" * 65_537})],
        [Insert("p", "a", {f"c{number}": 1 for number in range(253)})],
    ],
    ids=["empty", "too many", "two partitions", "one row twice", "long text", "long bytes", "wide"],
)
async def test_what_the_service_would_not_take_is_rejected(
    driver: StorageDriver, operations: Sequence[TableOperation]
) -> None:
    with pytest.raises(StorageRejected):
        await driver.transact(TABLE, operations)
    assert await keys(driver) == []


async def test_the_largest_properties_are_stored(driver: StorageDriver) -> None:
    properties: Properties = {"text": "x" * 32_768, "bytes": b"x" * 65_536}
    await put(driver, "r", properties)
    assert (await driver.get_entity(TABLE, "p", "r")).properties == properties


async def test_queries_find_by_partition_prefix_and_key(driver: StorageDriver) -> None:
    for key in ("chain-1", "response-1", "response-2", "responsf"):
        await put(driver, key, {"a": 1, "b": 2})
    await put(driver, "response-1", {"a": 1}, partition="it's")
    found = await driver.query_entities(TABLE, partition_key="p", row_key_prefix="response-")
    assert [entity.row_key for entity in found] == ["response-1", "response-2"]
    found = await driver.query_entities(TABLE, row_key="response-1")
    assert [entity.partition_key for entity in found] == ["it's", "p"]
    assert [e.row_key for e in await driver.query_entities(TABLE, partition_key="it's")] == ["response-1"]
    assert await driver.query_entities(TABLE, partition_key="none") == []


async def test_a_query_can_be_limited_and_narrowed(driver: StorageDriver) -> None:
    for number in range(5):
        await put(driver, str(number), {"a": number, "b": 2})
    found = await driver.query_entities(TABLE, partition_key="p", select=["a"], limit=3)
    assert [(entity.row_key, entity.properties) for entity in found] == [
        ("0", {"a": 0}),
        ("1", {"a": 1}),
        ("2", {"a": 2}),
    ]
    assert all(entity.etag for entity in found)


async def test_a_query_gives_more_than_one_page(driver: StorageDriver) -> None:
    for start in range(0, 1100, 100):
        await driver.transact(TABLE, [Insert("p", f"{start + number:04}", {}) for number in range(100)])
    assert await keys(driver) == [f"{number:04}" for number in range(1100)]


async def test_queries_by_timestamp_use_the_service_clock(account: Account) -> None:
    driver = account.driver
    await put(driver, "old", {})
    old = (await driver.get_entity(TABLE, "p", "old")).timestamp

    async def newer() -> Entity | None:
        etag = await driver.transact(TABLE, [Upsert("p", "new", {})])
        entity = await driver.get_entity(TABLE, "p", "new")
        assert entity.etag == etag[0]
        return entity if entity.timestamp >= old + timedelta(milliseconds=50) else None

    new = (await account.after(1, newer)).timestamp
    assert old.tzinfo is UTC
    found = await driver.query_entities(TABLE, timestamp_before=new - timedelta(milliseconds=10))
    assert [entity.row_key for entity in found] == ["old"]
    assert await driver.query_entities(TABLE, timestamp_before=old) == []


async def test_what_was_read_can_be_changed_without_changing_what_is_stored(driver: StorageDriver) -> None:
    await put(driver, "r", {"a": 1})
    (await driver.get_entity(TABLE, "p", "r")).properties["a"] = 2
    assert (await driver.get_entity(TABLE, "p", "r")).properties == {"a": 1}
