"""The row of a response: the truth about it.

Format: table `responses`, partition as given, row `response-{id}`, one property per field of `ResponseRow`, and `v`,
the version of the record. Unknown properties are ignored, missing ones take the field's default, so that two versions
of the code can run side by side.
Concurrency: every change is a compare-and-swap on the etag. Each write carries a random mark; when a write is refused
the row is read once more, and if it bears this very mark the refusal only answered the driver's own repetition of a
write that was stored. So `PreconditionFailed` out of `replace` means that somebody else changed the row.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

import orjson

from storage.driver import RESPONSES, Delete, Entity, Insert, StorageDriver, Update, Value
from storage.errors import AlreadyExists, MalformedRecord, NotFound, PreconditionFailed
from storage.payloads import StoredPayload
from storage.seam import Operation, Seam

ROW_VERSION = 1
ROW_PREFIX = "response-"
#: Characters of an error code that are kept here. Handlers make them, of any length; the snapshot has the whole.
MAX_ERROR_CODE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment of the log: its blob, the number of its first event, its length in bytes (-1 while it is open)."""

    name: str
    first_sequence: int
    length: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRow:
    """A response as stored. Times are seconds since the epoch; -1 stands for a length or number not yet known.

    `turn` is its place in the chain of its partition, 0 for none; `steered`: it had to wait for its turn (S3).
    `request_key` is the hash of its idempotency key, "" for none.
    """

    partition_key: str
    id: str
    etag: str = ""
    status: str
    disposition: str
    background: bool
    stream: bool
    generation: int = 0
    attempt: int = 0
    owner: str = ""
    lease_id: str = ""
    segments: tuple[Segment, ...] = ()
    last_sequence: int = -1
    log_length: int = -1
    created_at: int
    completed_at: int | None = None
    error_code: str = ""
    conversation: str = ""
    previous_response_id: str = ""
    turn: int = 0
    steered: bool = False
    request: StoredPayload
    snapshot: StoredPayload | None = None
    principal: str = ""
    request_key: str = ""
    deleted: bool = False


def row_key(response_id: str) -> str:
    """The RowKey of a response."""
    return f"{ROW_PREFIX}{response_id}"


def row_properties(row: ResponseRow) -> dict[str, Value | None]:
    """A row as table properties; None where nothing is stored."""
    segments = [[segment.name, segment.first_sequence, segment.length] for segment in row.segments]
    return {
        "v": ROW_VERSION,
        "status": row.status,
        "disposition": row.disposition,
        "background": row.background,
        "stream": row.stream,
        "generation": row.generation,
        "attempt": row.attempt,
        "owner": row.owner,
        "lease_id": row.lease_id,
        "segments": orjson.dumps(segments).decode(),
        "last_sequence": row.last_sequence,
        "log_length": row.log_length,
        "created_at": row.created_at,
        "completed_at": row.completed_at,
        "error_code": row.error_code[:MAX_ERROR_CODE],
        "conversation": row.conversation,
        "previous_response_id": row.previous_response_id,
        "turn": row.turn,
        "steered": row.steered,
        "request_inline": row.request.inline,
        "request_blob": row.request.blob,
        "snapshot_inline": row.snapshot.inline if row.snapshot else None,
        "snapshot_blob": row.snapshot.blob if row.snapshot else None,
        "principal": row.principal,
        "request_key": row.request_key,
        "deleted": row.deleted,
    }


def row_from_entity(entity: Entity) -> ResponseRow:
    """A table row as a `ResponseRow`. Raises `MalformedRecord`."""
    read = _Reader(entity)
    request = read.payload("request")
    completed_at = read.integer("completed_at", -1)
    return ResponseRow(
        partition_key=entity.partition_key,
        id=entity.row_key.removeprefix(ROW_PREFIX),
        etag=entity.etag,
        status=read.text("status", None),
        disposition=read.text("disposition", None),
        background=read.flag("background", None),
        stream=read.flag("stream", None),
        generation=read.integer("generation", 0),
        attempt=read.integer("attempt", 0),
        owner=read.text("owner"),
        lease_id=read.text("lease_id"),
        segments=read.segments(),
        last_sequence=read.integer("last_sequence", -1),
        log_length=read.integer("log_length", -1),
        created_at=read.integer("created_at", None),
        completed_at=None if completed_at < 0 else completed_at,
        error_code=read.text("error_code"),
        conversation=read.text("conversation"),
        previous_response_id=read.text("previous_response_id"),
        turn=read.integer("turn", 0),
        steered=read.flag("steered", False),
        request=request if request is not None else StoredPayload(inline=b""),
        snapshot=read.payload("snapshot"),
        principal=read.text("principal"),
        request_key=read.text("request_key"),
        deleted=read.flag("deleted", False),
    )


