"""Turns of one conversation chain, reduced to their storage calls: joining, ending, and the start of the next.

As in `protocol`, one step of an actor is one storage call, and anybody else may move or crash between any two of them.
Claims, leases and logs are that model's matter: here a claim is one compare-and-swap, and an adoption can be tried
again by anybody until it is done. A `Slip` leaves something out or does it in the wrong order: it must be noticed.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from tests.model.world import with_value

MOST_MESSAGES = 1
"""Of one turn: that two are as good as one is harsher than a queue."""


class Slip(StrEnum):
    """What somebody might think is as good."""

    NOT_REVIVED = "who finds a finished turn does not start the next"
    ENTRY_CLOSED_FIRST = "a worker closes its entry before it starts the next turn"
    FAILED_STAYS = "a foreground turn that fails with its worker stays in its chain"
    REFUSED_IS_FORGOTTEN = "a turn that was refused and whose worker died leaves nobody to start the next"
    NOBODY_IS_ENDING = "the next turn does not wait for a handler that is still at work"
    NO_LOOK_AT_THE_CHAIN = "a start message is enough to begin"
    JOINS_BLINDLY = "a turn joins the chain as it was read, whatever it is now"
    ENDS_BLINDLY = "the outcome and the chain are written one after the other"


class Chain(NamedTuple):
    """The chain's row; as a whole it is its own etag."""

    active: int | None = None
    pending: tuple[int, ...] = ()
    ending: int | None = None

    def joined(self, turn: int) -> "Chain":
        """With one more turn."""
        if self.active is None:
            return self._replace(active=turn)
        return self._replace(pending=(*self.pending, turn))

    def left(self, turn: int, runs_on: bool) -> "Chain":
        """Without one that ended."""
        if self.active != turn:
            return self._replace(pending=tuple(each for each in self.pending if each != turn))
        return Chain(self.pending[0] if self.pending else None, self.pending[1:], turn if runs_on else self.ending)

    def may_start(self, turn: int) -> bool:
        """Whether it is that turn's time."""
        return self.active == turn and self.ending is None


class Row(NamedTuple):
    """A turn's row: `absent`, `open`, or how it ended."""

    status: str = "absent"
    owner: int | None = None
    claims: int = 0


class Actor(NamedTuple):
    """One invocation, at one step.

    Attributes:
        kind: `join`, `run`, `wait` (a foreground turn in its request) or `cancel`.
        opened: it stands in its worker's ledger.
        sent: its start message was sent.
        chain: the chain as it was read.
        row: the row as it was read or written.
        next: the turn to be started.
    """

    worker: int
    kind: str
    turn: int
    step: str
    opened: bool = False
    sent: bool = False
    chain: Chain = Chain()
    row: Row = Row()
    next: int | None = None


class State(NamedTuple):
    """Everything there is; `numbers` are the turns in the order in which they joined."""

    foreground: tuple[bool, ...]
    rows: tuple[Row, ...]
    chain: Chain
    numbers: tuple[int, ...]
    ledgers: tuple[frozenset[int], ...]
    alive: tuple[bool, ...]
    dead: tuple[bool, ...]
    messages: tuple[int, ...]
    actors: frozenset[Actor]
    handlers: frozenset[tuple[int, int]]
    entered: tuple[int, ...]
    arrived: int
    crashes: int
    cancels: int
    refusals: int


def begin(
    *turns: str, workers: int = 2, crashes: int = 0, cancels: int = 0, refusals: int = 0, posted: int = 0
) -> State:
    """Turns, each `background` or `foreground`, that will arrive in this order; `posted` of them wait already."""
    count = len(turns)
    queued = tuple(range(posted))
    chain = Chain()
    for turn in queued:
        chain = chain.joined(turn)
    return State(
        foreground=tuple(turn == "foreground" for turn in turns),
        rows=tuple(Row("open") if turn < posted else Row() for turn in range(count)),
        chain=chain,
        numbers=queued,
        ledgers=(frozenset(),) * workers,
        alive=(True,) * workers,
        dead=(False,) * workers,
        messages=tuple(int(posted > 0 and turn == 0) for turn in range(count)),
        actors=frozenset(),
        handlers=frozenset(),
        entered=(),
        arrived=posted,
        crashes=crashes,
        cancels=cancels,
        refusals=refusals,
    )


