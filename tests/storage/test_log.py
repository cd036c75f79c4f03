import asyncio
import uuid

import pytest

from storage.connection import Storage
from storage.driver import AppendResult, StorageDriver
from storage.errors import AlreadyExists, LeaseHeld, NotFound, PreconditionFailed, StorageRejected
from storage.log import segment_name

NAME = segment_name("part", "resp_1", 0, 1)


def lease() -> str:
    return str(uuid.uuid4())


async def owned(storage: Storage) -> str:
    lease_id = lease()
    await storage.log.create(NAME)
    await storage.log.acquire(NAME, lease_id)
    return lease_id


def test_segment_name_holds_partition_id_number_and_generation() -> None:
    assert NAME == "part/resp_1/0-1"


async def test_a_segment_is_created_once(storage: Storage) -> None:
    await storage.log.create(NAME)
    with pytest.raises(AlreadyExists):
        await storage.log.create(NAME)


async def test_creating_again_keeps_what_was_appended(storage: Storage) -> None:
    lease_id = await owned(storage)
    await storage.log.append(NAME, b"kept", position=0, lease_id=lease_id)
    with pytest.raises(AlreadyExists):
        await storage.log.create(NAME)
    assert await storage.log.read(NAME, 0, 10) == b"kept"


async def test_appends_add_up(storage: Storage) -> None:
    lease_id = await owned(storage)
    assert await storage.log.append(NAME, b"abc", position=0, lease_id=lease_id) == AppendResult(3, 1)
    assert await storage.log.append(NAME, b"de", position=3, lease_id=lease_id) == AppendResult(5, 2)
    info = await storage.log.info(NAME)
    assert (info.length, info.blocks, info.lease_held) == (5, 2, True)


@pytest.mark.parametrize("position", [0, 2, 4])
async def test_append_with_stale_or_wrong_position_is_refused(storage: Storage, position: int) -> None:
    lease_id = await owned(storage)
    await storage.log.append(NAME, b"abc", position=0, lease_id=lease_id)
    with pytest.raises(PreconditionFailed) as caught:
        await storage.log.append(NAME, b"xyz", position=position, lease_id=lease_id)
    assert caught.value.operation == "log.append"
    assert await storage.log.read(NAME, 0, 10) == b"abc"


async def test_append_without_lease_on_a_leased_segment_is_refused(storage: Storage, driver: StorageDriver) -> None:
    await owned(storage)
    with pytest.raises(PreconditionFailed):
        await driver.append_block("events", NAME, b"x", position=0, lease_id=None)


async def test_append_with_another_lease_is_refused(storage: Storage) -> None:
    await owned(storage)
    with pytest.raises(PreconditionFailed):
        await storage.log.append(NAME, b"x", position=0, lease_id=lease())


async def test_append_with_a_lease_on_an_unleased_segment_is_refused(storage: Storage) -> None:
    await storage.log.create(NAME)
    with pytest.raises(PreconditionFailed):
        await storage.log.append(NAME, b"x", position=0, lease_id=lease())


async def test_append_without_lease_on_an_unleased_segment_is_stored(storage: Storage, driver: StorageDriver) -> None:
    await storage.log.create(NAME)
    assert await driver.append_block("events", NAME, b"x", position=0, lease_id=None) == AppendResult(1, 1)


async def test_append_to_a_missing_segment_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound):
        await storage.log.append(NAME, b"x", position=0, lease_id=lease())


async def test_an_empty_append_is_rejected(storage: Storage) -> None:
    lease_id = await owned(storage)
    with pytest.raises(StorageRejected):
        await storage.log.append(NAME, b"", position=0, lease_id=lease_id)


async def test_a_large_append_is_one_block(storage: Storage) -> None:
    lease_id = await owned(storage)
    data = bytes(range(256)) * (5 * 4096)
    assert await storage.log.append(NAME, data, position=0, lease_id=lease_id) == AppendResult(len(data), 1)
    assert await storage.log.read(NAME, 0, len(data)) == data


async def test_acquiring_again_with_the_same_id_is_fine(storage: Storage) -> None:
    lease_id = await owned(storage)
    await storage.log.acquire(NAME, lease_id)
    assert (await storage.log.append(NAME, b"x", position=0, lease_id=lease_id)).length == 1


async def test_acquiring_over_a_live_lease_is_refused(storage: Storage) -> None:
    await owned(storage)
    with pytest.raises(LeaseHeld):
        await storage.log.acquire(NAME, lease())


async def test_of_many_takers_exactly_one_wins(storage: Storage) -> None:
    await storage.log.create(NAME)
    outcomes = await asyncio.gather(*(storage.log.acquire(NAME, lease()) for _ in range(16)), return_exceptions=True)
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, LeaseHeld) for outcome in outcomes) == 15