class _Reader:
    """Typed access to the properties of an entity; a default of None marks what must be there."""

    def __init__(self, entity: Entity) -> None:
        self._properties: Mapping[str, Value] = entity.properties
        self._key = f"{entity.partition_key}/{entity.row_key}"

    def _wrong(self, name: str) -> MalformedRecord:
        return MalformedRecord(f"The row {self._key} has no usable {name}.")

    def text(self, name: str, default: str | None = "") -> str:
        value = self._properties.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name)
        return value

    def integer(self, name: str, default: int | None) -> int:
        value = self._properties.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name)
        return value

    def flag(self, name: str, default: bool | None) -> bool:
        value = self._properties.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name)
        return value

    def payload(self, name: str) -> StoredPayload | None:
        inline = self._properties.get(f"{name}_inline")
        blob = self._properties.get(f"{name}_blob")
        if isinstance(inline, bytes):
            return StoredPayload(inline=inline)
        if isinstance(blob, str):
            return StoredPayload(blob=blob)
        if inline is not None or blob is not None:
            raise self._wrong(name)
        return None

    def segments(self) -> tuple[Segment, ...]:
        try:
            listed = orjson.loads(self.text("segments", "[]"))
            return tuple(
                Segment(name=str(name), first_sequence=int(first), length=int(length)) for name, first, length in listed
            )
        except (ValueError, TypeError) as error:
            raise self._wrong("segments") from error


class ResponseRows:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def insert(self, row: ResponseRow, *, mark: str | None = None) -> ResponseRow:
        """Insert a new row; the result carries its etag. Raises `AlreadyExists`.

        A caller that tries again after `StorageUnavailable` gives the same `mark`, and so knows its own insert again.
        """
        mark = mark or uuid.uuid4().hex
        operation = Insert(row.partition_key, row_key(row.id), row_properties(row) | {"mark": mark})
        try:
            etag = await self._seam.run(Operation.ROW_INSERT, self._driver.insert_entity(RESPONSES, operation))
        except AlreadyExists:
            etag = await self._confirmed(row, mark)
            if not etag:
                raise
        return replace(row, etag=etag)

    async def read(self, partition_key: str, response_id: str) -> ResponseRow:
        """Raises `NotFound`, `MalformedRecord`."""
        call = self._driver.get_entity(RESPONSES, partition_key, row_key(response_id))
        return row_from_entity(await self._seam.run(Operation.ROW_READ, call))

    async def replace(self, row: ResponseRow, *, mark: str | None = None) -> ResponseRow:
        """Write the row if its etag is still `row.etag`; the result carries the new one. For `mark` see `insert`.

        Raises `PreconditionFailed` when somebody else changed it, `NotFound`.
        """
        mark = mark or uuid.uuid4().hex
        operation = Update(row.partition_key, row_key(row.id), row_properties(row) | {"mark": mark}, row.etag)
        try:
            etag = await self._seam.run(Operation.ROW_REPLACE, self._driver.update_entity(RESPONSES, operation))
        except PreconditionFailed:
            etag = await self._confirmed(row, mark)
            if not etag:
                raise
        return replace(row, etag=etag)

    async def list_partition(self, partition_key: str) -> list[ResponseRow]:
        """Every response of a partition, ordered by id."""
        call = self._driver.query_entities(RESPONSES, partition_key=partition_key, row_key_prefix=ROW_PREFIX)
        return [row_from_entity(entity) for entity in await self._seam.run(Operation.ROW_LIST, call)]

    async def delete(self, row: ResponseRow) -> None:
        """Delete the row if its etag is still `row.etag`. Raises `PreconditionFailed`, `NotFound`."""
        operation = Delete(row.partition_key, row_key(row.id), row.etag)
        await self._seam.run(Operation.ROW_DELETE, self._driver.delete_entity(RESPONSES, operation))

    async def _confirmed(self, row: ResponseRow, mark: str) -> str:
        """The etag of the stored row if it bears `mark`, else nothing."""
        call = self._driver.get_entity(RESPONSES, row.partition_key, row_key(row.id))
        try:
            entity = await self._seam.run(Operation.ROW_CONFIRM, call)
        except NotFound:
            return ""
        return entity.etag if entity.properties.get("mark") == mark else ""
