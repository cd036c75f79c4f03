"""Conversations: made, shown, changed, deleted; the items that are put into them stand beside those of their turns.

A conversation's items are not copied anywhere: a list shows the input and output of its turns that have ended, and
what was put in between, in the order of the one counter of its chain (see `storage.conversations`).

*Deleting* is refused while a turn runs or waits. A cleanup message is sent before; then the chain becomes the marker,
in the transaction that takes the conversation away, and no turn joins any more; then its items go. Its responses stay.
Whoever receives the message and meets the marker deletes what a crash in between left.

*Blobs of items* are stored before the row that names them, and replaced ones deleted after it. A late cleanup message
is sent before both: whoever receives it deletes those that no row names. They write the chain first, so that every
write that was prepared before is refused and no row comes to name such a blob; items are stored anew for each try.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from protocol import ids, items, jsonio
from protocol.conversations import (
    ConversationItemNotFound,
    NewConversation,
    conversation_object,
    deleted_object,
    list_object,
    numbered,
)
from protocol.errors import ConversationLocked, ConversationNotFound
from resilience import chain as chains
from resilience.conversation_items import Place, began_at, listed, place_of, resolved
from resilience.history import Entry, number_of, read_whole
from resilience.placement import partition_key, tenant_in, tenant_of
from resilience.retry import patiently
from resilience.runtime import Runtime
from storage.chains import ChainRow
from storage.conversations import CONVERSATION_ROW, ConversationRow, Conversations, Head, ItemBatch, Partition
from storage.errors import ChainMoved, NotFound, PreconditionFailed
from storage.payloads import INLINE_LIMIT, StoredPayload

_CLEAN_UP_DELAY = 5.0
"""Seconds until the message that completes an interrupted deletion is seen."""


async def create(runtime: Runtime, principal: str, new: NewConversation) -> dict[str, Any]:
    """A new conversation, with its first items in it.

    Raises:
        ConversationItemNotFound: A reference among the items leads nowhere.
        StorageUnavailable: It may have been made or not.
    """
    conversation_id = ids.new_conversation_id()
    key = key_of(principal, conversation_id)
    metadata = jsonio.dumps(new.metadata)
    row = ConversationRow(partition_key=key, id=conversation_id, created_at=runtime.now(), metadata=metadata)
    storage = rows_of(runtime)
    if new.items:
        stored = await _stored(runtime, key, await _as_kept(runtime, key, principal, new.items))
        batch = ItemBatch(partition_key=key, number=1, items=stored)
        await _patiently(runtime, storage.append, batch, ChainRow(partition_key=key), mark=_mark(), conversation=row)
    else:
        await _patiently(runtime, storage.insert, row, mark=_mark())
    return _shown(row)


async def get(runtime: Runtime, principal: str, conversation_id: str) -> dict[str, Any]:
    """The conversation.

    Raises:
        ConversationNotFound: There is none for this principal.
    """
    head = await _existing(runtime, principal, conversation_id)
    return _shown(await _row_of(runtime, head, conversation_id))


async def update(runtime: Runtime, principal: str, conversation_id: str, metadata: dict[str, str]) -> dict[str, Any]:
    """The conversation with these metadata in place of those it had; the last of several such changes stands.

    Raises:
        ConversationNotFound: There is none for this principal.
    """
    storage = rows_of(runtime)
    while True:
        head = await _existing(runtime, principal, conversation_id)
        row = replace(await _row_of(runtime, head, conversation_id), metadata=jsonio.dumps(metadata))
        try:
            if row.etag:
                await _patiently(runtime, storage.replace, row, mark=_mark())
            else:
                await _patiently(runtime, storage.adopt, row, head.chain, mark=_mark())
        except (PreconditionFailed, NotFound, ChainMoved):
            continue  # another was faster; the conversation may be gone
        return _shown(row)


async def delete(runtime: Runtime, principal: str, conversation_id: str) -> dict[str, Any]:
    """Delete the conversation and what was put into it; its responses stay.

    Raises:
        ConversationNotFound: There is none for this principal, or it is gone already.
        ConversationLocked: One of its turns runs or waits.
    """
    key, mark = key_of(principal, conversation_id), _mark()
    head = await _deletable(runtime, principal, conversation_id)
    loop_time = asyncio.get_running_loop().time
    began = loop_time()
    await _send_cleanup(runtime, key)
    while True:
        try:
            await _patiently(runtime, rows_of(runtime).mark_deleted, head, mark=mark)
            break
        except ChainMoved:
            head = await _deletable(runtime, principal, conversation_id)
    if loop_time() - began > _CLEAN_UP_DELAY / 2:  # the message may have been received before there was a marker
        await _send_cleanup(runtime, key)
    await _delete_items(runtime, key)
    return deleted_object(conversation_id)


async def clean_up(runtime: Runtime, key: str, *, late: bool = False) -> None:
    """Complete a deletion that was interrupted; without a marker only blobs that no row names go, at the late look.

    `late`: it had not come to its marker when somebody looked before; by now it has, or never will.
    """
    while True:
        head = await rows_of(runtime).head(key)
        try:
            if head.deleted:
                await _delete_items(runtime, key)
            elif late:
                await _delete_unnamed(runtime, head)
            else:
                # Who deletes it may be slower still, and may die right behind the marker: no message would be left.
                await _send_late_cleanup(runtime, key)
        except ChainMoved:
            continue
        return


async def refuse_deleted(runtime: Runtime, key: str, conversation_id: str) -> None:
    """For requests that read a conversation without joining it.

    Raises:
        ConversationNotFound: It was deleted.
    """
    if (await rows_of(runtime).head(key)).deleted:
        raise ConversationNotFound(conversation_id)


# -- items ----------------------------------------------------------------------------------------------------


async def add_items(
    runtime: Runtime, principal: str, conversation_id: str, given: list[dict[str, Any]]
) -> dict[str, Any]:
    """Put items into the conversation; the list of them as they are kept.

    Raises:
        ConversationNotFound: There is none for this principal.
        ConversationItemNotFound: A reference among the items leads nowhere.
        StorageUnavailable: They may be in it or not.
    """
    chain = (await _existing(runtime, principal, conversation_id)).chain
    key, mark = chain.partition_key, _mark()
    kept = await _as_kept(runtime, key, principal, given)
    while True:
        stored = await _stored(runtime, key, kept)
        batch = ItemBatch(partition_key=key, number=chain.turns + 1, items=stored)
        try:
            await _patiently(runtime, rows_of(runtime).append, batch, chain, mark=mark)
        except ChainMoved:
            await rows_of(runtime).forget(stored)
            chain = await _moved(runtime, principal, conversation_id, chain)
            continue
        return list_object(kept)


async def list_items(runtime: Runtime, principal: str, conversation_id: str, query: items.ListQuery) -> dict[str, Any]:
    """A page of the conversation's items.

    Raises:
        ConversationNotFound: There is none for this principal.
    """
    return items.page(await _all_items(runtime, principal, conversation_id), query)


async def get_item(runtime: Runtime, principal: str, conversation_id: str, item_id: str) -> dict[str, Any]:
    """One item of the conversation.

    Raises:
        ConversationNotFound: There is none for this principal.
        ConversationItemNotFound: It has no such item.
    """
    for item in await _all_items(runtime, principal, conversation_id):
        if item.get("id") == item_id:
            return item
    raise ConversationItemNotFound(item_id)


async def delete_item(runtime: Runtime, principal: str, conversation_id: str, item_id: str) -> dict[str, Any]:
    """Take an item out of the conversation; the conversation. The response that it came from keeps it.

    Raises:
        ConversationNotFound: There is none for this principal.
        ConversationItemNotFound: It has no such item.
    """
    storage = rows_of(runtime)
    removed = False
    while True:
        found, place = await read_whole(partial(_place, runtime, principal, conversation_id, item_id))
        if place is None and not removed:
            raise ConversationItemNotFound(item_id)
        if place is not None:
            chain, batch = found.head.chain, place.batch
            try:
                if batch is None:
                    await _patiently(runtime, storage.leave_out, item_id, chain, mark=_mark())
                else:
                    await _shrink(runtime, batch, place.others, chain)
            except ChainMoved:
                continue
            removed = True
            if not place.is_last:
                continue
        return _shown(_row_in(found, conversation_id))


# -- parts ----------------------------------------------------------------------------------------------------


def rows_of(runtime: Runtime) -> Conversations:
    """The rows of conversations."""
    return Conversations(runtime.storage.driver, runtime.storage.seam)


def key_of(principal: str, conversation_id: str) -> str:
    """The partition of a conversation, whatever its id looks like."""
    return partition_key(tenant_of(principal), _address(ids.derived_partition(conversation_id)))


def is_address(message_id: str) -> bool:
    """True for the id in a cleanup message that is about a conversation."""
    return ids.is_well_formed(message_id, ids.CONVERSATION_PREFIX)


def _address(partition: str) -> str:
    """An id that says nothing but a partition."""
    return f"{ids.CONVERSATION_PREFIX}_{partition}{'0' * ids.RANDOM_LENGTH}"


def _mark() -> str:
    return uuid.uuid4().hex


async def _patiently[**P, T](runtime: Runtime, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """A write whose mark tells its own success, tried until storage answers."""
    async for attempt in patiently(runtime.settings.finish_patience):
        with attempt:
            return await call(*args, **kwargs)
    raise AssertionError("unreachable: tenacity returns or raises")


async def _existing(runtime: Runtime, principal: str, conversation_id: str) -> Head:
    return _checked(await rows_of(runtime).head(key_of(principal, conversation_id)), conversation_id)


async def _whole(runtime: Runtime, principal: str, conversation_id: str) -> Partition:
    found = await rows_of(runtime).partition(key_of(principal, conversation_id))
    _checked(found.head, conversation_id)
    return found


def _checked(head: Head, conversation_id: str) -> Head:
    if not head.exists:
        raise ConversationNotFound(conversation_id)
    return head


async def _deletable(runtime: Runtime, principal: str, conversation_id: str) -> Head:
    head = await _existing(runtime, principal, conversation_id)
    while head.chain.unfinished:
        if not await chains.unlock(runtime, head.chain):
            raise ConversationLocked
        head = await _existing(runtime, principal, conversation_id)
    return head


async def _row_of(runtime: Runtime, head: Head, conversation_id: str) -> ConversationRow:
    """The conversation's row; one without an etag for a conversation that a response began."""
    if head.conversation is not None:
        return head.conversation
    return _row_in(await rows_of(runtime).partition(head.chain.partition_key), conversation_id)


