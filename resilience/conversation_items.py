"""The items of a conversation as its lists show them."""

from dataclasses import dataclass
from typing import Any

from protocol import ids
from protocol.items import type_of_input
from protocol.response import TERMINAL_STATUSES, strip_internal
from resilience.history import Entry, History, entries_of, items_of
from resilience.record import RequestRecord
from storage.connection import Storage
from storage.conversations import ItemBatch, Partition

type Items = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands: in a batch, with these others; or in a turn.

    `is_last` is false if it stands somewhere else too: clients may send an item again under the id that it has.
    """

    batch: ItemBatch | None
    others: Items
    is_last: bool


async def listed(storage: Storage, key: str, principal: str, found: Partition, conversation_id: str) -> Items:
    """All items, oldest first, each id once. A turn shows its items when it has ended."""
    seen: set[str] = set()
    items: Items = []
    for entry in entries_of(found, conversation_id):
        if not _has_ended(entry):
            continue
        for item in await items_of(storage, entry):
            item_id = str(item.get("id"))
            if item_id not in seen and found.has(item_id):
                seen.add(item_id)
                items.append(strip_internal(item))
    # What a turn referred to in its own conversation has been shown already; the rest lies elsewhere, or nowhere.
    whole = await resolved(storage, key, principal, items)
    return [strip_internal(item) for item in whole if type_of_input(item) != "item_reference"]


async def place_of(storage: Storage, found: Partition, conversation_id: str, item_id: str) -> Place | None:
    """Where the item stands; None if the conversation has no such item."""
    if not found.has(item_id):
        return None
    batch: ItemBatch | None = None
    others: Items = []
    in_turn = False
    for entry in entries_of(found, conversation_id):
        items = await items_of(storage, entry)
        rest = [item for item in items if str(item.get("id")) != item_id]
        if len(rest) == len(items):
            continue
        if isinstance(entry, ItemBatch):
            batch, others = entry, rest
        else:
            in_turn = in_turn or _has_ended(entry)
    if batch is None and not in_turn:
        return None
    return Place(batch, others, is_last=batch is None or not in_turn)


async def resolved(storage: Storage, key: str, principal: str, items: Items) -> Items:
    """The items with each reference replaced by what it refers to, if that leads somewhere."""
    if not any(type_of_input(item) == "item_reference" for item in items):
        return items
    typed = [{**item, "type": type_of_input(item)} for item in items]
    nobody = RequestRecord(
        response_id=ids.new_response_id(ids.new_partition()),
        created_at=0,
        principal=principal,
        request={},
        client_headers={},
        query_parameters={},
        agent_reference=None,
    )
    return await History(storage, key, nobody).refer(typed)


def began_at(found: Partition, conversation_id: str) -> int:
    """When a conversation began that nobody made: with its first turn, deleted or not. Unix time in seconds."""
    turns = [row for row in found.rows if row.turn and (row.deleted or row.conversation == conversation_id)]
    if turns:
        return min(row.created_at for row in turns)
    changed_at = found.head.changed_at
    return 0 if changed_at is None else int(changed_at.timestamp())


def _has_ended(entry: Entry) -> bool:
    return isinstance(entry, ItemBatch) or entry.status in TERMINAL_STATUSES
