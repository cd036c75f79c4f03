"""One worker id from its ledger's first transaction to its last, as its own process sees it.

Concurrency: belongs to the event loop; but for `heard_at` and `awake_at`, which the pusher's thread reads and, the
former, writes: a float is read and written as a whole.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from resilience.watch_pusher import WatchPusher
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
    pusher: WatchPusher | None = None
    """None while it rests: nothing is open, nobody has to watch."""
    open: dict[str, tuple[StoredResponse, ...]] = field(default_factory=dict)
    """What is open, and the responses that it is about."""
    unnoted: dict[str, tuple[StoredResponse, ...]] = field(default_factory=dict)
    """What is over, and still has to be noted for retention."""
    closed: set[str] = field(default_factory=set)
    doubtful: Doubt | None = None
    epoch: int = 0
    """That of the message that counts; the ledger may have to be told of it."""
    newest_epoch: int = 0
    """The highest that was ever sent, or tried to be."""
    received_own: bool = False
    begun_at: float = 0.0
    idle_since: float = 0.0
    heard_at: float = 0.0
    """When a transaction or a pulse told others that the process lives."""
    awake_at: float = 0.0
    """When the event loop last came by."""

    @property
    def id(self) -> str:
        return self.record.worker_id

    @property
    def epoch_is_news(self) -> bool:
        """True while the ledger does not have the epoch of the message that is pushed."""
        return self.pusher is not None and self.epoch != self.record.epoch

    def opened_for_nobody(self, keys: Iterable[str]) -> None:
        """Close those that no other opening of the same key needs; what has to be noted first is closed after that."""
        self.closed |= set(keys) - self.open.keys() - self.unnoted.keys()

    def next_epoch(self) -> int:
        """An epoch that no message of this ledger ever had."""
        self.newest_epoch += 1
        return self.newest_epoch


def responses_in(entry: LedgerEntry) -> tuple[StoredResponse, ...]:
    """The response of a run's entry; an adoption has none of its own."""
    key, response_id = entry.data.get("key"), entry.data.get("id")
    return (StoredResponse(str(key), str(response_id)),) if key and response_id else ()
