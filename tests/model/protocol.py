"""Claims, ledgers, adoption, cancel and hand-over, reduced to their storage calls.

One step of an actor is one storage call (reading and deciding on what was read are the same step). Between any two
steps anybody else may move, crash, or be suspected wrongly. What a crash takes with it: the actors of the worker and
the messages they hold, except those that had not written anything yet (the queue gives them back). This is harsher
than a queue, which gives back all of them some time.

The names of the steps are those of the modules they stand for: `ownership.claim`, `background_run`, `log_repair`,
`adoption`, `cancellation`. A `mistake` leaves a step out or does it in the wrong order: the model must notice.
"""

from collections.abc import Iterator
from typing import Any

from tests.model.world import (
    CANCELLED,
    DECIDED,
    EVENT,
    EVENTS,
    MOST_IDS,
    MOST_MESSAGES,
    QUEUED,
    TERMINAL,
    Actor,
    Change,
    Mistake,
    Row,
    State,
    WorkerId,
    with_value,
)


def successors(state: State, mistake: Mistake | None = None) -> Iterator[State]:
    """Every state that one step, delivery, crash or wrong suspicion leads to."""
    world = _World(state, mistake)
    # In an order of their own: that of a set is another one in every process.
    for actor in sorted(state.actors, key=_place):
        yield from getattr(_Move(world, actor), f"{actor.kind}_{actor.step}")()
    yield from world.deliveries()
    yield from world.cancels()
    yield from world.crashes()


class _World:
    def __init__(self, state: State, mistake: Mistake | None) -> None:
        self.state = state
        self.mistake = mistake
        self.ledgers = dict(state.ledgers)

    # -- what happens to workers --------------------------------------------------------------------------------------

    def deliveries(self) -> Iterator[State]:
        state = self.state
        for worker, alive in enumerate(state.alive):
            if not alive:
                continue
            for response, count in enumerate(state.messages):
                if count and not self._busy(worker, ("run",), response):
                    messages = with_value(state.messages, response, count - 1)
                    yield self._enter(Actor(worker, "run", response, "read"), messages=messages)
            for dead in sorted(state.watch):
                wrongly = self._is_current(dead)
                if self._busy(worker, ("adopt",), dead) or (wrongly and (dead[0] == worker or not state.suspicions)):
                    continue
                yield self._enter(
                    Actor(worker, "adopt", dead, "open"),
                    watch=state.watch - {dead},
                    suspicions=state.suspicions - wrongly,
                )

    def cancels(self) -> Iterator[State]:
        state = self.state
        if state.cancels:
            for worker, alive in enumerate(state.alive):
                for response in range(len(state.rows)):
                    if alive:
                        yield self._enter(Actor(worker, "cancel", response, "read"), cancels=state.cancels - 1)

    def crashes(self) -> Iterator[State]:
        state = self.state
        if not state.crashes or sum(state.alive) < 2:
            return
        for worker, alive in enumerate(state.alive):
            if alive:
                lost = [actor for actor in state.actors if actor.worker == worker]
                messages, watch = list(state.messages), set(state.watch)
                for actor in lost:
                    if actor.opened is None and not actor.reclaims:
                        if actor.kind == "run":
                            messages[actor.of] = min(messages[actor.of] + 1, MOST_MESSAGES)
                        elif actor.kind == "adopt":
                            watch.add(actor.of)
                yield state._replace(
                    actors=frozenset(actor for actor in state.actors if actor.worker != worker),
                    alive=with_value(state.alive, worker, False),
                    messages=tuple(messages),
                    watch=frozenset(watch),
                    crashes=state.crashes - 1,
                )

    def _busy(self, worker: int, kinds: tuple[str, ...], of: object) -> bool:
        return any(actor.worker == worker and actor.kind in kinds and actor.of == of for actor in self.state.actors)

    def _is_current(self, worker_id: WorkerId) -> bool:
        return self.state.alive[worker_id[0]] and self.state.ids[worker_id[0]] == worker_id[1]

    def _enter(self, actor: Actor, **changes: Any) -> State:
        return self.state._replace(actors=self.state.actors | {actor}, **changes)


