"""What each mode costs in storage operations, the host's own receive and delete included; heartbeats are not."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from storage.driver import WORK_QUEUE
from tests.support.engines import Fleet, Host, background, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LEDGER_OF_ONE = 3
"""Opening, its watch message, and the message's deletion."""

END_OF_LEDGER = 2
"""The note for retention and the end of the ledger: once a process has been idle for long, whatever it did before."""


async def cost(hosts: Fleet, host: Host) -> Counter[str]:
    """Everything since the start, when nobody has anything to do; a message costs the host its reception and its
    deletion.
    """
    await hosts.resting()
    counted = Counter(name for name in host.calls if name != "queue.push_watch")
    counted["host"] = 2 * sum(each.received[WORK_QUEUE] for each in hosts.hosts)
    return counted


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unstored_response_costs_nothing(stream: bool) -> None:
    async with fleet(Teller(5)) as hosts:
        host = hosts.host()
        if stream:
            await (await host.stream({"input": "hi", "store": False})).whole()
        else:
            await host.create({"input": "hi", "store": False})
        assert (await cost(hosts, host)).total() == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreground_response_alone_costs_four(stream: bool) -> None:
    async with fleet(Teller(5)) as hosts:
        host = hosts.host()
        if stream:
            await (await host.stream({"input": "hi"})).whole()
        else:
            await host.create({"input": "hi"})
        counted = await cost(hosts, host)
        assert counted["row.insert"] == 1
        assert counted.total() <= 1 + LEDGER_OF_ONE, counted


@pytest.mark.parametrize("in_background", [False, True])
async def test_an_idempotency_key_costs_three_more_and_no_note_when_it_is_repeated(in_background: bool) -> None:
    async with fleet(Teller(5)) as hosts:
        host = hosts.host()
        body = {"input": "hi", "background": in_background}
        made = await host.create(body, idempotency_key="k")
        counted = await cost(hosts, host)
        assert (counted["key.read"], counted["expiry.note"], counted["key.claim"]) == (1, 1, 1)
        assert counted.total() <= (10 if in_background else 1 + LEDGER_OF_ONE) + 3, counted
        assert (await host.create(body, idempotency_key="k"))["id"] == made["id"]
        await hosts.quiet()
        noted = await hosts.storage.expiry.due(hosts.now() + 7_200, limit=10)
        assert sum(bool(response.request_key) for due in noted for response in due.responses) == 1


async def test_a_large_foreground_request_costs_two_more() -> None:
    async with fleet(Teller(5)) as hosts:
        host = hosts.host()
        await host.create({"input": "x" * 40_000})
        counted = await cost(hosts, host)
        del counted["payload.put"]  # the snapshot's may be another
        assert counted["expiry.note"] == 1
        assert counted.total() <= 1 + LEDGER_OF_ONE + 1, counted


async def test_a_process_that_falls_idle_costs_two_more_however_much_it_did() -> None:
    async with fleet(Teller(5)) as hosts:
        host = hosts.host()
        for _ in range(5):
            await host.create({"input": "hi"})
            await hosts.resting()
        worked = Counter(host.calls)
        await hosts.quiet()
        ended = Counter(host.calls) - worked
        assert {name: count for name, count in ended.items() if name != "queue.push_watch"} == {
            "expiry.note": 1,
            "ledger.end": 1,
        }
        assert ended.total() == END_OF_LEDGER
        assert worked["ledger.begin"] + worked["ledger.commit"] == 5


async def test_sixteen_foreground_responses_at_once_cost_two_and_a_half_each() -> None:
    async with fleet(Teller(5, pause=0.5)) as hosts:
        host = hosts.host()
        await asyncio.gather(*(host.create({"input": "hi"}) for _ in range(16)))
        counted = await cost(hosts, host)
        assert counted["row.insert"] == 16
        assert counted.total() - 16 <= 1.5 * 16, counted


@pytest.mark.parametrize("eager", [False, True])
async def test_a_background_response_costs_ten(eager: bool) -> None:
    async with fleet(Teller(5)) as hosts:
        host = hosts.host(eager_start=eager)
        await host.create(background())
        counted = await cost(hosts, host)
        assert counted.total() <= 10, counted


async def test_an_eager_background_stream_costs_ten_and_its_appends() -> None:
    async with fleet(Teller(5, pause=0.1)) as hosts:  # shorter than a look for a cancel
        host = hosts.host(eager_start=True)
        await (await host.stream(background())).whole()
        counted = await cost(hosts, host)
        assert counted.total() - counted["log.append"] <= 10, counted


async def test_a_queued_background_stream_costs_nine_its_appends_and_the_ledger() -> None:
    async with fleet(Teller(5, pause=0.1)) as hosts:  # shorter than a look for a cancel
        api = hosts.host(queues=False)
        host = hosts.host()
        answer = await api.inside(api.engine.create(_call(), _stays))
        await hosts.finished(answer["id"])
        counted = await cost(hosts, host) + Counter(api.calls)
        assert counted.total() - counted["log.append"] <= 9 + LEDGER_OF_ONE, counted


def _call() -> Any:
    from resilience.engine import Call

    request = {"input": "hi", "background": True, "stream": True}
    return Call(request=request, principal="somebody", client_headers={}, query_parameters={})


async def _stays() -> bool:
    return False


async def test_a_get_costs_one() -> None:
    async with fleet(Teller(5)) as hosts:
        host = hosts.host()
        response = await host.create({"input": "hi"})
        await hosts.quiet()
        before = len(host.calls)
        await host.get(response["id"])
        assert host.calls[before:] == ["row.read"]


async def test_a_run_polls_its_row_once_a_second_and_beats_every_twenty() -> None:
    """A minute of silence of one run; pushes of the watch message aside."""
    async with fleet(Teller(2, pause=60.0)) as hosts:
        host = hosts.host()
        response_id = (await host.create(background()))["id"]
        await asyncio.sleep(5)
        before = len(host.calls)
        await asyncio.sleep(50)
        counted = Counter(host.calls[before:])
        assert set(counted) <= {"row.read", "ledger.commit", "queue.push_watch"}, counted
        assert counted["row.read"] <= 64
        assert counted["ledger.commit"] <= 3
        await hosts.finished(response_id, seconds=200)


async def test_a_quarter_million_characters_in_two_thousand_deltas_cost_a_handful_of_appends() -> None:
    async with fleet(Teller(2_000)) as hosts:
        host = hosts.host(eager_start=True)
        reader = await host.stream(background())
        began = asyncio.get_running_loop().time()
        await reader.whole()
        duration = asyncio.get_running_loop().time() - began
        counted = await cost(hosts, host)
        assert counted["log.append"] <= 20 + duration / 0.01
