"""What is deleted between two steps of a request about it: the client is told that it is gone, not that we failed."""

from typing import Any

import pytest

from protocol.errors import IdempotencyKeyReused, PreviousResponseNotFound, ResponseDeleted, ResponseNotFound
from resilience.options import ResponsesServerOptions
from storage.seam import Moment
from tests.support.engines import Host, background, fleet, key_of
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

LARGE = "x" * 60_000
"""Enough for a request, or a response that echoes it, to be stored beside its row."""


def meanwhile(host: Host, other: Host, response_id: str, *, deleted: bool = True) -> None:
    """Right before that host reads what lies beside a row, the other deletes the response, or retention does."""
    done = False

    async def hook(name: str, moment: Moment) -> None:
        nonlocal done
        if (name, moment) == ("payload.get", "before") and not done:
            done = True
            if deleted:
                await other.delete(response_id)
            else:
                await other.storage.payloads.delete_all(key_of(response_id), response_id)
                row = await other.fleet.row(response_id)
                assert row is not None
                await other.storage.rows.delete(row)

    host.seam.hooks.append(hook)


@pytest.mark.parametrize("what", ["get", "input_items"])
@pytest.mark.parametrize(("deleted", "told"), [(True, ResponseDeleted), (False, ResponseNotFound)])
async def test_a_response_that_goes_while_it_is_shown_is_gone(what: str, deleted: bool, told: type[Exception]) -> None:
    async with fleet(Teller(3, checkpoints=True, ballast=60_000)) as hosts:
        host, api = hosts.host(), hosts.host(queues=False)
        response_id = (await host.create(background(LARGE)))["id"]
        await hosts.finished(response_id)
        meanwhile(api, host, response_id, deleted=deleted)
        with pytest.raises(told):
            await getattr(api, what)(response_id)


async def test_a_response_that_is_deleted_while_it_is_cancelled_again_is_not_found() -> None:
    async with fleet(Teller(3)) as hosts:
        host, api = hosts.host(queues=False), hosts.host(queues=False)
        response_id = (await host.create(background(instructions=LARGE)))["id"]
        await host.cancel(response_id)
        meanwhile(api, host, response_id)
        with pytest.raises(ResponseNotFound):
            await api.cancel(response_id)


@pytest.mark.parametrize("steerable", [False, True])
@pytest.mark.parametrize("mode", [{}, {"background": True}], ids=["foreground", "background"])
async def test_a_key_stands_for_its_response_after_the_predecessor_was_deleted(
    mode: dict[str, Any], steerable: bool
) -> None:
    options = ResponsesServerOptions(resilient_background=True, steerable_conversations=steerable)
    async with fleet(Teller(3)) as hosts:
        host = hosts.host(options=options)
        first = (await host.create({"input": "first"}))["id"]
        body = {"input": "second", "previous_response_id": first, **mode}
        made = (await host.create(body, idempotency_key="k"))["id"]
        await hosts.finished(made)
        await host.delete(first)
        again = await host.create(body, idempotency_key="k")
        assert (again["id"], again["status"], hosts.entered(made)) == (made, "completed", 1)
        with pytest.raises(IdempotencyKeyReused):
            await host.create({**body, "input": "third"}, idempotency_key="k")
        for key in ("", "another"):
            with pytest.raises(PreviousResponseNotFound):
                await host.create(body, idempotency_key=key)
        assert len(await hosts.ids()) == 2
