import pytest

from storage.connection import Storage
from storage.driver import StorageDriver
from storage.errors import MalformedRecord, NotFound
from storage.payloads import INLINE_LIMIT, StoredPayload


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT])
async def test_a_small_payload_stays_inline_and_costs_no_call(storage: Storage, size: int) -> None:
    stored = await storage.payloads.put("part", "resp_1", "request", b"x" * size)
    assert stored == StoredPayload(inline=b"x" * size)
    assert await storage.payloads.get(stored) == b"x" * size
    assert storage.seam.total() == 0


@pytest.mark.parametrize("size", [INLINE_LIMIT + 1, 3 * 1024 * 1024 + 7])
async def test_a_large_payload_goes_to_a_blob(storage: Storage, size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    stored = await storage.payloads.put("part", "resp_1", "snapshot", data)
    assert stored.inline is None
    assert stored.blob is not None
    assert stored.blob.startswith("part/resp_1/snapshot-")
    assert await storage.payloads.get(stored) == data
    assert storage.seam.counts == {"payload.put": 1, "payload.get": 1}


async def test_every_put_makes_a_new_blob(storage: Storage, driver: StorageDriver) -> None:
    first = await storage.payloads.put("part", "resp_1", "snapshot", b"1" * (INLINE_LIMIT + 1))
    second = await storage.payloads.put("part", "resp_1", "snapshot", b"2" * (INLINE_LIMIT + 1))
    assert sorted([first.blob or "", second.blob or ""]) == await driver.list_blobs("payloads", "part/resp_1/")
    assert await storage.payloads.get(first) == b"1" * (INLINE_LIMIT + 1)


async def test_delete_all_removes_the_payloads_of_one_response(storage: Storage, driver: StorageDriver) -> None:
    data = b"x" * (INLINE_LIMIT + 1)
    stored = await storage.payloads.put("part", "resp_1", "request", data)
    await storage.payloads.put("part", "resp_1", "snapshot", data)
    other = await storage.payloads.put("part", "resp_10", "request", data)
    await storage.payloads.delete_all("part", "resp_1")
    assert await driver.list_blobs("payloads", "") == [other.blob]
    with pytest.raises(NotFound):
        await storage.payloads.get(stored)
    await storage.payloads.delete_all("part", "resp_1")


async def test_a_payload_that_is_nowhere_is_malformed(storage: Storage) -> None:
    with pytest.raises(MalformedRecord):
        await storage.payloads.get(StoredPayload())
