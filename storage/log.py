"""The event log of a response: append blobs, its segments, under a lease.

Format: container `events`, blob `{partition}/{response id}/{segment}-{generation}`; the content is what was appended.
Concurrency: the lease on the newest segment is the right to append. Storage refuses every append whose lease id or
position is not the one in force. An append whose reply was lost is stored, but repeating it is refused: read back
from the position and compare.
"""

from collections.abc import Iterable

from storage.driver import EVENTS, AppendResult, BlobInfo, StorageDriver
from storage.errors import AlreadyExists, LeaseHeld, NotFound
from storage.seam import Operation, Seam

#: A blob that somebody keeps leasing while it is deleted is given up after this many rounds.
DELETE_ROUNDS = 5


def segment_name(partition: str, response_id: str, number: int, generation: int) -> str:
    """The full name of a segment."""
    return f"{partition}/{response_id}/{number}-{generation}"


class EventLog:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def create(self, name: str) -> None:
        """Create an empty segment. Raises `AlreadyExists`."""
        await self._seam.run(Operation.LOG_CREATE, self._driver.create_append_blob(EVENTS, name))

    async def ensure(self, name: str) -> None:
        """Create a segment unless it is there: made by a call whose reply was lost, or by another for the same row."""
        try:
            await self.create(name)
        except AlreadyExists:
            return

    async def append(self, name: str, data: bytes, *, position: int, lease_id: str) -> AppendResult:
        """Append `data` as one block at `position` under one's lease (R4).

        Raises `PreconditionFailed` when the position or the lease is not the one in force, `NotFound`.
        """
        call = self._driver.append_block(EVENTS, name, data, position=position, lease_id=lease_id)
        return await self._seam.run(Operation.LOG_APPEND, call)

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; nothing at or behind the end. Raises `NotFound`."""
        return await self._seam.run(Operation.LOG_READ, self._driver.read_range(EVENTS, name, offset, length))

    async def info(self, name: str) -> BlobInfo:
        """Raises `NotFound`."""
        return await self._seam.run(Operation.LOG_INFO, self._driver.blob_info(EVENTS, name))

    async def acquire(self, name: str, lease_id: str) -> None:
        """Take the infinite lease under an id of one's own; again is fine. Raises `LeaseHeld`, `NotFound`."""
        await self._seam.run(Operation.LOG_ACQUIRE, self._driver.acquire_lease(EVENTS, name, lease_id))

    async def break_lease(self, name: str) -> None:
        """End whatever lease there is; from here its holder's appends are refused. Raises `NotFound`."""
        await self._seam.run(Operation.LOG_BREAK, self._driver.break_lease(EVENTS, name))

    async def release(self, name: str, lease_id: str) -> None:
        """Give one's lease back. Raises `PreconditionFailed` when another or none is there, `NotFound`."""
        await self._seam.run(Operation.LOG_RELEASE, self._driver.release_lease(EVENTS, name, lease_id))

    async def names(self, partition: str, response_id: str) -> list[str]:
        """The names of all segments of a response."""
        call = self._driver.list_blobs(EVENTS, f"{partition}/{response_id}/")
        return await self._seam.run(Operation.LOG_LIST, call)

    async def delete_all(self, partition: str, response_id: str) -> None:
        """Delete all segments of a response, as `delete_named` does."""
        await self.delete_named(await self.names(partition, response_id))

    async def delete_named(self, names: Iterable[str]) -> None:
        """Delete segments, leased or not; what is gone already is fine.

        Raises `LeaseHeld` if somebody takes the lease again and again.
        """
        for name in names:
            await self._delete(name)

    async def _delete(self, name: str) -> None:
        for left in reversed(range(DELETE_ROUNDS)):
            try:
                await self._seam.run(Operation.LOG_DELETE, self._driver.delete_blob(EVENTS, name))
            except NotFound:
                return
            except LeaseHeld:
                if not left:
                    raise
            else:
                return
            try:
                await self.break_lease(name)
            except NotFound:
                return
