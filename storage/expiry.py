"""Which responses end when: the index that retention goes by.

Format: table `expiry`, partition = the hour in which responses ended, as ten digits (UTC), row = a random name; `v`,
and `responses`, a JSON list, at most `MAX_RESPONSES` long, of `[partition key, id]`, and of
`[partition key, id, hash of the key]` for an idempotency key that is claimed for that id. A response may be noted more
than once; what is noted may not be there.
Concurrency: rows are inserted and deleted, never changed. A response is noted before its worker's ledger forgets it,
and a row is deleted after all that it names is: a crash leaves something noted, never something forgotten.
"""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from storage.driver import EXPIRY, Delete, Entity, Insert, StorageDriver
from storage.errors import AlreadyExists, MalformedRecord, NotFound
from storage.seam import Operation, Seam

_log = logging.getLogger("storage.expiry")

EXPIRY_VERSION = 1

MAX_RESPONSES = 300
"""Of one row: a property has at most 64 KiB, and a response takes about a hundred bytes, 170 with a key."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """Where a response lies."""

    partition_key: str
    id: str
    request_key: str = ""
    """Hash of the idempotency key that this is about, "" if it is about the response."""


@dataclass(frozen=True, slots=True)
class Due:
    """Responses that ended in one hour, as one worker noted them."""

    hour: str
    key: str
    responses: tuple[StoredResponse, ...]


def hour_of(time: float) -> str:
    """The hour of a Unix time, as the name of a partition; later hours are greater."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y%m%d%H")


class Expiry:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def note(self, time: float, responses: Sequence[StoredResponse]) -> None:
        """Note responses (at most `MAX_RESPONSES`) that ended at that Unix time."""
        listed = orjson.dumps([_listed(each) for each in responses])
        operation = Insert(hour_of(time), uuid.uuid4().hex, {"v": EXPIRY_VERSION, "responses": listed})
        try:
            await self._seam.run(Operation.EXPIRY_NOTE, self._driver.insert_entity(EXPIRY, operation))
        except AlreadyExists:
            return  # the reply to a first try was lost

    async def due(self, before: float, limit: int) -> list[Due]:
        """The oldest of what was noted in hours that were over at that Unix time."""
        while True:
            call = self._driver.query_entities(EXPIRY, partition_before=hour_of(before), limit=limit)
            found = await self._seam.run(Operation.EXPIRY_DUE, call)
            readable = [due for entity in found if (due := _due(entity)) is not None]
            if readable or len(found) < limit:
                return readable
            limit *= 2  # those that cannot be read stay, and the others must not wait for them

    async def done(self, due: Due) -> None:
        """Nothing is left of what this row names."""
        try:
            await self._seam.run(Operation.EXPIRY_DONE, self._driver.delete_entity(EXPIRY, Delete(due.hour, due.key)))
        except NotFound:
            return


def _due(entity: Entity) -> Due | None:
    try:
        return Due(entity.partition_key, entity.row_key, _responses(entity.properties.get("responses")))
    except MalformedRecord:
        _log.exception("row %s of the expiry index cannot be read", entity.row_key)
        return None


def _listed(response: StoredResponse) -> list[str]:
    about = [response.partition_key, response.id]
    return [*about, response.request_key] if response.request_key else about


def _responses(listed: object) -> tuple[StoredResponse, ...]:
    try:
        return tuple(
            StoredResponse(str(key), str(response_id), *map(str, request_key))
            for key, response_id, *request_key in orjson.loads(listed)  # type: ignore[arg-type]
        )
    except (ValueError, TypeError) as error:
        raise MalformedRecord("A row of the expiry index cannot be read.") from error
