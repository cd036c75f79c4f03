"""A turn that its client was told is not there, and that somebody has claimed all the same, begins alone (S3, V9).

Its insert was carried out, and nobody heard of it. It leaves its chain when the handler is gone, wherever that is.
"""

import asyncio
from itertools import pairwise

import pytest

from resilience.log_context import fields
from resilience.options import ResponsesServerOptions
from storage.errors import StorageError, StorageUnavailable
from storage.seam import Moment
from tests.integration.test_engine_retracted_turns import lose_an_insert
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, key_of, until
from tests.support.invariants import assert_chain
from tests.support.turns import Turns, lasting
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STEERABLE = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)

LOOKS = 2
"""Looks at the row that fail at once: the one of who gives it up, and the one of who would run it."""

RUNS, CLEANS_UP = 6.0, 8.0
"""Seconds. The look after ten falls into the cleanup, whether the handler began at once or two seconds later."""


async def check_one_at_a_time(hosts: Fleet, turns: Turns, *known: str) -> None:
    """Every handler began after the one before; what is left of the chain is the turns that clients know of."""
    await hosts.quiet()
    spans = sorted(turns.spans, key=lambda span: span[1])
    for (_, _, ended), (_, began, _) in pairwise(spans):  # of those without a row, too: `assert_chain` knows nothing
        assert ended is not None
        assert ended < began
    assert await hosts.ids() == sorted(known)
    await assert_chain(hosts.storage, PRINCIPAL, known[-1], turns.spans)
    chain = await hosts.storage.chains.read(key_of(known[-1]))
    assert (chain.last, chain.ending, chain.unfinished) == (known[-1], "", ())


@pytest.mark.parametrize("here", [False, True], ids=["elsewhere", "here"])
async def test_the_next_turn_begins_after_the_cleanup_of_an_abandoned_one(here: bool) -> None:
    turns = Turns(lasting(RUNS), cleanup=CLEANS_UP)
    async with fleet(turns) as hosts:
        api = hosts.host(options=STEERABLE, queues=here)
        other = hosts.host(options=STEERABLE, queues=not here)
        lose_an_insert(api, looks=LOOKS)
        with pytest.raises(StorageError):
            await api.create(background("first", conversation="c"))
        await until(lambda: turns.entered("first"))
        second = await other.create(background("second", conversation="c"))
        assert (await hosts.finished(second["id"])).status == "completed"
        assert [turns.entered(text) for text in ("first", "second")] == [True, True]
        await check_one_at_a_time(hosts, turns, second["id"])


class ClaimedHere:
    """The process that gives a turn up has claimed it meanwhile, and hears of that after `HELD` seconds.

    Nobody answers who looks at the row before. With `behind`, another turn joins the chain ahead of it.
    """

    HELD = 6.0
    """Longer than from one look to the next."""

    def __init__(self, host: Host, behind: Host | None) -> None:
        self.claimed = False
        self.ahead: list[str] = []
        self._abandoned = ""
        self._behind = behind
        host.seam.hooks.append(self._passed)

    async def _passed(self, name: str, moment: Moment) -> None:
        task = asyncio.current_task()
        if (name, moment) == ("row.insert", "before") and not self._abandoned:
            self._abandoned = str(fields()["response_id"])
            if self._behind is not None:
                self.ahead.append((await self._behind.create(background("ahead", conversation="c")))["id"])
        elif fields().get("response_id") != self._abandoned or self.claimed:
            return
        elif (name, moment) == ("row.replace", "after"):
            self.claimed = True
            await asyncio.sleep(self.HELD)
        elif name == "row.read" and task is not None and task.get_name().startswith("abandoning"):
            raise StorageUnavailable


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after another"])
async def test_an_abandoned_turn_that_its_own_process_has_claimed_runs_before_the_next_one(waits: bool) -> None:
    """The row names that worker, and the run is not there yet. What had to wait was nobody's before."""
    turns = Turns(lasting(10))
    async with fleet(turns) as hosts:
        host = hosts.host(options=STEERABLE, eager_start=True)
        other = hosts.host(options=STEERABLE, queues=False)
        claims = ClaimedHere(host, other if waits else None)
        lose_an_insert(host, looks=0, refused=int(waits))
        with pytest.raises(StorageError):
            await host.create(background("first", conversation="c"))
        second = await other.create(background("second", conversation="c"))
        assert (await hosts.finished(second["id"])).status == "completed"
        assert claims.claimed
        assert turns.entered("first")
        await check_one_at_a_time(hosts, turns, *claims.ahead, second["id"])
