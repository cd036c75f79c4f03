"""One worker id from its ledger's first transaction to its last, as its own process sees it."""

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from resilience.watch import Watch
from storage.expiry import StoredResponse
from storage.ledger import LedgerEntry, WorkerRecord


def new_worker_id() -> str:
    """A worker id: never used twice, by this process or another."""
    return f"w{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A transaction whose outcome is unknown."""

    opened: frozenset[str]
    closed: frozenset[str]


@dataclass(slots=True)
class Incarnation:
    """One worker id from its ledger's first transaction to its last."""

    record: WorkerRecord
    watch: Watch
    """At rest while nothing is open."""
    open: dict[str, tuple[StoredResponse, ...]] = field(default_factory=dict)
    """What is open, and the responses that it is about."""
    unnoted: dict[str, tuple[StoredResponse, ...]] = field(default_factory=dict)
    """What is over, and still has to be noted for retention."""
    closed: set[str] = field(default_factory=set)
    doubtful: Doubt | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when this process has learned that others declared it dead; an id that is ended in order has no run."""
    begun_at: float = 0.0
    idle_since: float = 0.0

    @property
    def id(self) -> str:
        return self.record.worker_id

    @property
    def epoch_is_news(self) -> bool:
        """True while the ledger does not have the epoch of the message that is pushed."""
        return not self.watch.rests and self.watch.epoch != self.record.epoch

    def opened_for_nobody(self, keys: Iterable[str]) -> None:
        """Close those that no other opening of the same key needs; what has to be noted first is closed after that."""
        self.closed |= set(keys) - self.open.keys() - self.unnoted.keys()


def responses_in(entry: LedgerEntry) -> tuple[StoredResponse, ...]:
    """The response of a run's entry; an adoption has none of its own."""
    key, response_id = entry.data.get("key"), entry.data.get("id")
    return (StoredResponse(str(key), str(response_id)),) if key and response_id else ()
