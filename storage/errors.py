"""What storage answers when it does not do what was asked.

Only the HTTP status decides which error it is: codes and texts differ between the service and the emulator.
After `StorageUnavailable` the outcome of a write is unknown. The driver also retries by itself, so that a write whose
first reply was lost may answer `PreconditionFailed`, `AlreadyExists` or (deletes, queue updates) `NotFound` although
it was stored: whoever must know reads back and compares.
"""


class StorageError(Exception):
    """Storage did not do what was asked."""

    def __init__(self, message: str | None = None, *, operation: str = "") -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))
        #: Name of the operation that failed; the seam fills it in.
        self.operation = operation

    def __str__(self) -> str:
        text = super().__str__()
        return f"{self.operation}: {text}" if self.operation else text


class NotFound(StorageError):
    """There is no such blob, row or message."""


class AlreadyExists(StorageError):
    """A blob or row of that name exists already."""


class PreconditionFailed(StorageError):
    """Storage refused the write: another etag, position, lease or pop receipt is in force."""


class ChainMoved(StorageError):
    """The chain was changed by another turn meanwhile; the response that was to change with it was not."""


class LeaseHeld(StorageError):
    """Somebody else holds a lease on the blob."""


class StorageUnavailable(StorageError):
    """Storage did not answer, or not properly; a write may or may not have happened."""


class StorageRejected(StorageError):
    """Storage will not accept this request, however often it is repeated."""

    def __init__(self, status: int, message: str | None = None, *, operation: str = "") -> None:
        super().__init__(message or f"Storage rejected the request with status {status}.", operation=operation)
        self.status = status


class MalformedRecord(StorageError):
    """A stored record cannot be read: it was damaged, or written by something else."""