def is_good(state: State) -> bool:
    """Nobody runs, nobody waits, and whatever was recorded has its outcome."""
    return (
        state.chain == Chain() and all(row.status != "open" for row in state.rows) and state.arrived == len(state.rows)
    )


def violation(before: State, state: State) -> str:
    """V9: what must never be, "" if it is not."""
    for old, row in zip(before.rows, state.rows, strict=True):
        if old.status not in ("absent", "open") and row.status not in (old.status, "absent"):
            return f"{row.status} after {old.status}"
    if len({turn for _, turn in state.handlers}) > 1:
        return f"two handlers at once: {sorted(state.handlers)}"
    if len(state.entered) > len(before.entered):
        turn, earlier = state.entered[-1], state.entered[:-1]
        place = state.numbers.index
        if any(place(each) > place(turn) for each in earlier):
            return f"entered in the order {state.entered}"
        if turn in earlier and before.crashes == _crashes_at_first(before):
            return f"turn {turn} was entered twice without a crash"
    return ""


def _crashes_at_first(state: State) -> int:
    return state.crashes if all(state.alive) else -1


def successors(state: State, slip: Slip | None = None) -> Iterator[State]:
    """Every state that one step, delivery, arrival, adoption or crash leads to."""
    for actor in sorted(state.actors, key=lambda each: (each.worker, each.kind, each.turn, each.step)):
        yield from getattr(_Move(state, actor, slip), f"{actor.kind}_{actor.step}")()
    for worker, alive in enumerate(state.alive):
        if alive:
            yield from _arrivals(state, worker)
            yield from _crash(state, worker)
        else:
            yield from _adoption(state, worker, slip)


def _arrivals(state: State, worker: int) -> Iterator[State]:
    if state.arrived < len(state.rows):
        turn = state.arrived
        actor = Actor(worker, "wait", turn, "open") if state.foreground[turn] else Actor(worker, "join", turn, "read")
        yield state._replace(actors=state.actors | {actor}, arrived=turn + 1)
    for turn, count in enumerate(state.messages):
        here = any(each.worker == worker and each.turn == turn and each.kind == "run" for each in state.actors)
        if count and not here:
            actor = Actor(worker, "run", turn, "read")
            messages = with_value(state.messages, turn, count - 1)
            yield state._replace(actors=state.actors | {actor}, messages=messages)
    if state.cancels and worker == 0:  # where it comes from makes no difference to the others
        for turn, row in enumerate(state.rows):
            if row.status == "open" and not state.foreground[turn]:
                actor = Actor(worker, "cancel", turn, "read")
                yield state._replace(actors=state.actors | {actor}, cancels=state.cancels - 1)


def _crash(state: State, worker: int) -> Iterator[State]:
    if not state.crashes or sum(state.alive) < 2:
        return
    messages = state.messages
    for actor in state.actors:
        if actor.worker == worker and actor.kind == "run" and not actor.opened:
            messages = with_value(messages, actor.turn, min(messages[actor.turn] + 1, MOST_MESSAGES))
    yield state._replace(
        actors=frozenset(each for each in state.actors if each.worker != worker),
        handlers=frozenset(each for each in state.handlers if each[0] != worker),
        alive=with_value(state.alive, worker, False),
        messages=messages,
        crashes=state.crashes - 1,
    )


def _adoption(state: State, worker: int, slip: Slip | None) -> Iterator[State]:
    """Marked dead, then entry for entry."""
    if not state.dead[worker]:
        yield state._replace(dead=with_value(state.dead, worker, True))
        return
    for turn in sorted(state.ledgers[worker]):
        done = state._replace(ledgers=with_value(state.ledgers, worker, state.ledgers[worker] - {turn}))
        if not state.foreground[turn]:
            yield _sent(done, turn)
        elif state.rows[turn].status == "open":
            # The entry stays: it is taken care of once more, and then the next turn is started.
            stays = slip is Slip.FAILED_STAYS
            chain = state.chain if stays else state.chain.left(turn, False)
            yield state._replace(rows=with_value(state.rows, turn, Row("failed")), chain=chain)
        elif state.rows[turn].status == "absent":
            failed = done._replace(rows=with_value(done.rows, turn, Row("failed")))
            yield failed if slip is Slip.REFUSED_IS_FORGOTTEN else _started(failed, turn)
        else:
            yield _started(done, turn)


