"""Storage calls as numbers: a seam that also counts how each call ended, by operation."""

from collections.abc import Callable, Coroutine
from typing import Any

from resilience.telemetry import Telemetry
from storage.connection import Storage
from storage.errors import (
    AlreadyExists,
    ChainMoved,
    LeaseHeld,
    NotFound,
    PreconditionFailed,
    StorageRejected,
    StorageUnavailable,
)
from storage.seam import Seam

_OUTCOMES: dict[type[BaseException], str] = {
    NotFound: "not_found",
    AlreadyExists: "already_exists",
    PreconditionFailed: "refused",
    ChainMoved: "refused",
    LeaseHeld: "refused",
    StorageRejected: "rejected",
    StorageUnavailable: "unavailable",
}


class MeteredSeam(Seam):
    """Counts every call with its outcome. All but `unavailable`, `rejected` and `error` are answers like any other."""

    def __init__(self, telemetry: Telemetry, seed: int = 0) -> None:
        super().__init__(seed)
        self._operations = telemetry.storage_operations
        self._attributes: dict[tuple[str, str], dict[str, str]] = {}

    async def run[T](self, name: str, call: Coroutine[Any, Any, T]) -> T:
        """`Seam.run`, counted."""
        try:
            result = await super().run(name, call)
        except BaseException as error:
            self._count(name, _outcome(error))
            raise
        self._count(name, "ok")
        return result

    def run_blocking[T](self, name: str, call: Callable[[], T]) -> T:
        """`Seam.run_blocking`, counted."""
        try:
            result = super().run_blocking(name, call)
        except BaseException as error:
            self._count(name, _outcome(error))
            raise
        self._count(name, "ok")
        return result

    def _count(self, name: str, outcome: str) -> None:
        key = (name, outcome)
        attributes = self._attributes.get(key)
        if attributes is None:
            named = {"responses.storage.operation": str(name), "responses.storage.outcome": outcome}
            attributes = self._attributes[key] = named
        self._operations.add(1, attributes)


def metered(storage: Storage, telemetry: Telemetry) -> Storage:
    """The same storage, every call of it counted; to be used in place of what was given, before anything else is."""
    return Storage.over(storage.driver, MeteredSeam(telemetry))


def _outcome(error: BaseException) -> str:
    if not isinstance(error, Exception):
        return "cancelled"
    return next((outcome for kind, outcome in _OUTCOMES.items() if isinstance(error, kind)), "error")
