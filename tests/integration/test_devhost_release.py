"""A local host that has to die gives its messages back: to others, not to itself."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

from devhost.config import QueueRules
from devhost.functions import Function, QueueTrigger
from devhost.messages import TypedData
from devhost.queues import POISON, QueueListener
from devhost.runtime import Outcome
from tests.support.azurite import AzuriteServer
from tests.support.host import until

# Polls come so fast that a listener which goes on polling has a message again before it is looked at.
POLL_SECONDS = 0.005
WATCHED_SECONDS = 0.3


class Listeners:
    """A queue, its poison queue, and a listener for each whose function hangs until `end`; `runs` are their texts."""

    def __init__(self, connection: str, attempts: int) -> None:
        name = f"t{uuid.uuid4().hex[:12]}"
        self.rules = QueueRules(16, 8, attempts, 0, POLL_SECONDS, False)
        self.runs: list[str] = []
        self.end = asyncio.Event()
        self.succeed = False
        self.queue = self._client(connection, name)
        self.poison = self._client(connection, name + POISON)
        self.work = self._listener(self.queue, self.poison)
        self.lost = self._listener(self.poison, None)
        self.tasks = [asyncio.create_task(each.listen()) for each in (self.work, self.lost)]

    def _client(self, connection: str, name: str) -> QueueClient:
        return QueueClient.from_connection_string(
            connection, name, message_encode_policy=None, message_decode_policy=None
        )

    def _listener(self, queue: QueueClient, poison: QueueClient | None) -> QueueListener:
        trigger = QueueTrigger(queue.queue_name, "")
        function = Function(queue.queue_name, queue.queue_name, trigger, "message")
        return QueueListener(function, queue, poison, self.rules, self._run, visibility=60, min_poll=POLL_SECONDS)

    async def _run(self, _function: Function, data: TypedData, _metadata: dict[str, TypedData]) -> Outcome:
        self.runs.append(str(data.string))  # type: ignore[attr-defined]  # the kind of value is its attribute's name
        await self.end.wait()
        return Outcome(self.succeed, seconds=0.0)

    async def runs_of(self, count: int) -> None:
        assert await until(lambda: len(self.runs) >= count, 20)

    async def die(self) -> None:
        """What a host does that has to die, and a while in which it must not take anything."""
        await asyncio.gather(self.work.quiesce(), self.lost.quiesce())
        await asyncio.gather(self.work.release(), self.lost.release())
        await asyncio.sleep(WATCHED_SECONDS)

    async def received(self, queue: QueueClient) -> list[QueueMessage]:
        return [message async for message in queue.receive_messages(visibility_timeout=60)]

    async def close(self) -> None:
        self.end.set()
        for listener in (self.work, self.lost):
            listener.stop()
        await asyncio.gather(*self.tasks)
        for queue in (self.queue, self.poison):
            with contextlib.suppress(ResourceNotFoundError):
                await queue.delete_queue()
            await queue.close()


@pytest.fixture
def attempts() -> int:
    """How often a message of the queue is received at most."""
    return 2


@pytest.fixture
async def listeners(azurite: AzuriteServer, attempts: int) -> AsyncIterator[Listeners]:
    each = Listeners(azurite.connection_string, attempts)
    await asyncio.gather(each.work.ready.wait(), each.lost.ready.wait())
    try:
        yield each
    finally:
        await each.close()


async def test_a_message_that_is_given_back_is_there_for_another_host(listeners: Listeners) -> None:
    await listeners.queue.send_message("a")
    await listeners.runs_of(1)
    await listeners.die()
    assert listeners.runs == ["a"]
    assert [message.dequeue_count for message in await listeners.received(listeners.queue)] == [2]


@pytest.mark.parametrize("attempts", [1])
async def test_a_message_given_back_for_the_last_time_is_there_for_another_hosts_poison_function(
    listeners: Listeners,
) -> None:
    await listeners.queue.send_message("a")
    await listeners.runs_of(1)
    await listeners.die()
    assert listeners.runs == ["a"]
    assert await listeners.received(listeners.queue) == []
    assert [message.dequeue_count for message in await listeners.received(listeners.poison)] == [1]


@pytest.mark.parametrize("attempts", [1])
async def test_a_function_that_fails_while_its_message_is_given_back_moves_it_to_the_poison_queue_once(
    listeners: Listeners,
) -> None:
    await listeners.queue.send_message("a")
    await listeners.runs_of(1)
    # A poll of it that is under way when the function fails would bring the message here.
    await listeners.lost.quiesce()
    listeners.end.set()
    await listeners.die()
    assert await listeners.received(listeners.queue) == []
    assert [message.dequeue_count for message in await listeners.received(listeners.poison)] == [1]


async def test_a_message_of_the_poison_queue_is_given_back_too(listeners: Listeners) -> None:
    await listeners.poison.send_message("a")
    await listeners.runs_of(1)
    await listeners.die()
    assert listeners.runs == ["a"]
    assert [message.dequeue_count for message in await listeners.received(listeners.poison)] == [2]


@pytest.mark.parametrize("attempts", [1])
async def test_a_function_that_succeeds_while_its_message_is_about_to_be_given_back_keeps_it_from_the_poison_queue(
    listeners: Listeners,
) -> None:
    listeners.succeed = True
    await listeners.queue.send_message("a")
    await listeners.runs_of(1)
    await asyncio.gather(listeners.work.quiesce(), listeners.lost.quiesce())
    (held,) = listeners.work._held.values()
    async with held.updating:  # as a renewal does that storage is slow to answer
        dying = asyncio.create_task(listeners.die())
        await asyncio.sleep(WATCHED_SECONDS)
        listeners.end.set()
        assert await until(held.done.is_set, 20)
    await dying
    assert await listeners.received(listeners.queue) == []
    assert await listeners.received(listeners.poison) == []