async def test_break_and_acquire_fences_the_old_owner(storage: Storage) -> None:
    old = await owned(storage)
    await storage.log.append(NAME, b"old", position=0, lease_id=old)
    await storage.log.break_lease(NAME)
    new = lease()
    await storage.log.acquire(NAME, new)
    with pytest.raises(PreconditionFailed):
        await storage.log.append(NAME, b"late", position=3, lease_id=old)
    await storage.log.append(NAME, b"new", position=3, lease_id=new)
    assert await storage.log.read(NAME, 0, 100) == b"oldnew"


async def test_a_broken_lease_does_not_allow_appends(storage: Storage) -> None:
    old = await owned(storage)
    await storage.log.break_lease(NAME)
    with pytest.raises(PreconditionFailed):
        await storage.log.append(NAME, b"late", position=0, lease_id=old)
    assert not (await storage.log.info(NAME)).lease_held


async def test_after_a_break_an_append_without_lease_is_stored(storage: Storage, driver: StorageDriver) -> None:
    await owned(storage)
    await storage.log.break_lease(NAME)
    assert (await driver.append_block("events", NAME, b"x", position=0, lease_id=None)).length == 1


async def test_breaking_where_there_is_no_lease_is_fine(storage: Storage) -> None:
    await storage.log.create(NAME)
    await storage.log.break_lease(NAME)
    await storage.log.acquire(NAME, lease())
    await storage.log.break_lease(NAME)
    await storage.log.break_lease(NAME)


async def test_lease_operations_on_a_missing_segment_are_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound):
        await storage.log.acquire(NAME, lease())
    with pytest.raises(NotFound):
        await storage.log.break_lease(NAME)
    with pytest.raises(NotFound):
        await storage.log.release(NAME, lease())
    with pytest.raises(NotFound):
        await storage.log.info(NAME)


async def test_a_released_lease_can_be_taken_by_another(storage: Storage) -> None:
    lease_id = await owned(storage)
    await storage.log.release(NAME, lease_id)
    await storage.log.acquire(NAME, lease())
    with pytest.raises(PreconditionFailed):
        await storage.log.append(NAME, b"x", position=0, lease_id=lease_id)


async def test_release_by_another_is_refused(storage: Storage) -> None:
    await owned(storage)
    with pytest.raises(PreconditionFailed):
        await storage.log.release(NAME, lease())


async def test_release_of_no_lease_is_refused(storage: Storage) -> None:
    await storage.log.create(NAME)
    with pytest.raises(PreconditionFailed):
        await storage.log.release(NAME, lease())


async def test_release_after_a_takeover_is_refused(storage: Storage) -> None:
    old = await owned(storage)
    await storage.log.break_lease(NAME)
    await storage.log.acquire(NAME, lease())
    with pytest.raises(PreconditionFailed):
        await storage.log.release(NAME, old)


async def test_reads_at_and_behind_the_end_give_nothing(storage: Storage) -> None:
    lease_id = await owned(storage)
    assert await storage.log.read(NAME, 0, 10) == b""
    await storage.log.append(NAME, b"abcdef", position=0, lease_id=lease_id)
    assert await storage.log.read(NAME, 6, 10) == b""
    assert await storage.log.read(NAME, 60, 10) == b""
    assert await storage.log.read(NAME, 2, 0) == b""


async def test_reads_give_the_range_that_was_asked_for(storage: Storage) -> None:
    lease_id = await owned(storage)
    await storage.log.append(NAME, b"abcdef", position=0, lease_id=lease_id)
    assert await storage.log.read(NAME, 0, 3) == b"abc"
    assert await storage.log.read(NAME, 4, 100) == b"ef"


async def test_read_of_a_missing_segment_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound):
        await storage.log.read(NAME, 0, 10)


async def test_delete_all_removes_leased_segments_and_nothing_else(storage: Storage, driver: StorageDriver) -> None:
    await owned(storage)
    await storage.log.create(segment_name("part", "resp_1", 1, 1))
    other = segment_name("part", "resp_10", 0, 1)
    await storage.log.create(other)
    await storage.log.delete_all("part", "resp_1")
    assert await driver.list_blobs("events", "") == [other]
    await storage.log.delete_all("part", "resp_1")


async def test_delete_of_a_leased_blob_is_refused(storage: Storage, driver: StorageDriver) -> None:
    await owned(storage)
    with pytest.raises(LeaseHeld):
        await driver.delete_blob("events", NAME)


async def test_delete_of_a_missing_blob_is_not_found(driver: StorageDriver) -> None:
    with pytest.raises(NotFound):
        await driver.delete_blob("events", "nothing")
