"""Who may join a chain, and what it is after a turn has left: a matter of the chain's row alone (S1 to S5)."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConversationForkNotSupported, ConversationLocked, ConversationQueueFull
from resilience.chain import MAX_PENDING, chain_id, join, takes_part
from resilience.dispatch import Disposition
from resilience.options import ResponsesServerOptions
from resilience.record import RequestRecord
from storage.chains import ChainRow, Turn

LOCKING = ResponsesServerOptions()
STEERABLE = ResponsesServerOptions(steerable_conversations=True)
NEW = ChainRow(partition_key="tenant-partition")
STORED = replace(NEW, etag="1")


def record_of(response_id: str = "resp_new", **request: Any) -> RequestRecord:
    return RequestRecord(
        response_id=response_id,
        created_at=1_700_000_000,
        principal="somebody",
        request={"input": "hi", **request},
        client_headers={},
        query_parameters={},
        agent_reference=None,
    )


def with_turns(*ids: str) -> ChainRow:
    chain = STORED
    for each in ids:
        chain = chain.with_turn(each, foreground=False)
    return chain


@pytest.mark.parametrize("disposition", Disposition)
@pytest.mark.parametrize("conversation", [None, "conv_a", {"id": "conv_a"}])
@pytest.mark.parametrize("options", [LOCKING, STEERABLE], ids=["locking", "steerable"])
def test_stored_turns_of_conversations_and_of_steerable_chains_take_part(
    disposition: Disposition, conversation: Any, options: ResponsesServerOptions
) -> None:
    expected = disposition is not Disposition.TRANSIENT and (bool(conversation) or options.steerable_conversations)
    assert takes_part(record_of(conversation=conversation), disposition, options) is expected


def test_turns_of_one_partition_share_an_id_if_they_share_a_chain() -> None:
    first, second = record_of("resp_1"), record_of("resp_2", previous_response_id="resp_1")
    assert chain_id("t-p", first, STEERABLE) == chain_id("t-p", second, STEERABLE)
    assert chain_id("t-p", first, LOCKING) != chain_id("t-p", second, LOCKING)
    assert chain_id("t-p", first, STEERABLE) != chain_id("other-p", first, STEERABLE)
    spoken = record_of("resp_3", conversation="conv_a")
    assert chain_id("t-p", spoken, LOCKING) == chain_id("t-p", record_of("resp_4", conversation="conv_a"), LOCKING)


def test_a_chain_id_shows_nothing_of_the_request() -> None:
    record = record_of("resp_secret", conversation="conv_secret")
    for options in (LOCKING, STEERABLE):
        shown = chain_id("tenant-partition", record, options)
        assert shown.startswith("chain_")
        assert all(part not in shown for part in ("secret", "tenant", "partition"))


def test_the_first_turn_runs_at_once() -> None:
    joining = join(NEW, record_of(), STEERABLE, foreground=True)
    assert (joining.number, joining.steered, joining.waits) == (1, False, False)
    assert joining.chain.active == Turn("resp_new", 1, True, "")
    assert (joining.chain.last, joining.chain.turns) == ("resp_new", 1)


def test_a_turn_behind_the_active_one_waits_where_that_is_allowed() -> None:
    joining = join(with_turns("a"), record_of(conversation="c"), STEERABLE, foreground=False)
    assert (joining.number, joining.steered, joining.waits) == (2, True, True)
    assert joining.chain.pending == (Turn("resp_new", 2, False, "a"),)
    with pytest.raises(ConversationLocked):
        join(with_turns("a"), record_of(conversation="c"), LOCKING, foreground=False)


@pytest.mark.parametrize("options", [LOCKING, STEERABLE], ids=["locking", "steerable"])
def test_a_turn_behind_a_handler_that_winds_down_waits_and_is_not_steered(options: ResponsesServerOptions) -> None:
    ending = with_turns("a").without_turn("a", runs_on=True)
    joining = join(ending, record_of(conversation="c"), options, foreground=False)
    assert (joining.steered, joining.waits) == (False, True)
    assert not joining.chain.may_start("resp_new")
    assert joining.chain.wound_down("b") == joining.chain
    assert joining.chain.wound_down("a").may_start("resp_new")


def test_one_runs_and_nine_wait_and_the_next_is_refused() -> None:
    chain = with_turns(*(f"t{n}" for n in range(MAX_PENDING)))
    chain = join(chain, record_of("t9", conversation="c"), STEERABLE, foreground=False).chain
    assert len(chain.pending) == MAX_PENDING == 9
    with pytest.raises(ConversationQueueFull):
        join(chain, record_of(conversation="c"), STEERABLE, foreground=False)


@pytest.mark.parametrize(
    ("previous", "fits"),
    [("b", True), ("a", False), ("c", False), (None, True)],
    ids=["last", "earlier", "none", "new"],
)
def test_only_the_last_turn_can_be_continued(previous: str | None, fits: bool) -> None:
    chain = with_turns("a", "b")
    if fits:
        assert join(chain, record_of(previous_response_id=previous), STEERABLE, foreground=False).number == 3
        return
    with pytest.raises(ConversationForkNotSupported) as refused:
        join(chain, record_of(previous_response_id=previous), STEERABLE, foreground=False)
    assert refused.value.param == "previous_response_id"


def test_a_fork_of_a_full_queue_is_told_that_it_is_a_fork() -> None:
    chain = with_turns(*(f"t{n}" for n in range(10)))
    with pytest.raises(ConversationForkNotSupported):
        join(chain, record_of(previous_response_id="t0"), STEERABLE, foreground=False)


def test_a_turn_that_was_retracted_and_the_one_before_it_can_both_be_continued() -> None:
    chain = with_turns("a").without_turn("a").with_turn("b", foreground=True).without_turn("b", retract=True)
    assert (chain.last, chain.alternate) == ("a", "b")
    for previous in ("a", "b"):
        joined = join(chain, record_of(previous_response_id=previous), STEERABLE, foreground=False).chain
        assert (joined.last, joined.alternate) == ("resp_new", "")


def test_a_turn_that_something_followed_is_not_retracted() -> None:
    chain = with_turns("a", "b").without_turn("a", retract=True)
    assert (chain.last, chain.alternate) == ("b", "")


def test_the_oldest_turn_that_waits_is_next() -> None:
    chain = with_turns("a", "b", "c")
    assert chain.without_turn("b").pending == (Turn("c", 3, False, "b"),)
    assert chain.without_turn("a").may_start("b")
    assert chain.without_turn("x") == chain
    assert chain.without_turn("a").without_turn("b").without_turn("c").unfinished == ()


def test_of_a_turn_without_trace_nothing_can_be_continued() -> None:
    """Also not by those behind it, should they leave without trace as well."""
    chain = with_turns("a").without_turn("a").with_turn("b", foreground=True).with_turn("c", foreground=True)
    left = chain.without_trace("b")
    assert (left.last, left.active) == ("c", Turn("c", 3, True, "a"))
    assert (left.without_trace("c").last, left.without_trace("c").alternate) == ("a", "")
    assert left.without_turn("c", retract=True).last == "a"
    assert chain.without_trace("x") == chain


def test_a_deleted_turn_is_continued_from_the_one_before_by_everybody() -> None:
    chain = with_turns("a", "b").without_turn("a")
    later = chain.without_turn("b").with_turn("c", foreground=True)
    forgotten = later.continued_from("a", instead_of="b")
    assert (forgotten.last, forgotten.active) == ("c", Turn("c", 3, True, "a"))
    assert chain.without_turn("b").continued_from("a", instead_of="b").last == "a"
    assert replace(chain, alternate="x").continued_from("a", instead_of="x").alternate == ""


@given(st.lists(st.tuples(st.sampled_from(["join", "end", "retract", "trace"]), st.integers(0, 9)), max_size=40))
def test_turns_run_in_the_order_of_their_numbers_whatever_leaves(steps: list[tuple[str, int]]) -> None:
    """A waiting turn is never forgotten, and an idle chain never has one."""
    chain, made = STORED, 0
    started: list[int] = []
    for what, which in steps:
        if what == "join" and len(chain.pending) < MAX_PENDING:
            made += 1
            chain = chain.with_turn(f"t{made}", foreground=False)
        elif chain.unfinished:
            turn = chain.unfinished[which % len(chain.unfinished)]
            before = chain
            chain = (
                chain.without_trace(turn.id) if what == "trace" else chain.without_turn(turn.id, retract=what != "end")
            )
            assert (
                chain.unfinished == tuple(each for each in before.unfinished if each.id != turn.id) or what == "trace"
            )
        assert bool(chain.active) >= bool(chain.pending)
        if chain.active is not None and chain.active.number not in started:
            started.append(chain.active.number)
        numbers = [turn.number for turn in chain.unfinished]
        assert numbers == sorted(set(numbers))
    assert started == sorted(started)
    assert chain.turns == made