class _Move:
    """One actor's next step; each method is one storage call, and yields what may become of it."""

    def __init__(self, world: _World, actor: Actor) -> None:
        self.state = world.state
        self.ledgers = world.ledgers
        self.mistake = world.mistake
        self.actor = actor
        self.others = self.state.actors - {actor}
        # Only where `of` is a response.
        self.r: int = actor.of if isinstance(actor.of, int) else 0
        self.row = self.state.rows[self.r]
        self.lease = self.state.leases[self.r]
        self.log = self.state.logs[self.r]

    def to(self, step: str, *, row: Row | None = None, world: Change | None = None, **mine: Any) -> State:
        """Go on with that step, knowing `row`."""
        changed = self.actor._replace(step=step, **mine)
        if row is not None:
            changed = changed._replace(row=row)
        return self.state._replace(actors=self.others | {changed}, **(world or {}))

    def gone(self, **world: Any) -> State:
        """The invocation is over."""
        return self.state._replace(actors=self.others, **world)

    def with_row(self, row: Row) -> Change:
        return {"rows": with_value(self.state.rows, self.r, row)}

    def with_lease(self, lease: object) -> Change:
        return {"leases": with_value(self.state.leases, self.r, lease)}

    def with_record(self, kind: str, generation: int) -> Change:
        return {"logs": with_value(self.state.logs, self.r, (*self.log, (generation, kind)))}

    def may_append(self, lease: object) -> bool:
        fenced = self.lease == lease and self.actor.position == len(self.log)
        return fenced or self.mistake is Mistake.APPEND_WITHOUT_FENCE

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def open_entry(self, item: object, then: str) -> Iterator[State]:
        """One transaction; refused, the worker takes a new id and does it again."""
        worker = self.actor.worker
        own: WorkerId = (worker, self.state.ids[worker])
        state, entries = self.ledgers.get(own, ("new", frozenset()))
        # Only the last transaction of an id can have closed it: an id whose ledger is gone was closed or adopted.
        if state == "dead":
            if own[1] + 1 < MOST_IDS:
                yield self.to(self.actor.step, world={"ids": with_value(self.state.ids, worker, own[1] + 1)})
            return
        ledgers = self.state.ledgers - {(own, (state, entries))} | {(own, ("open", entries | {item}))}
        watch = self.state.watch | {own} if state == "new" else self.state.watch
        yield self.to(then, world={"ledgers": ledgers, "watch": watch}, opened=own)

    def close_entry(self, item: object, **world: Any) -> Iterator[State]:
        """Forget the entry; an idle worker closes its ledger and never uses its id again."""
        opened = self.actor.opened
        if opened is None or opened not in self.ledgers or self.ledgers[opened][0] != "open":
            yield self.gone(**world)
            return
        entries = self.ledgers[opened][1]
        ledgers = self.state.ledgers - {(opened, ("open", entries))}
        if entries - {item}:
            yield self.gone(**{"ledgers": ledgers | {(opened, ("open", entries - {item}))}, **world})
            return
        number = opened[1] + (self.mistake is not Mistake.ID_USED_AGAIN)
        ids = with_value(self.state.ids, opened[0], max(self.state.ids[opened[0]], number))
        yield self.gone(**{"ledgers": ledgers, "watch": self.state.watch - {opened}, "ids": ids, **world})

    def is_open(self, worker_id: WorkerId) -> bool:
        return worker_id in self.ledgers and self.ledgers[worker_id][0] == "open"

    # -- claim --------------------------------------------------------------------------------------------------------

    def run_read(self) -> Iterator[State]:
        row = self.row
        if row.status != QUEUED:
            yield self.to("close" if self.mistake is Mistake.NO_REPAIR else "repair_look", row=row)
        elif row.owner is not None and row.owner != self.own_id():
            yield self.to("ask", row=row)
        else:
            yield self.to(self.after_ask(), row=row)

    def own_id(self) -> WorkerId:
        return (self.actor.worker, self.state.ids[self.actor.worker])

    def after_ask(self) -> str:
        return "take" if self.actor.opened is not None or self.mistake is Mistake.LEDGER_AFTER_ROW else "open"

    def run_ask(self) -> Iterator[State]:
        """Is its owner's ledger open?"""
        assert self.actor.row is not None
        assert self.actor.row.owner is not None
        yield self.to("close" if self.is_open(self.actor.row.owner) else self.after_ask())

    def run_open(self) -> Iterator[State]:
        late = self.mistake is Mistake.LEDGER_AFTER_ROW
        yield from self.open_entry(("run", self.r), self.after_take() if late else "take")

    def run_take(self) -> Iterator[State]:
        """CAS of the row."""
        before = self.actor.row
        assert before is not None
        if self.row != before:
            yield self.to("close" if self.mistake is Mistake.LOSER_LEAVES else "read")
            return
        owner = self.actor.opened or self.own_id()
        row = Row(QUEUED, before.generation + 1, owner)
        # Where the lease is to be broken, `items` remembers it until then.
        displace = ("displace",) if before.owner is not None else ()
        step = "open" if self.actor.opened is None else ("break" if displace else "acquire")
        yield self.to(step, row=row, world=self.with_row(row), items=displace)

    def after_take(self) -> str:
        return "break" if self.actor.items else "acquire"

    def run_break(self) -> Iterator[State]:
        kept = self.mistake is Mistake.OWNER_NOT_DISPLACED
        yield self.to("acquire", world={} if kept else self.with_lease(None))

    def token(self) -> object:
        assert self.actor.row is not None
        return (self.actor.row.owner, self.actor.row.generation)

    def run_acquire(self) -> Iterator[State]:
        assert self.actor.row is not None
        if self.lease not in (None, self.token()):
            yield self.to("read", items=())
            return
        first = self.actor.row.generation == 1
        blind = self.mistake is Mistake.NO_SECOND_LOOK
        step = "emit" if first else "end" if blind else "look"
        yield self.to(step, world=self.with_lease(self.token()), position=0, said=0, items=())

    def run_look(self) -> Iterator[State]:
        assert self.actor.row is not None
        ours = self.row.generation == self.actor.row.generation and self.row.status == QUEUED
        yield self.to("end" if ours else "release")

    def run_release(self) -> Iterator[State]:
        leaves = self.mistake is Mistake.SLEEPER_LEAVES
        yield self.to("close" if leaves else "read", world=self.with_lease(None) if self.lease == self.token() else {})

    def run_end(self) -> Iterator[State]:
        yield self.to("emit", position=len(self.log))

    # -- run ----------------------------------------------------------------------------------------------------------

    def run_emit(self) -> Iterator[State]:
        actor = self.actor
        assert actor.row is not None
        if self.state.hand_overs:
            yield self.to("leave", world={"hand_overs": self.state.hand_overs - 1})
        if actor.said == EVENTS:
            early = self.mistake is Mistake.FRAME_BEFORE_ROW
            yield self.to("frame" if early else "decide")
        elif self.may_append(self.token()):
            record = self.with_record(EVENT, actor.row.generation)
            yield self.to("emit", world=record, said=actor.said + 1, position=len(self.log) + 1)
        else:
            yield self.to("lost")

    def run_decide(self) -> Iterator[State]:
        assert self.actor.row is not None
        blind = self.mistake is Mistake.STATUS_WITHOUT_ETAG
        if self.row == self.actor.row or blind:
            row = self.actor.row._replace(status=DECIDED)
            early = self.mistake is Mistake.FRAME_BEFORE_ROW
            yield self.to("close" if early else "frame", row=row, world=self.with_row(row))
        else:
            yield self.to("lost")

    def run_frame(self) -> Iterator[State]:
        assert self.actor.row is not None
        if self.may_append(self.token()):
            record = self.with_record(TERMINAL, self.actor.row.generation)
            yield self.to("decide" if self.mistake is Mistake.FRAME_BEFORE_ROW else "close", world=record)
        else:
            yield self.to("lost")

    def run_lost(self) -> Iterator[State]:
        """Refused: what does the row say?"""
        row = self.row
        if row.status != QUEUED:
            yield self.to("repair_look", row=row)
        elif row.owner == self.actor.opened and self.mistake is not Mistake.REFUSED_OWNER_LEAVES:
            # It stays open in its ledger, and is opened again in the one that the worker has now.
            yield self.to("read", opened=None, reclaims=True, items=())
        else:
            yield self.to("close")

    def run_leave(self) -> Iterator[State]:
        """Hand-over: the owner leaves the row …"""
        assert self.actor.row is not None
        if self.row == self.actor.row:
            yield self.to("yield_lease", world=self.with_row(self.row._replace(owner=None)))
        else:
            yield self.to("lost")

    def run_yield_lease(self) -> Iterator[State]:
        """… gives its lease back …"""
        yield self.to("send", world=self.with_lease(None) if self.lease == self.token() else {})

    def run_send(self) -> Iterator[State]:
        """… and sends a start message."""
        sent = self.mistake is not Mistake.NO_MESSAGE_AT_HAND_OVER
        yield self.to("close", world=self.with_message(self.r) if sent else {})

    def with_message(self, response: int) -> Change:
        count = min(self.state.messages[response] + 1, MOST_MESSAGES)
        return {"messages": with_value(self.state.messages, response, count)}

    def run_close(self) -> Iterator[State]:
        yield from self.close_entry(("run", self.r))

    # -- completing a log ---------------------------------------------------------------------------------------------

    def run_repair_look(self) -> Iterator[State]:
        closed = bool(self.log) and self.log[-1][1] == TERMINAL
        yield self.to("close" if closed else "repair_break")

    def run_repair_break(self) -> Iterator[State]:
        yield self.to("repair_acquire", world=self.with_lease(None))

    def repairer(self) -> object:
        return ("repair", self.actor.worker, self.actor.kind)

    def run_repair_acquire(self) -> Iterator[State]:
        if self.lease is None:
            yield self.to("repair_end", world=self.with_lease(self.repairer()))
        else:
            yield self.to("repair_look")

    def run_repair_end(self) -> Iterator[State]:
        closed = bool(self.log) and self.log[-1][1] == TERMINAL
        yield self.to("close" if closed else "repair_append", position=len(self.log))

    def run_repair_append(self) -> Iterator[State]:
        if self.may_append(self.repairer()):
            yield self.to("close", world=self.with_record(TERMINAL, self.row.generation))
        else:
            yield self.to("repair_look")

    # -- cancel -------------------------------------------------------------------------------------------------------

    def cancel_read(self) -> Iterator[State]:
        yield self.gone() if self.row.status != QUEUED else self.to("decide", row=self.row)

    def cancel_decide(self) -> Iterator[State]:
        if self.row != self.actor.row:
            yield self.to("read")
            return
        row = self.row._replace(status=CANCELLED)
        # An owner sees it, or is dead and will be adopted; without one the canceller completes the log.
        if row.owner is None:
            yield self.to("repair_look", row=row, world=self.with_row(row))
        else:
            yield self.gone(**self.with_row(row))

    cancel_repair_look = run_repair_look
    cancel_repair_break = run_repair_break
    cancel_repair_acquire = run_repair_acquire
    cancel_repair_end = run_repair_end
    cancel_repair_append = run_repair_append

    def cancel_close(self) -> Iterator[State]:
        yield self.gone()

    # -- adoption -----------------------------------------------------------------------------------------------------

    @property
    def dead(self) -> WorkerId:
        dead: WorkerId = self.actor.of
        return dead

    def adopt_open(self) -> Iterator[State]:
        if self.mistake is Mistake.NO_ADOPTION_ENTRY:
            yield self.to("mark", reclaims=True)
        else:
            yield from self.open_entry(("adopt", self.dead), "mark")

    def adopt_mark(self) -> Iterator[State]:
        if self.dead not in self.ledgers:
            yield self.to("close")
            return
        state, entries = self.ledgers[self.dead]
        marked = {"ledgers": self.state.ledgers - {(self.dead, (state, entries))} | {(self.dead, ("dead", entries))}}
        yield self.to("entries", world={} if self.mistake is Mistake.NOT_MARKED_DEAD else marked)

    def adopt_entries(self) -> Iterator[State]:
        entries = self.ledgers[self.dead][1] if self.dead in self.ledgers else frozenset()
        items = tuple(sorted(entries, key=repr))
        yield self.to("wipe" if self.mistake is Mistake.WIPED_FIRST else "care", items=items)

    def adopt_care(self) -> Iterator[State]:
        last = "close" if self.mistake is Mistake.WIPED_FIRST else "wipe"
        if not self.actor.items:
            yield self.to(last)
            return
        (kind, of), rest = self.actor.items[0], self.actor.items[1:]
        world = self.with_message(of) if kind == "run" else {"watch": self.state.watch | {of}}
        yield self.to("care", world=world, items=rest)

    def adopt_wipe(self) -> Iterator[State]:
        kept = frozenset(each for each in self.state.ledgers if each[0] != self.dead)
        world: Change = {"ledgers": kept}
        worker, number = self.dead
        if self.mistake is not Mistake.ID_USED_AGAIN:
            # It is never used again: the id's next transaction finds its row missing.
            world["ids"] = with_value(self.state.ids, worker, max(self.state.ids[worker], number + 1))
        yield self.to("care" if self.mistake is Mistake.WIPED_FIRST else "close", world=world)

    def adopt_close(self) -> Iterator[State]:
        yield from self.close_entry(("adopt", self.dead))


def _place(actor: Actor) -> tuple[int, str, str, str]:
    return (actor.worker, actor.kind, repr(actor.of), actor.step)
