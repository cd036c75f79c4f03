"""Bounded patience with a storage that does not answer; the waiting itself is tenacity's."""

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from storage.errors import StorageUnavailable

STORAGE_RETRY_SECONDS = 2.0
"""Between two tries of what has to be stored, however long storage does not answer."""


def patiently(seconds: float) -> AsyncRetrying:
    """Attempts of a storage call while it is unavailable, for `seconds` at most; then its error is raised as it is.

    The outcome of an unavailable call is unknown: what is retried must tell its own earlier success from a refusal.
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(StorageUnavailable),
        wait=wait_random_exponential(multiplier=0.1, max=2.0),
        stop=stop_after_delay(seconds),
        reraise=True,
    )
