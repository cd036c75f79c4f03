"""Deleting, and the input items of a response (V10, contract section 1)."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from protocol.errors import CannotDeleteInFlight, PreviousResponseNotFound, ResponseDeleted, ResponseNotFound
from protocol.items import ListQuery
from storage.errors import StorageUnavailable
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, start_message, until
from tests.support.handlers import Teller
from tests.support.invariants import check_nothing_left, check_response
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

MODES: dict[str, dict[str, Any]] = {
    "c1": {},
    "c2": {"stream": True},
    "c3": {"background": True},
    "c4": {"background": True, "stream": True},
}
MODE = pytest.mark.parametrize("mode", MODES)


async def ask(hosts: Fleet, host: Host, mode: str, text: str = "hi") -> str:
    body = {"input": text, "background": bool(MODES[mode].get("background"))}
    if MODES[mode].get("stream"):
        reader = await host.stream(body)
        response_id = await reader.response_id()
        await reader.whole()
    else:
        response_id = (await host.create(body))["id"]
    await hosts.finished(response_id)
    return str(response_id)


@MODE
@pytest.mark.parametrize("size", [10, 60_000])
async def test_a_finished_response_leaves_nothing_but_its_marker(mode: str, size: int) -> None:
    async with fleet(Teller(5, checkpoints=True)) as hosts:
        host, other = hosts.host(segment_blocks=2), hosts.host(queues=False)
        response_id = await ask(hosts, host, mode, "x" * size)
        await other.delete(response_id)
        for each in (host, other):
            with pytest.raises(ResponseDeleted):
                await each.get(response_id)
            with pytest.raises(ResponseDeleted):
                await each.input_items(response_id)
            with pytest.raises(ResponseDeleted):
                await each.replay(response_id)
            with pytest.raises(ResponseNotFound):
                await each.cancel(response_id)
            with pytest.raises(ResponseNotFound):
                await each.delete(response_id)
            with pytest.raises(PreviousResponseNotFound):
                await each.create({"input": "x", "previous_response_id": response_id})
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
        await host.deliver(start_message(response_id))
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
        assert len(hosts.entries[response_id]) == 1


@pytest.mark.parametrize("mode", ["c3", "c4"])
@pytest.mark.parametrize("owned", [False, True])
async def test_a_response_in_flight_is_not_deleted(mode: str, owned: bool) -> None:
    async with fleet(Teller(10, pause=0.5)) as hosts:
        api = hosts.host(queues=False)
        if owned:
            hosts.host()
        await (api.stream if mode == "c4" else api.create)(background())
        (response_id,) = await hosts.ids()
        if owned:
            await until(lambda: hosts.entries[response_id])
        for _ in range(2):
            with pytest.raises(CannotDeleteInFlight) as refused:
                await api.delete(response_id)
            assert refused.value.message == "Cannot delete an in-flight response."
        hosts.host()
        assert (await hosts.finished(response_id)).status == "completed"
        await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
        await api.delete(response_id)
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


async def test_many_deletions_at_once_succeed_once() -> None:
    async with fleet(Teller(5)) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        response_id = await ask(hosts, host, "c4")
        results = await asyncio.gather(
            *(each.delete(response_id) for each in [host, other] * 4), return_exceptions=True
        )
        assert results.count(None) == 1
        assert all(result is None or isinstance(result, ResponseNotFound) for result in results)
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


async def test_a_deletion_between_the_outcome_and_the_terminal_frame_leaves_nothing() -> None:
    async with fleet(Teller(2)) as hosts:
        owner, other = hosts.host(), hosts.host(queues=False)
        reader = await owner.stream(background())
        response_id = await reader.response_id()
        append = owner.pause_at("log.append")

        async def ended() -> bool:
            row = await hosts.row(response_id)
            return row is not None and row.status == "completed"

        while not await ended():
            await until(append.is_set)
            if await ended():
                break
            owner.resume()
            append = owner.pause_at("log.append")
        await other.delete(response_id)
        owner.resume()
        await asyncio.sleep(5)
        await hosts.quiet()
        await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
        assert response_id not in owner.engine.runtime.running


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("operation", ["log.delete", "log.list", "payload.delete", "row.replace", "queue.send*"])
async def test_a_deletion_that_a_fault_interrupted_is_completed(operation: str, kind: Any) -> None:
    async with fleet(Teller(3)) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        response_id = await ask(hosts, host, "c4", "x" * 60_000)
        await hosts.quiet()
        other.seam.inject(Fault(operation=operation, kind=kind, times=1))
        with suppress(StorageUnavailable):
            await other.delete(response_id)
        await hosts.quiet()
        try:
            await other.get(response_id)
        except ResponseDeleted:
            await check_nothing_left(hosts.storage, PRINCIPAL, response_id)
        else:
            await check_response(hosts.storage, PRINCIPAL, response_id, entries=hosts.entered(response_id))
            await other.delete(response_id)
            await hosts.quiet()
            await check_nothing_left(hosts.storage, PRINCIPAL, response_id)


async def pages(host: Host, response_id: str, **query: Any) -> list[str]:
    """The texts of all pages, one after the other."""
    texts: list[str] = []
    after = None
    while True:
        page = await host.input_items(response_id, ListQuery(after=after, **query))
        assert page["object"] == "list"
        assert page["first_id"] == (page["data"][0]["id"] if page["data"] else None)
        assert page["last_id"] == (page["data"][-1]["id"] if page["data"] else None)
        texts += [item["content"][0]["text"] for item in page["data"]]
        if not page["has_more"]:
            return texts
        after = page["last_id"]


@MODE
async def test_input_items_are_paged_in_both_orders(mode: str) -> None:
    async with fleet(Teller(1)) as hosts:
        host, other = hosts.host(), hosts.host(queues=False)
        items = [{"role": "user", "content": f"{number}"} for number in range(25)]
        body = {"input": items, "background": bool(MODES[mode].get("background"))}
        if MODES[mode].get("stream"):
            reader = await host.stream(body)
            response_id = await reader.response_id()
            await reader.whole()
        else:
            response_id = (await host.create(body))["id"]
        await hosts.finished(response_id)
        ascending = [str(number) for number in range(25)]
        for each in (host, other):
            assert await pages(each, response_id, order="asc", limit=7) == ascending
            assert await pages(each, response_id, limit=7) == ascending[::-1]
            first = await each.input_items(response_id)
            assert len(first["data"]) == 20
            assert first["has_more"]
            last = first["data"][5]["id"]
            before = await each.input_items(response_id, ListQuery(before=last, limit=3))
            assert [item["content"][0]["text"] for item in before["data"]] == ["22", "21", "20"]


async def test_a_text_input_is_one_user_message_with_an_id_that_stays() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        response = await host.create({"input": "hello"})
        one, two = await host.input_items(response["id"]), await host.input_items(response["id"])
        assert one == two
        (item,) = one["data"]
        assert (item["type"], item["role"], item["content"][0]["text"]) == ("message", "user", "hello")
        assert item["id"]


async def test_references_are_resolved() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        first = await host.create({"input": "one"})
        own = (await host.input_items(first["id"]))["data"][0]
        references = [{"type": "item_reference", "id": item["id"]} for item in (own, first["output"][0])]
        second = await host.create({"input": references, "previous_response_id": first["id"]})
        page = await host.input_items(second["id"], ListQuery(order="asc"))
        assert page["data"] == [own, first["output"][0]]


async def test_items_of_a_queued_response_are_there_at_once() -> None:
    async with fleet(Teller(1)) as hosts:
        api = hosts.host(queues=False)
        response_id = (await api.create(background("now")))["id"]
        page = await api.input_items(response_id)
        assert page["data"][0]["content"][0]["text"] == "now"
