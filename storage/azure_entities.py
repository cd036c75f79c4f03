"""Table rows between Python and the SDK.

The SDK writes every int as 32 bit unless told otherwise, and gives 64-bit ones and datetimes back as types of its own.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from azure.core import MatchConditions
from azure.data.tables import EdmType, EntityProperty, TableEntity, UpdateMode

from storage.driver import Delete, Entity, Insert, Properties, TableOperation, Update, Value

_INT32 = 2**31

type Transaction = list[tuple[str, dict[str, Any], dict[str, Any]]]


def to_entity(partition_key: str, row_key: str, properties: Properties) -> dict[str, Any]:
    """What the SDK takes to write a row."""
    entity: dict[str, Any] = {"PartitionKey": partition_key, "RowKey": row_key}
    for name, value in properties.items():
        if value is None:
            continue
        if isinstance(value, int) and not -_INT32 <= value < _INT32:
            entity[name] = EntityProperty(value, EdmType.INT64)
        else:
            entity[name] = value
    return entity


def from_entity(entity: TableEntity) -> Entity:
    """What the SDK read."""
    metadata: Any = entity.metadata
    return Entity(
        partition_key=entity["PartitionKey"],
        row_key=entity["RowKey"],
        properties={
            name: _plain(value) for name, value in entity.items() if name not in ("PartitionKey", "RowKey", "Timestamp")
        },
        etag=metadata["etag"],
        timestamp=_plain_time(metadata["timestamp"]),
    )


def _plain(value: Any) -> Value:
    if isinstance(value, EntityProperty):
        value = value.value
    plain: Value = _plain_time(value) if isinstance(value, datetime) else value
    return plain


def _plain_time(time: datetime) -> datetime:
    return datetime.combine(time.date(), time.time(), UTC)


def condition(etag: str) -> dict[str, Any]:
    """Options that make a change depend on an etag."""
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def mode(operation: Update) -> UpdateMode:
    return UpdateMode.MERGE if operation.merge else UpdateMode.REPLACE


def to_transaction(operations: Sequence[TableOperation]) -> Transaction:
    """What the SDK takes to run a transaction."""
    transaction: Transaction = []
    for each in operations:
        if isinstance(each, Delete):
            keys = {"PartitionKey": each.partition_key, "RowKey": each.row_key}
            transaction.append(("delete", keys, condition(each.etag) if each.etag else {}))
            continue
        entity = to_entity(each.partition_key, each.row_key, each.properties)
        if isinstance(each, Update):
            transaction.append(("update", entity, {"mode": mode(each)} | condition(each.etag)))
        elif isinstance(each, Insert):
            transaction.append(("create", entity, {}))
        else:
            transaction.append(("upsert", entity, {"mode": UpdateMode.REPLACE}))
    return transaction


def to_filter(
    partition_key: str | None,
    partition_before: str | None,
    row_key: str | None,
    row_key_prefix: str | None,
    timestamp_before: datetime | None,
) -> str:
    """An OData filter of all the conditions that are given; empty if there is none."""
    conditions: list[str] = []
    if partition_key is not None:
        conditions.append(f"PartitionKey eq {_quoted(partition_key)}")
    if partition_before is not None:
        conditions.append(f"PartitionKey lt {_quoted(partition_before)}")
    if row_key is not None:
        conditions.append(f"RowKey eq {_quoted(row_key)}")
    if row_key_prefix:
        behind = row_key_prefix[:-1] + chr(ord(row_key_prefix[-1]) + 1)
        conditions.append(f"RowKey ge {_quoted(row_key_prefix)} and RowKey lt {_quoted(behind)}")
    if timestamp_before is not None:
        text = timestamp_before.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        conditions.append(f"Timestamp lt datetime'{text}'")
    return " and ".join(conditions)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
