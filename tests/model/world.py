"""The world of the model: what is stored, who is at work, how it may begin, and what must never be."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class Mistake(StrEnum):
    """What somebody might think is as good."""

    APPEND_WITHOUT_FENCE = "appends carry neither lease nor position"
    STATUS_WITHOUT_ETAG = "the outcome is written without a condition"
    LEDGER_AFTER_ROW = "the run is opened in the ledger after the row was taken"
    LOSER_LEAVES = "who loses the row's CAS leaves"
    NO_SECOND_LOOK = "no second look at the row under the lease"
    OWNER_NOT_DISPLACED = "a dead owner's lease is waited for instead of broken"
    SLEEPER_LEAVES = "who finds the row changed under the lease leaves"
    NO_REPAIR = "a finished row is left alone without a look at its log"
    FRAME_BEFORE_ROW = "the terminal frame is appended before the row is decided"
    NO_ADOPTION_ENTRY = "an adopter does not open the adoption in its own ledger"
    NOT_MARKED_DEAD = "an adopter does not mark the ledger dead"
    WIPED_FIRST = "an adopter wipes the ledger before it sends the messages"
    ID_USED_AGAIN = "a worker whose ledger is gone makes it anew under the same id"
    NO_MESSAGE_AT_HAND_OVER = "a hand-over sends no start message"
    REFUSED_OWNER_LEAVES = "an owner that is refused leaves although the row names it"


type Change = dict[str, Any]
"""Fields of a state, or of an actor, and what they become."""

type WorkerId = tuple[int, int]
"""A worker and which of its ids."""


class Row(NamedTuple):
    """The row of a response; as a whole it is its own etag, for claims count up and outcomes are for ever."""

    status: str
    generation: int
    owner: WorkerId | None


class Actor(NamedTuple):
    """One invocation, at one step.

    Attributes:
        worker: whose process it runs in.
        kind: `run`, `adopt` or `cancel`.
        of: the response, or the worker id that is adopted.
        step: the storage call that comes next.
        opened: the id under which it stands in the ledger.
        row: the row as it was last read or written.
        position: where its next append goes.
        said: events appended under this claim.
        items: what an adoption has still to take care of.
        reclaims: the message is spent: a crash does not give it back.
    """

    worker: int
    kind: str
    of: Any
    step: str
    opened: WorkerId | None = None
    row: Row | None = None
    position: int = 0
    said: int = 0
    items: tuple[Any, ...] = ()
    reclaims: bool = False


type Ledger = tuple[str, frozenset[Any]]


class State(NamedTuple):
    """Everything there is. Ledgers that are gone do not stand in `ledgers`; ids count up in `ids`."""

    rows: tuple[Row, ...]
    leases: tuple[Any, ...]
    logs: tuple[tuple[tuple[int, str], ...], ...]
    ledgers: frozenset[tuple[WorkerId, Ledger]]
    watch: frozenset[WorkerId]
    messages: tuple[int, ...]
    actors: frozenset[Actor]
    alive: tuple[bool, ...]
    ids: tuple[int, ...]
    crashes: int
    suspicions: int
    cancels: int
    hand_overs: int


QUEUED, DECIDED, CANCELLED = "queued", "decided", "cancelled"
EVENT, TERMINAL = "event", "terminal"
EVENTS = 1
MOST_MESSAGES = 2
MOST_IDS = 3


@dataclass(frozen=True)
class Bounds:
    """How large a world is, and what may happen in it."""

    workers: int = 2
    responses: int = 1
    crashes: int = 0
    suspicions: int = 0
    cancels: int = 0
    hand_overs: int = 0


def begin(bounds: Bounds, *, midway: bool = False) -> State:
    """Every response accepted and nobody at work; `midway`: worker 0 died in the middle of its runs."""
    responses = range(bounds.responses)
    one: WorkerId = (0, 0)
    return State(
        rows=tuple(Row(QUEUED, 1, one) if midway else Row(QUEUED, 0, None) for _ in responses),
        leases=tuple((one, 1) if midway else None for _ in responses),
        logs=tuple(((1, EVENT),) if midway else () for _ in responses),
        ledgers=frozenset({(one, ("open", frozenset(("run", r) for r in responses)))} if midway else ()),
        watch=frozenset({one} if midway else ()),
        messages=tuple(0 if midway else 1 for _ in responses),
        actors=frozenset(),
        alive=tuple(not midway or number > 0 for number in range(bounds.workers)),
        ids=(0,) * bounds.workers,
        crashes=bounds.crashes,
        suspicions=bounds.suspicions,
        cancels=bounds.cancels,
        hand_overs=bounds.hand_overs,
    )


def sleeping(bounds: Bounds) -> State:
    """Worker 0 took the row of a dead owner, slept before it touched the lease, and was declared dead meanwhile."""
    row = Row(QUEUED, 2, (0, 0))
    sleeper = Actor(0, "run", 0, "break", opened=(0, 0), row=row, items=("displace",))
    first = begin(bounds)
    return first._replace(
        rows=(row,),
        leases=(((9, 0), 1),),
        logs=(((1, EVENT),),),
        actors=frozenset({sleeper}),
        ids=with_value(first.ids, 0, 1),
    )


def disowned(bounds: Bounds, mistake: Mistake | None = None) -> State:
    """Worker 0 runs response 0, was declared dead, and does not know it yet; all start messages are there."""
    row = Row(QUEUED, 1, (0, 0))
    owner = Actor(0, "run", 0, "emit", opened=(0, 0), row=row, said=EVENTS, position=1)
    first = begin(bounds)
    ids = first.ids if mistake is Mistake.ID_USED_AGAIN else with_value(first.ids, 0, 1)
    return first._replace(
        rows=with_value(first.rows, 0, row),
        leases=with_value(first.leases, 0, ((0, 0), 1)),
        logs=with_value(first.logs, 0, ((1, EVENT),)),
        actors=frozenset({owner}),
        ids=ids,
    )


def is_good(state: State) -> bool:
    """Every response has its outcome, and its log ends with the terminal frame."""
    return all(
        row.status != QUEUED and bool(log) and log[-1][1] == TERMINAL
        for row, log in zip(state.rows, state.logs, strict=True)
    )


def violation(before: State, state: State) -> str:
    """What must never be, "" if it is not."""
    for old, row, log in zip(before.rows, state.rows, state.logs, strict=True):
        if old.status != QUEUED and row.status != old.status:
            return f"V1: {row.status} after {old.status}"
        generations = [generation for generation, _ in log]
        if generations != sorted(generations):
            return f"V5: the log's generations are {generations}"
        ends = [index for index, (_, kind) in enumerate(log) if kind == TERMINAL]
        if len(ends) > 1:
            return "V1: two terminal frames"
        if ends and ends[0] != len(log) - 1:
            return "V1: an event behind the terminal frame"
        if ends and row.status == QUEUED:
            return "V1: a terminal frame without an outcome"
    return ""


def with_value[T](values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    """The same, but for one of them."""
    return (*values[:index], value, *values[index + 1 :])
