"""From what the SDKs raise to `storage.errors`, by HTTP status only."""

import asyncio
from collections.abc import Awaitable, Mapping

import aiohttp
from azure.core.exceptions import AzureError, HttpResponseError

from storage.errors import NotFound, StorageError, StorageRejected, StorageUnavailable

#: Statuses that say nothing about the request, only about the moment. 5xx are besides.
TRANSIENT = frozenset({408, 429})

#: A role that is given or taken, a firewall that changes: nothing may be given up for that either.
NOT_ALLOWED = frozenset({401, 403})

#: What an SDK call can end with. Raw transport errors come out of reading a body.
DRIVER_ERRORS = (AzureError, aiohttp.ClientError, asyncio.TimeoutError, OSError)

type Statuses = Mapping[int, type[StorageError]]

MISSING: Statuses = {404: NotFound}


def status_of(error: BaseException) -> int | None:
    """The status that the service answered with; None if there was no answer."""
    return error.status_code if isinstance(error, HttpResponseError) else None


def translated(error: BaseException, statuses: Statuses) -> StorageError:
    """The error to raise in place of the SDK's; `statuses` are the answers that mean something for this call."""
    status = status_of(error)
    if status is not None and status in statuses:
        return statuses[status]()
    if status in NOT_ALLOWED:
        return StorageUnavailable(f"Storage does not allow it ({status}): a role, a key or a firewall.")
    # An error with a status of success is an answer that could not be read.
    if status is None or status < 400 or status >= 500 or status in TRANSIENT:
        return StorageUnavailable()
    return StorageRejected(status)


async def answered[T](call: Awaitable[T], statuses: Statuses = MISSING) -> T:
    """Await an SDK call; raises only `StorageError`, with the SDK's error as its cause."""
    try:
        return await call
    except DRIVER_ERRORS as error:
        raise translated(error, statuses) from error
