"""What may go wrong with the storage calls of a host, as Hypothesis strategies."""

from fnmatch import fnmatchcase
from functools import partial

from hypothesis import strategies as st

from storage.errors import StorageUnavailable
from storage.seam import Fault, FaultKind, Operation

FAULTY = [*sorted(set(Operation) - {Operation.PING}), "log.*", "row.*", "ledger.*", "queue.*", "*"]
STEPS = [
    "row.read",
    "row.replace",
    "log.break",
    "log.acquire",
    "log.info",
    "log.append",
    "ledger.commit",
    "ledger.wipe",
]
"""Where a challenger, an owner or an adopter may sleep."""

DECISIVE = ["log.append", "row.replace", "row.read", "log.acquire", "ledger.commit", "payload.*", "queue.send_*"]
"""Operations whose faults are worth more tries than the others'."""

KINDS: list[FaultKind] = ["before", "after", "delay"]
BLOCKING = (Operation.QUEUE_PUSH_WATCH, Operation.LEDGER_PULSE)
WAITING = ["row.*", "log.*", "[!ql]*", "ledger.[!p]*", "queue.s*"]
"""Patterns of operations that a delay in virtual time can be had of; none of them is one of `BLOCKING`."""

SLOW = 8.0


def some_faults(ahead: int) -> st.SearchStrategy[list[Fault]]:
    """Of what a host calls next, up to so many calls ahead; or of operations that it may not even come to."""
    fault = partial(st.builds, partial(Fault, error=StorageUnavailable, delay=SLOW))
    next_call = {"after": st.integers(0, ahead), "times": st.integers(1, 3)}
    one_operation = {
        "operation": st.sampled_from(DECISIVE) | st.sampled_from(FAULTY),
        "after": st.sampled_from([0, 0, 1, 2]),
        "times": st.integers(1, 6),
    }
    slow = fault(operation=st.sampled_from(WAITING), kind=st.just("delay"), **next_call)
    one = st.one_of(
        fault(operation=st.just("*"), kind=st.just("before"), **next_call),
        fault(operation=st.just("*"), kind=st.just("after"), **next_call),
        slow,
        slow,  # patterns hit less often than any call
        fault(kind=st.sampled_from(KINDS), **one_operation),
    )
    return st.lists(one.filter(lambda each: not _really_waits(each)), min_size=2, max_size=4)


def _really_waits(fault: Fault) -> bool:
    """The pusher calls from a thread, and there a delay takes real time."""
    return fault.kind == "delay" and any(fnmatchcase(name, fault.operation) for name in BLOCKING)
