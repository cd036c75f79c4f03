"""Idempotency keys: which response a key stands for.

Format: table `idempotency`, partition = tenant, row = hash of the key: the response's id, a hash of the request's body,
the id of the worker whose ledger has an entry for the response ("" if none has), and `v`. The service's timestamp of
the row is the time of the claim.
Concurrency: the insert is the claim; of any number of requests with one key one inserts. An expired claim is replaced
under its etag, a claim that came to nothing is deleted under it.
"""

from dataclasses import dataclass
from datetime import datetime

from storage.driver import IDEMPOTENCY, Delete, Entity, Insert, StorageDriver, Update, Value
from storage.errors import AlreadyExists, MalformedRecord, NotFound, PreconditionFailed
from storage.seam import Operation, Seam

KEY_VERSION = 1


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """What a key stands for; `claimed_at` is by the service's clock."""

    response_id: str
    body_hash: str
    worker_id: str
    etag: str
    claimed_at: datetime


class IdempotencyKeys:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def claim(
        self, tenant: str, key_hash: str, response_id: str, body_hash: str, worker_id: str = ""
    ) -> KeyClaim | None:
        """Claim a key for a response; None if it is ours now, else the claim that stands.

        An id is claimed for once: a claim that names it is told to be one's own.
        """
        operation = Insert(tenant, key_hash, _properties(response_id, body_hash, worker_id))
        while True:
            try:
                await self._seam.run(Operation.KEY_CLAIM, self._driver.insert_entity(IDEMPOTENCY, operation))
            except AlreadyExists:
                standing = await self.read(tenant, key_hash)
                if standing is None:
                    continue  # given up at this moment
                # Our own id in it means that the reply to our own insert was lost.
                return None if standing.response_id == response_id else standing
            return None

    async def read(self, tenant: str, key_hash: str) -> KeyClaim | None:
        """The claim that stands, if any."""
        try:
            entity = await self._seam.run(Operation.KEY_READ, self._driver.get_entity(IDEMPOTENCY, tenant, key_hash))
        except NotFound:
            return None
        return _claim(entity)

    async def take_over(
        self, tenant: str, key_hash: str, standing: KeyClaim, response_id: str, body_hash: str, worker_id: str = ""
    ) -> bool:
        """Replace an expired claim; False when another request was faster."""
        operation = Update(tenant, key_hash, _properties(response_id, body_hash, worker_id), standing.etag)
        try:
            await self._seam.run(Operation.KEY_REPLACE, self._driver.update_entity(IDEMPOTENCY, operation))
        except (PreconditionFailed, NotFound):
            now = await self.read(tenant, key_hash)
            return now is not None and now.response_id == response_id
        return True

    async def release(self, tenant: str, key_hash: str, response_id: str) -> None:
        """Give up the claim for a response that was never made; somebody else's stays."""
        standing = await self.read(tenant, key_hash)
        if standing is not None and standing.response_id == response_id:
            await self.delete(tenant, key_hash, standing)

    async def delete(self, tenant: str, key_hash: str, standing: KeyClaim) -> None:
        """Delete a claim as it was read; one that came after it stays."""
        try:
            await self._seam.run(
                Operation.KEY_RELEASE,
                self._driver.delete_entity(IDEMPOTENCY, Delete(tenant, key_hash, standing.etag)),
            )
        except (PreconditionFailed, NotFound):
            return

    async def service_time(self) -> datetime:
        """The storage service's clock, in UTC."""
        return await self._seam.run(Operation.KEY_TIME, self._driver.service_time())


def _properties(response_id: str, body_hash: str, worker_id: str) -> dict[str, Value | None]:
    return {"v": KEY_VERSION, "response_id": response_id, "body_hash": body_hash, "worker": worker_id}


def _claim(entity: Entity) -> KeyClaim:
    response_id, body_hash = entity.properties.get("response_id"), entity.properties.get("body_hash")
    if not isinstance(response_id, str) or not isinstance(body_hash, str):
        raise MalformedRecord("An idempotency key stands for nothing.")
    worker_id = entity.properties.get("worker")
    return KeyClaim(
        response_id, body_hash, worker_id if isinstance(worker_id, str) else "", entity.etag, entity.timestamp
    )