def _row_in(found: Partition, conversation_id: str) -> ConversationRow:
    head = found.head
    if head.conversation is not None:
        return head.conversation
    created_at = began_at(found, conversation_id)
    return ConversationRow(partition_key=head.chain.partition_key, id=conversation_id, created_at=created_at)


def _shown(row: ConversationRow) -> dict[str, Any]:
    return conversation_object(row.id, row.created_at, jsonio.loads(row.metadata))


async def _moved(runtime: Runtime, principal: str, conversation_id: str, known: ChainRow) -> ChainRow:
    """The chain as it is now, after others changed it."""
    chain = (await _existing(runtime, principal, conversation_id)).chain
    if chain.etag != known.etag:
        return chain
    # The next number is taken: the chain was made anew, and has to go on counting where the last one ended.
    found = await rows_of(runtime).partition(chain.partition_key)
    entries: list[Entry] = [*found.rows, *found.batches]
    numbers = [chain.turns, *map(number_of, entries)]
    return replace(found.head.chain, turns=max(numbers))


async def _as_kept(runtime: Runtime, key: str, principal: str, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    whole = await resolved(runtime.storage, key, principal, given)
    for item in whole:
        if items.type_of_input(item) == "item_reference":
            raise ConversationItemNotFound(str(item.get("id")), param="items")
    return numbered(whole, key.rpartition("-")[2])


async def _stored(
    runtime: Runtime, key: str, kept: list[dict[str, Any]], *, instead_of: StoredPayload | None = None
) -> StoredPayload:
    """Items for a row that is written under the chain as it was read before, and not otherwise."""
    data = jsonio.dumps(kept)
    if len(data) > INLINE_LIMIT or (instead_of is not None and instead_of.blob is not None):
        await _send_late_cleanup(runtime, key)
    return await runtime.storage.payloads.put(key, CONVERSATION_ROW, "items", data)


async def _shrink(runtime: Runtime, batch: ItemBatch, others: list[dict[str, Any]], chain: ChainRow) -> None:
    """Leave only these others in a batch. Raises `ChainMoved`."""
    storage = rows_of(runtime)
    smaller = replace(batch, items=await _stored(runtime, batch.partition_key, others, instead_of=batch.items))
    try:
        await _patiently(runtime, storage.rewrite, smaller, chain, mark=_mark())
    except ChainMoved:
        await storage.forget(smaller.items)
        raise
    await storage.forget(batch.items)


async def _all_items(runtime: Runtime, principal: str, conversation_id: str) -> list[dict[str, Any]]:
    key = key_of(principal, conversation_id)

    async def read() -> list[dict[str, Any]]:
        found = await _whole(runtime, principal, conversation_id)
        return await listed(runtime.storage, key, principal, found, conversation_id)

    return await read_whole(read)


async def _place(
    runtime: Runtime, principal: str, conversation_id: str, item_id: str
) -> tuple[Partition, Place | None]:
    found = await _whole(runtime, principal, conversation_id)
    return found, await place_of(runtime.storage, found, conversation_id, item_id)


async def _send_cleanup(runtime: Runtime, key: str, *, delay: float = _CLEAN_UP_DELAY, late: bool = False) -> None:
    address = _address(key.rpartition("-")[2])
    await runtime.storage.work.send_cleanup(tenant_in(key), address, delay=delay, late=late)


async def _send_late_cleanup(runtime: Runtime, key: str) -> None:
    await _send_cleanup(runtime, key, delay=runtime.settings.last_look_after, late=True)


async def _delete_items(runtime: Runtime, key: str) -> None:
    await rows_of(runtime).clean_up(key)
    await runtime.storage.payloads.delete_all(key, CONVERSATION_ROW)


async def _delete_unnamed(runtime: Runtime, head: Head) -> None:
    """Delete the blobs of items that no row names. Raises `ChainMoved`."""
    key, storage = head.chain.partition_key, rows_of(runtime)
    blobs = await runtime.storage.payloads.names(key, CONVERSATION_ROW)
    named = {batch.items.blob for batch in await storage.batches(key)} if blobs else set()
    unnamed = [blob for blob in blobs if blob not in named]
    if not unnamed:
        return
    if head.exists:
        await runtime.storage.chains.replace(head.chain)
    else:  # who made it may only sleep, and would make it with items that are gone
        await storage.mark_deleted(head, mark=_mark())
    for blob in unnamed:
        await storage.forget(StoredPayload(blob=blob))
