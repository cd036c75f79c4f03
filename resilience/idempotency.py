"""`Idempotency-Key`: the same key and body make one response, however often and wherever they are sent (I1).

The key's row is claimed by insert, after the ledger's entry of a foreground run, before anything else of the
response. Who finds it claimed answers with the state of the response that it stands for, and waits for a response
that is still being made:

- in the foreground its row appears at its end, or is written by whoever finds its worker dead, for its ledger entry
  is older than the claim and is closed after all that comes of it. So a claim whose entry is gone, and that has no row,
  stands for nothing: storage carried it out when the request had given it up already. Who finds it so deletes it;
- in the background a row that stays away means a crash between claim and record: the acceptance is made again, with
  the same response id, and the insert of the row decides between any number of those who do.

A claim lasts `KEY_LIFETIME`, by the storage service's clock. A foreground response that was refused before it began
gives its claim up: it left nothing that could be answered with.
"""

import asyncio
import hashlib
from datetime import timedelta
from typing import Any

import orjson

from protocol.errors import IdempotencyKeyReused, ServiceUnavailable
from resilience.response_row import read_row
from resilience.rows import is_unseen
from resilience.run_entries import ledger_key
from resilience.runtime import Runtime
from storage.expiry import StoredResponse
from storage.idempotency import KeyClaim
from storage.rows import ResponseRow

KEY_LIFETIME = timedelta(hours=24)

_FIRST_LOOK = 0.05
_LAST_LOOK = 1.0
"""Seconds between two looks for the response that a key stands for."""

_LOOKED_AGAIN_AFTER = 5.0
"""Seconds between two looks whether a foreground response that is waited for is still being made."""


def hash_of(key: str) -> str:
    """What is stored of a key, "" for none."""
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


class RequestKey:
    """The key of one request."""

    def __init__(self, runtime: Runtime, tenant: str, key: str, request: dict[str, Any]) -> None:
        self._keys = runtime.storage.keys
        self._ledger = runtime.storage.ledger
        self._expiry = runtime.storage.expiry
        self._runtime = runtime
        self._tenant = tenant
        self._hash = hash_of(key)
        body = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
        self._body_hash = hashlib.sha256(body).hexdigest()

    async def claim(self, key: str, response_id: str, worker_id: str = "") -> str | None:
        """Claim the key for a new response; None if that worked, else the id of the response it stands for.

        `key`: the partition of the new response.
        `worker_id`: whose ledger has an entry for the response, until there is a row or the claim is given up.

        Raises:
            IdempotencyKeyReused: It stands for a request with another body.
        """
        known = await self._keys.read(self._tenant, self._hash)
        if known is not None and known.response_id != response_id and await self._is_in_force(known):
            return known.response_id
        # First: a response that is refused, or whose process dies here, has nothing else that leads to its key (V10).
        await self._expiry.note(self._runtime.now(), [StoredResponse(key, response_id, self._hash)])
        while True:
            standing = await self._keys.claim(self._tenant, self._hash, response_id, self._body_hash, worker_id)
            if standing is None:
                return None
            if await self._is_in_force(standing):
                return standing.response_id
            if await self._keys.take_over(self._tenant, self._hash, standing, response_id, self._body_hash, worker_id):
                return None

    async def standing(self) -> str | None:
        """The id of the response that the key stands for, if it was claimed.

        Raises:
            IdempotencyKeyReused: It stands for a request with another body.
        """
        standing = await self._keys.read(self._tenant, self._hash)
        return standing.response_id if standing is not None and await self._is_in_force(standing) else None

    async def _is_in_force(self, standing: KeyClaim) -> bool:
        if await self._keys.service_time() - standing.claimed_at >= KEY_LIFETIME:
            return False
        if standing.body_hash != self._body_hash:
            raise IdempotencyKeyReused
        return True

    async def release(self, response_id: str) -> None:
        """Give the claim up: the response was never made."""
        await self._keys.release(self._tenant, self._hash, response_id)

    async def foreground_row(self, key: str, response_id: str, *, until: float) -> ResponseRow | None:
        """The row of a foreground response that another request is making; None if it came to nothing.

        Raises:
            ServiceUnavailable: It is still being made at that loop time.
        """
        loop_time = asyncio.get_running_loop().time
        while True:
            row = await self.row(key, response_id, patience=min(_LOOKED_AGAIN_AFTER, until - loop_time()))
            if row is not None:
                return row
            standing = await self._keys.read(self._tenant, self._hash)
            if standing is None or standing.response_id != response_id:
                return None
            if not await self._is_being_made(standing):
                row = await self.row(key, response_id, patience=0)  # it was stored before the entry was closed
                if row is None:
                    await self._keys.delete(self._tenant, self._hash, standing)
                return row
            if loop_time() >= until:
                raise ServiceUnavailable("The first request with this Idempotency-Key is still running, please retry.")

    async def _is_being_made(self, standing: KeyClaim) -> bool:
        """Whether somebody answers for a foreground response; a claim that does not say who is left alone."""
        return not standing.worker_id or await self._ledger.is_open(
            standing.worker_id, ledger_key(standing.response_id)
        )

    async def row(self, key: str, response_id: str, *, patience: float) -> ResponseRow | None:
        """The response's row, waited for; None if it is not there after `patience` seconds."""
        loop_time = asyncio.get_running_loop().time
        give_up_at = loop_time() + patience
        pause = _FIRST_LOOK
        while True:
            row = await read_row(self._runtime.storage, key, response_id)
            if row is not None and (is_unseen(row) or row.request_key != self._hash):
                row = None  # the latter: it was given up, and only marks its place
            if row is not None or loop_time() >= give_up_at:
                return row
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_LOOK)
