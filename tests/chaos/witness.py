"""What storage refused: the writes of those who had lost a response, and tried nevertheless."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from storage.driver import RESPONSES, AppendResult, StorageDriver, TableOperation, Update
from storage.errors import NotFound, PreconditionFailed
from storage.memory import MemoryDriver

REFUSED = "refused zombie writes"


class Witness:
    """Lies between a host and memory, and counts into `told` what was refused because a later owner was there."""

    def __init__(self, inner: StorageDriver, told: Counter[str]) -> None:
        assert isinstance(inner, MemoryDriver)
        self._inner = inner
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @classmethod
    def line(cls, told: Counter[str]) -> Any:
        """For `Fleet.host`."""
        return lambda driver: cast("StorageDriver", cls(driver, told))

    async def append_block(
        self, container: str, name: str, data: bytes, *, position: int, lease_id: str | None
    ) -> AppendResult:
        """An append without the lease is a zombie's."""
        try:
            return await self._inner.append_block(container, name, data, position=position, lease_id=lease_id)
        except PreconditionFailed:
            self._told[REFUSED] += self._inner.containers[container][name].lease_id != lease_id
            raise

    async def update_entity(self, table: str, operation: Update) -> str:
        """A status write under another owner's generation is a zombie's."""
        try:
            return await self._inner.update_entity(table, operation)
        except (PreconditionFailed, NotFound):
            self._told[REFUSED] += self._is_late(table, operation)
            raise

    async def transact(self, table: str, operations: Sequence[TableOperation]) -> list[str]:
        """Likewise, with a chain."""
        try:
            return await self._inner.transact(table, operations)
        except (PreconditionFailed, NotFound):
            self._told[REFUSED] += any(self._is_late(table, operation) for operation in operations)
            raise

    def _is_late(self, table: str, operation: TableOperation) -> bool:
        if table != RESPONSES or not isinstance(operation, Update):
            return False
        written = operation.properties.get("generation")
        stored = self._inner.tables[table].get((operation.partition_key, operation.row_key))
        found = stored.properties.get("generation") if stored is not None else None
        return isinstance(written, int) and isinstance(found, int) and written < found
