"""What was said before a response: items of the turns before it, and those that were put into its conversation (S6).

A chain lies in one partition, so that one query reads all of it, whatever its length; who follows whom is then a
matter of memory. Turns of a conversation and items that were put into it are numbered by one counter.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import batched
from typing import Any

from protocol import jsonio
from protocol.compaction import expand
from protocol.items import input_items
from resilience.placement import partition_key, tenant_in
from resilience.record import RequestRecord
from resilience.retry import patiently
from storage.connection import Storage
from storage.conversations import Conversations, ItemBatch, Partition
from storage.errors import NotFound
from storage.rows import ResponseRow

_READS_AT_ONCE = 16
"""Partitions that references lead to, read at a time."""

_READS = 3
"""Times that something is read before a part that is missing is taken for lost."""

type Entry = ResponseRow | ItemBatch
"""A turn, or items that were put in together."""


class History:
    """Reads the chain that ends before one response."""

    def __init__(
        self, storage: Storage, partition_key: str, record: RequestRecord, turn: int = 0, *, patience: float = 0.0
    ) -> None:
        """`patience`: seconds for which a storage that does not answer is asked again."""
        self._storage = storage
        self._patience = patience
        self._conversations = Conversations(storage.driver, storage.seam)
        self._partition_key = partition_key
        self._record = record
        self._turn = turn
        self._items: list[dict[str, Any]] | None = None

    async def items(self, limit: int = -1) -> list[dict[str, Any]]:
        """Items from before this response, oldest first; the newest `limit` of them, all if it is negative."""
        if self._items is None:
            self._items = await self._read_whole(self._read_items)
        items: list[dict[str, Any]] = jsonio.copy(self._items)
        return items if limit < 0 else items[max(0, len(items) - limit) :]

    async def resolve(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The items with each reference replaced by what it refers to, and folded ones by what they were made of.

        A reference that leads nowhere stays as it is.
        """
        return await self.refer(expand(items))

    async def refer(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The items with each reference replaced by what it refers to, if that leads somewhere."""
        wanted = {str(item.get("id")) for item in items if item.get("type") == "item_reference"}
        if not wanted:
            return items
        known = {str(item.get("id")): item for item in await self.items()}
        for keys in batched(self._partitions_of(wanted - set(known)), _READS_AT_ONCE, strict=False):
            for found in await asyncio.gather(*(self._read_whole(partial(self._items_in, key)) for key in keys)):
                known |= {item_id: found[item_id] for item_id in wanted & set(found) - set(known)}
        return [
            known.get(str(item.get("id")), item) if item.get("type") == "item_reference" else item for item in items
        ]

    async def _read_whole[T](self, read: Callable[[], Awaitable[T]]) -> T:
        async for attempt in patiently(self._patience):
            with attempt:
                return await read_whole(read)
        raise AssertionError("unreachable: tenacity returns or raises")

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
        found = await self._conversations.partition(key)
        entries: list[Entry] = [*found.rows, *found.batches]
        known: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if isinstance(entry, ItemBatch) or (not entry.deleted and entry.id != self._record.response_id):
                known.update({str(item.get("id")): item for item in await items_of(self._storage, entry)})
        return {item_id: item for item_id, item in known.items() if found.has(item_id)}

    async def _read_items(self) -> list[dict[str, Any]]:
        record = self._record
        if not record.previous_response_id and not record.conversation:
            return []
        found = await self._conversations.partition(self._partition_key)
        items: list[dict[str, Any]] = []
        if record.previous_response_id:
            rows = {row.id: row for row in found.rows}
            turns = _chain(rows, record.previous_response_id)
            if turns and turns[0].conversation:  # what it was told itself
                items += await self._items_of_conversation(found, turns[0].conversation, turns[0].turn)
            for row in turns:
                items += [] if row.deleted else await items_of(self._storage, row)
            return expand(items)
        return expand(await self._items_of_conversation(found, record.conversation, self._turn))

    async def _items_of_conversation(self, found: Partition, conversation: str, before: int) -> list[dict[str, Any]]:
        """Its items up to the turn of that number, all of them if it is 0."""
        items: list[dict[str, Any]] = []
        for entry in entries_of(found, conversation):
            if not before or number_of(entry) < before:
                items += [item for item in await items_of(self._storage, entry) if found.has(item.get("id"))]
        return items


async def read_whole[T](read: Callable[[], Awaitable[T]]) -> T:
    """What is read in several steps, from the start again if a part was deleted between two of them."""
    for _ in range(_READS - 1):
        try:
            return await read()
        except NotFound:
            continue
    return await read()


def entries_of(found: Partition, conversation: str) -> list[Entry]:
    """The turns of a conversation and what was put into it, in their order."""
    if found.head.deleted:
        return []
    turns = [row for row in found.rows if row.turn and not row.deleted and row.conversation == conversation]
    return sorted([*turns, *found.batches], key=number_of)


def number_of(entry: Entry) -> int:
    """The place of a turn, or of items that were put in, in their conversation."""
    return entry.number if isinstance(entry, ItemBatch) else entry.turn


async def items_of(storage: Storage, entry: Entry) -> list[dict[str, Any]]:
    """The input and output of a turn, or the items that were put in."""
    if isinstance(entry, ItemBatch):
        items: list[dict[str, Any]] = jsonio.loads(await storage.payloads.get(entry.items))
        return items
    record = RequestRecord.from_bytes(await storage.payloads.get(entry.request))
    items = input_items(record.request, entry.id)
    if entry.snapshot is not None:
        items.extend(jsonio.loads(await storage.payloads.get(entry.snapshot)).get("output") or [])
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
