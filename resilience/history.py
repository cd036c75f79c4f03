"""The turns before a response: their input and output items, oldest first (S6).

A chain lies in one partition, so that one query reads all of it, whatever its length; who follows whom is then a
matter of memory.
"""

from typing import Any

from protocol import jsonio
from protocol.items import input_items
from resilience.placement import partition_key, tenant_in
from resilience.record import RequestRecord
from storage.connection import Storage
from storage.rows import ResponseRow


class History:
    """Reads the chain that ends before one response."""

    def __init__(self, storage: Storage, partition_key: str, record: RequestRecord, turn: int = 0) -> None:
        self._storage = storage
        self._partition_key = partition_key
        self._record = record
        self._turn = turn
        self._turns: list[ResponseRow] | None = None

    async def items(self, limit: int = -1) -> list[dict[str, Any]]:
        """Items of the earlier turns, oldest first; the newest `limit` of them, all if it is negative."""
        items: list[dict[str, Any]] = []
        for row in await self._earlier_turns():
            items.extend(await self._items_of(row))
        return items if limit < 0 else items[max(0, len(items) - limit) :]

    async def resolve(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The items with each reference replaced by what it refers to; one that leads nowhere stays as it is."""
        wanted = {str(item.get("id")) for item in items if item.get("type") == "item_reference"}
        if not wanted:
            return items
        known = {str(item.get("id")): item for item in await self.items()}
        for key in self._partitions_of(wanted - set(known)):
            known = {**await self._items_in(key), **known}
        return [
            known.get(str(item.get("id")), item) if item.get("type") == "item_reference" else item for item in items
        ]

    def _partitions_of(self, item_ids: set[str]) -> set[str]:
        """Where items of this tenant lie, by their ids; ids that are not this server's lie nowhere."""
        keys = set()
        for item_id in item_ids:
            try:
                keys.add(partition_key(tenant_in(self._partition_key), item_id))
            except ValueError:
                continue
        return keys

    async def _items_in(self, key: str) -> dict[str, dict[str, Any]]:
        """All items of a partition by id, but those of this response: what it refers to came before it."""
        known: dict[str, dict[str, Any]] = {}
        for row in await self._storage.rows.list_partition(key):
            if not row.deleted and row.id != self._record.response_id:
                known.update({str(item.get("id")): item for item in await self._items_of(row)})
        return known

    async def _earlier_turns(self) -> list[ResponseRow]:
        if self._turns is None:
            self._turns = await self._read_turns()
        return self._turns

    async def _read_turns(self) -> list[ResponseRow]:
        if not self._record.previous_response_id and not self._record.conversation:
            return []
        rows = {row.id: row for row in await self._storage.rows.list_partition(self._partition_key)}
        if self._record.previous_response_id:
            return [row for row in _chain(rows, self._record.previous_response_id) if not row.deleted]
        return sorted(
            (
                row
                for row in rows.values()
                if not row.deleted
                and row.conversation == self._record.conversation
                and row.turn
                and (row.turn < self._turn or not self._turn)
            ),
            key=lambda row: row.turn,
        )

    async def _items_of(self, row: ResponseRow) -> list[dict[str, Any]]:
        record = RequestRecord.from_bytes(await self._storage.payloads.get(row.request))
        items = input_items(record.request, row.id)
        if row.snapshot is not None:
            items.extend(jsonio.loads(await self._storage.payloads.get(row.snapshot)).get("output") or [])
        return items


def _chain(rows: dict[str, ResponseRow], last: str) -> list[ResponseRow]:
    """The turns up to `last`, oldest first; a deleted one has nothing to tell but who came before it."""
    turns: list[ResponseRow] = []
    row = rows.pop(last, None)
    while row is not None:
        turns.append(row)
        row = rows.pop(row.previous_response_id, None)
    turns.reverse()
    return turns
