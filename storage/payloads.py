"""Bytes that belong to a row: inside the row while they are small, in a blob of their own otherwise.

Format: container `payloads`, blob `{partition}/{response id}/{kind}-{random}`. A blob is written once, before the row
that points to it, and never changed; so a reader of the row sees the old bytes or the new ones.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from storage.driver import PAYLOADS, StorageDriver
from storage.errors import MalformedRecord, NotFound
from storage.seam import Operation, Seam

#: Bytes that still go into the row.
INLINE_LIMIT = 32 * 1024


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """Where bytes lie: exactly one of the two is set."""

    inline: bytes | None = None
    blob: str | None = None


class Payloads:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def put(self, partition: str, response_id: str, kind: str, data: bytes) -> StoredPayload:
        """Store `data`; without any call when it is at most `INLINE_LIMIT` bytes long."""
        if len(data) <= INLINE_LIMIT:
            return StoredPayload(inline=data)
        name = f"{partition}/{response_id}/{kind}-{uuid.uuid4().hex}"
        await self._seam.run(Operation.PAYLOAD_PUT, self._driver.upload_blob(PAYLOADS, name, data))
        return StoredPayload(blob=name)

    async def get(self, stored: StoredPayload) -> bytes:
        """The bytes. Raises `NotFound` when the blob was deleted."""
        if stored.inline is not None:
            return stored.inline
        if stored.blob is None:
            raise MalformedRecord("A payload has neither bytes nor a blob.")
        return await self._seam.run(Operation.PAYLOAD_GET, self._driver.download_blob(PAYLOADS, stored.blob))

    async def delete(self, stored: StoredPayload) -> None:
        """Delete bytes that no row points to any more; what is gone already is fine."""
        if stored.blob is not None:
            try:
                await self._seam.run(Operation.PAYLOAD_DELETE, self._driver.delete_blob(PAYLOADS, stored.blob))
            except NotFound:
                return

    async def names(self, partition: str, response_id: str) -> list[str]:
        """The names of all payload blobs of a response."""
        call = self._driver.list_blobs(PAYLOADS, f"{partition}/{response_id}/")
        return await self._seam.run(Operation.PAYLOAD_LIST, call)

    async def delete_all(self, partition: str, response_id: str) -> None:
        """Delete every payload blob of a response; what is gone already is fine."""
        await self.delete_named(await self.names(partition, response_id))

    async def delete_named(self, names: Iterable[str]) -> None:
        """Delete payload blobs; what is gone already is fine."""
        for name in names:
            try:
                await self._seam.run(Operation.PAYLOAD_DELETE, self._driver.delete_blob(PAYLOADS, name))
            except NotFound:
                continue
