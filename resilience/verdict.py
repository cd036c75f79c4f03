"""Why a response fails without its handler being entered (again)."""

from dataclasses import dataclass

from resilience.dispatch import Disposition
from resilience.ownership import Ownership


@dataclass(frozen=True, slots=True)
class Verdict:
    """What such a response ends with."""

    message: str
    shutdown_reason: str | None = None


UNREADABLE = Verdict("What is stored of the response cannot be read.")
ATTEMPTS_EXHAUSTED = Verdict("The response was tried too often.", "attempts_exhausted")
WORKER_STOPPED = Verdict("The worker of this response stopped.", "crash_recovery")


def verdict_on(ownership: Ownership, max_attempts: int) -> Verdict | None:
    """What a claim found; None if the handler is to be entered. `max_attempts`: that many claims may fail (R5)."""
    if ownership.row.attempt > max_attempts:
        return ATTEMPTS_EXHAUSTED
    if ownership.is_recovery and ownership.row.disposition != Disposition.RESILIENT:
        return WORKER_STOPPED
    return None
