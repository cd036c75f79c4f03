"""Which answer an exception becomes. What a client may know is in an `ApiError`; everything else is for the log."""

from protocol.errors import ApiError, ServerError, ServiceUnavailable
from storage.errors import StorageError, StorageUnavailable

PLATFORM_ERROR = {"x-platform-error-source": "platform"}
"""Says that the platform below failed, not the handler (R1)."""


def as_api_error(error: BaseException) -> ApiError:
    """The answer to an exception; 503 asks the client to try again."""
    if isinstance(error, StorageUnavailable):
        error = ServiceUnavailable()
    if isinstance(error, ServiceUnavailable):
        error.headers.update(PLATFORM_ERROR)
    if isinstance(error, ApiError):
        return error
    return ServerError(headers=PLATFORM_ERROR if isinstance(error, StorageError) else None)
