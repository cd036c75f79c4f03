"""Watch messages and their epochs, reduced to storage calls: a worker that loses messages, and those who receive them.

The worker lives or dies at any moment. A message that it does not push any more is seen by others; one that is pushed
is seen only if its worker is dead, or if storage was away for all. One that is put back stays hidden for long enough
that a worker that lives learns of it before. The names of an adopter's steps are those of `adoption`.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

GONE = "gone"
OPEN = "open"
DEAD = "dead"


class Mistake(StrEnum):
    """What somebody might think is as good."""

    COMMIT_FIRST = "the ledger is told the epoch before its message is sent"
    EPOCH_IGNORED = "whoever receives a message adopts, whatever its epoch"
    MARKED_BLINDLY = "the ledger is marked dead although it changed since it was read"
    NOT_TOLD = "the ledger is not told the new epoch"
    OVERDUE_IGNORED = "whoever receives a message after an outage for all judges by it"
    PUT_BACK_FOR_EVER = "whoever receives a message that was put back puts it back"
    EPOCH_KEPT = "the new message has the epoch of the old one"


class Ledger(NamedTuple):
    """The row `worker`; with a crash in between, its entries wait for an adopter."""

    state: str
    epoch: int


class Adopter(NamedTuple):
    """Somebody who received a message of that epoch."""

    epoch: int
    step: str = "read"
    seen: Ledger | None = None
    overdue: bool = False


class State(NamedTuple):
    """Everything there is; `pushed` is the number of the message that the worker holds back, if it holds one.

    Messages are (number, epoch). `unheard`: that message is gone, and its worker, who could not push it, does not know.
    `put_back` are messages that nobody sees yet. `believed` are the epochs of message and ledger when it was last
    marked dead.
    """

    alive: bool = True
    ledger: Ledger = Ledger(OPEN, 0)
    step: str = "watching"
    sent: int = 0
    epoch: int = 0
    pushed: int | None = 0
    messages: frozenset[tuple[int, int]] = frozenset({(0, 0)})
    adopters: frozenset[Adopter] = frozenset()
    unheard: bool = False
    put_back: frozenset[tuple[int, int]] = frozenset()
    outages: int = 1
    losses: int = 2
    adopters_die: int = 1
    believed: tuple[int, int] | None = None


def successors(state: State, mistake: Mistake | None = None) -> Iterator[State]:
    """Every state that one step, loss or death leads to."""
    if state.alive:
        yield state._replace(alive=False, pushed=None, unheard=False)
        yield from _worker(state, mistake)
    for message in sorted(state.messages):
        number, epoch = message
        if number != state.pushed:
            adopters = state.adopters | {Adopter(epoch)}
            yield state._replace(messages=state.messages - {message}, adopters=adopters)
        elif state.outages:
            # Storage was away for all, and is back: somebody else comes first.
            adopters = state.adopters | {Adopter(epoch, overdue=True)}
            left = state.messages - {message}
            yield state._replace(messages=left, adopters=adopters, pushed=None, unheard=True, outages=0)
    for message in sorted(state.put_back if not state.unheard else ()):
        adopter = Adopter(message[1], overdue=mistake is Mistake.PUT_BACK_FOR_EVER)
        yield state._replace(put_back=state.put_back - {message}, adopters=state.adopters | {adopter})
    for adopter in sorted(state.adopters):
        others = state._replace(adopters=state.adopters - {adopter})
        yield from _adopter(others, adopter, mistake)
        if state.adopters_die:
            # What its ledger says leads to a fresh message that says the same.
            again = (100 + state.adopters_die, adopter.epoch)
            others = others._replace(adopters_die=state.adopters_die - 1)
            if state.unheard:  # its death is found later than that worker learns
                yield others._replace(put_back=others.put_back | {again})
            else:
                yield others._replace(messages=others.messages | {again})


def _worker(state: State, mistake: Mistake | None) -> Iterator[State]:
    early = mistake is Mistake.COMMIT_FIRST
    after_commit = "send" if early else "watching"
    if state.step == "watching" and (state.unheard or (state.pushed is not None and state.losses)):
        # Its next push is refused, after one without an answer; or one was carried out, and its reply lost.
        epoch = state.epoch + (mistake is not Mistake.EPOCH_KEPT)
        step = "commit" if early else "send"
        losses = state.losses - (not state.unheard)
        yield state._replace(pushed=None, unheard=False, losses=losses, step=step, epoch=epoch)
    elif state.step == "send":
        number = state.sent + 1
        after_send = "watching" if early or mistake is Mistake.NOT_TOLD else "commit"
        messages = state.messages | {(number, state.epoch)}
        yield state._replace(messages=messages, sent=number, pushed=number, step=after_send)
    elif state.step == "commit" and state.ledger.state == OPEN:
        yield state._replace(ledger=Ledger(OPEN, state.epoch), step=after_commit)
    elif state.step == "commit":
        yield state._replace(step="disowned", pushed=None)
    elif state.step == "watching" and state.ledger.state != OPEN:
        # Its heartbeat is refused.
        yield state._replace(step="disowned", pushed=None)


def _adopter(others: State, adopter: Adopter, mistake: Mistake | None) -> Iterator[State]:
    ledger = others.ledger
    if adopter.step == "read":
        superseded = ledger.epoch > adopter.epoch and mistake is not Mistake.EPOCH_IGNORED
        if ledger.state == GONE or (ledger.state == OPEN and superseded):
            yield others
        elif ledger.state == OPEN and adopter.overdue and mistake is not Mistake.OVERDUE_IGNORED:
            yield others._replace(put_back=others.put_back | {(200, adopter.epoch)})
        else:
            step = "mark" if ledger.state == OPEN else "wipe"
            yield others._replace(adopters=others.adopters | {adopter._replace(step=step, seen=ledger)})
    elif adopter.step == "mark":
        if ledger == adopter.seen or (mistake is Mistake.MARKED_BLINDLY and ledger.state == OPEN):
            adopters = others.adopters | {Adopter(adopter.epoch, "wipe")}
            believed = (adopter.epoch, ledger.epoch)
            yield others._replace(ledger=Ledger(DEAD, ledger.epoch), adopters=adopters, believed=believed)
        else:
            yield others._replace(adopters=others.adopters | {Adopter(adopter.epoch)})
    else:
        yield others._replace(ledger=Ledger(GONE, ledger.epoch))


def is_good(state: State) -> bool:
    """Either its worker watches a ledger that counts its message, and nothing else is about, or it was adopted."""
    if state.adopters or state.put_back:
        return False
    if state.ledger.state == GONE:
        return not state.messages
    watched = state.alive and state.step == "watching" and state.pushed is not None
    return watched and [epoch for _, epoch in state.messages] == [state.ledger.epoch]


def violation(before: State, state: State) -> str:
    """What must never be, "" if it is not."""
    if state.believed is not None and state.believed != before.believed:
        told, counted = state.believed
        if told < counted:
            return f"a worker at epoch {counted} was declared dead because of a message of epoch {told}"
        if state.alive and state.step == "watching" and state.ledger.state == DEAD and state.pushed is not None:
            return "a worker that watches over its message was declared dead"
        if state.unheard and state.step == "watching":
            return "a worker that could not be heard was declared dead"
    return ""