def _started(state: State, gone: int) -> State:
    """`chain.revive`, in one step: what does it is repeated until it is done."""
    chain = state.chain._replace(ending=None) if state.chain.ending == gone else state.chain
    state = state._replace(chain=chain)
    return state if chain.active is None or chain.ending is not None else _sent(state, chain.active)


def _sent(state: State, turn: int) -> State:
    """A foreground turn looks for itself."""
    if state.foreground[turn]:
        return state
    count = min(state.messages[turn] + 1, MOST_MESSAGES)
    return state._replace(messages=with_value(state.messages, turn, count))


class _Move:
    """One actor's next step; each method is one storage call, and yields what may become of it."""

    def __init__(self, state: State, actor: Actor, slip: Slip | None) -> None:
        self.state = state
        self.actor = actor
        self.slip = slip
        self.turn = actor.turn
        self.row = state.rows[actor.turn]
        self.chain = state.chain
        self.handler = (actor.worker, actor.turn)

    def to(self, step: str, state: State | None = None, **mine: Any) -> State:
        """Go on with that step."""
        state = state or self.state
        return state._replace(actors=state.actors - {self.actor} | {self.actor._replace(step=step, **mine)})

    def over(self, state: State | None = None) -> State:
        """The invocation is over."""
        state = state or self.state
        return state._replace(actors=state.actors - {self.actor})

    def with_row(self, row: Row, chain: Chain | None = None) -> State:
        """One transaction."""
        return self.state._replace(
            rows=with_value(self.state.rows, self.turn, row), chain=self.chain if chain is None else chain
        )

    def with_ledger(self, state: State, *, opened: bool) -> State:
        entries = state.ledgers[self.actor.worker]
        changed = entries | {self.turn} if opened else entries - {self.turn}
        return state._replace(ledgers=with_value(state.ledgers, self.actor.worker, changed))

    def inserted(self, chain: Chain) -> State:
        state = self.with_row(Row("open"), chain.joined(self.turn))
        return state._replace(numbers=(*state.numbers, self.turn))

    def entering(self) -> State:
        return self.state._replace(
            handlers=self.state.handlers | {self.handler}, entered=(*self.state.entered, self.turn)
        )

    def without_handler(self, state: State) -> State:
        return state._replace(handlers=state.handlers - {self.handler})

    # -- joining ------------------------------------------------------------------------------------------------------

    def join_read(self) -> Iterator[State]:
        """Where it need not wait its start message goes first: no row without a message."""
        waits = self.chain.active is not None or self.chain.ending is not None
        state = self.state if waits or self.actor.sent else _sent(self.state, self.turn)
        yield self.to("insert", state, chain=self.chain, sent=self.actor.sent or not waits)

    def join_insert(self) -> Iterator[State]:
        if self.chain == self.actor.chain or self.slip is Slip.JOINS_BLINDLY:
            yield self.over(self.inserted(self.actor.chain))
        else:
            yield self.to("read")

    # -- a background turn --------------------------------------------------------------------------------------------

    def run_read(self) -> Iterator[State]:
        row = self.row
        elsewhere = row.owner not in (None, self.actor.worker) and not self.state.dead[row.owner or 0]
        if row.status == "absent":
            if not any(each.kind == "join" and each.turn == self.turn for each in self.state.actors):
                yield self.over()  # dropped, when it has been missing for long enough
        elif row.status != "open":
            yield self.over() if elsewhere or self.slip is Slip.NOT_REVIVED else self.to("revive")
        elif elsewhere or (row.claims == 0 and not self.may_begin()):
            yield self.over()
        else:
            yield self.to("open", row=row)

    def may_begin(self) -> bool:
        return self.chain.may_start(self.turn) or self.slip is Slip.NO_LOOK_AT_THE_CHAIN

    def run_open(self) -> Iterator[State]:
        yield self.to("take", self.with_ledger(self.state, opened=True), opened=True)

    def run_take(self) -> Iterator[State]:
        if self.row == self.actor.row:
            row = Row("open", self.actor.worker, self.row.claims + 1)
            yield self.to("enter", self.with_row(row), row=row)
        else:
            yield self.to("read", self.with_ledger(self.state, opened=False), opened=False)

    def run_enter(self) -> Iterator[State]:
        yield self.to("decide", self.entering()) if self.row == self.actor.row else self.to("gone", row=Row())

    def run_decide(self) -> Iterator[State]:
        """Refused, or told by the watch: the row has another's outcome."""
        if self.row != self.actor.row:
            yield self.to("gone", row=Row())
            return
        done = self.row._replace(status="done")
        if self.slip is Slip.ENDS_BLINDLY:
            yield self.to("leave", self.without_handler(self.with_row(done)))
            return
        yield self.to("revive", self.without_handler(self.with_row(done, self.chain.left(self.turn, False))), row=Row())
        noted = self.slip is not Slip.NOBODY_IS_ENDING
        yield self.to("gone", self.with_row(done, self.chain.left(self.turn, noted)), row=Row())

    def run_leave(self) -> Iterator[State]:
        yield self.to("revive", self.state._replace(chain=self.chain.left(self.turn, False)))

    def run_gone(self) -> Iterator[State]:
        yield self.to("revive", self.without_handler(self.state))

    def run_revive(self) -> Iterator[State]:
        """Read the chain, and take back that this turn is ending."""
        if self.slip is Slip.ENTRY_CLOSED_FIRST and self.actor.opened:
            yield self.to("revive", self.with_ledger(self.state, opened=False), opened=False)
            return
        chain = self.chain._replace(ending=None) if self.chain.ending == self.turn else self.chain
        free = chain.ending is None
        yield self.to("send", self.state._replace(chain=chain), next=chain.active if free else None)

    def run_send(self) -> Iterator[State]:
        state = self.state if self.actor.next is None else _sent(self.state, self.actor.next)
        yield self.to("close", state)

    def run_close(self) -> Iterator[State]:
        yield self.over(self.with_ledger(self.state, opened=False) if self.actor.opened else None)

    # -- a foreground turn --------------------------------------------------------------------------------------------

    def wait_open(self) -> Iterator[State]:
        yield self.to("read", self.with_ledger(self.state, opened=True), opened=True)

    def wait_read(self) -> Iterator[State]:
        yield self.to("insert", chain=self.chain)

    def wait_insert(self) -> Iterator[State]:
        current = self.chain == self.actor.chain or self.slip is Slip.JOINS_BLINDLY
        joined = self.inserted(self.actor.chain)
        yield self.to("look", joined, chain=Chain()) if current else self.to("read", chain=Chain())

    def wait_look(self) -> Iterator[State]:
        if self.chain.may_start(self.turn):
            yield self.to("end", self.entering())

    def wait_end(self) -> Iterator[State]:
        left = self.chain.left(self.turn, False)
        yield self.to("revive", self.without_handler(self.with_row(self.row._replace(status="done"), left)))
        noted = self.slip is not Slip.NOBODY_IS_ENDING
        yield self.to("gone", self.with_row(self.row._replace(status="done"), self.chain.left(self.turn, noted)))
        if self.state.refusals:  # its handler would not have it: nothing is left of it
            state = self.without_handler(self.with_row(Row(), left))
            yield self.to("revive", state._replace(refusals=state.refusals - 1))

    wait_gone = run_gone
    wait_revive = run_revive
    wait_send = run_send
    wait_close = run_close

    # -- cancel -------------------------------------------------------------------------------------------------------

    def cancel_read(self) -> Iterator[State]:
        if self.row.status != "open":
            yield self.over()
            return
        insured = self.row.owner is None
        yield self.to("decide", _sent(self.state, self.turn) if insured else self.state, row=self.row)

    def cancel_decide(self) -> Iterator[State]:
        if self.row != self.actor.row:
            yield self.to("read")
            return
        owned = self.row.owner is not None
        left = self.chain.left(self.turn, owned and self.slip is not Slip.NOBODY_IS_ENDING)
        state = self.with_row(self.row._replace(status="cancelled"), left)
        was_active = self.chain.active == self.turn and left.ending is None
        yield self.over(state) if owned else self.to("send", state, row=Row(), next=left.active if was_active else None)

    def cancel_send(self) -> Iterator[State]:
        yield self.over(self.state if self.actor.next is None else _sent(self.state, self.actor.next))
