"""Queue triggers: receives messages, runs their function, and keeps the platform's rules about failure.

A received message is hidden for `visibility` seconds and renewed at half of that while its function runs. Success
deletes it; a failure makes it visible again after host.json's `visibilityTimeout`, until it has been received
`maxDequeueCount` times: then it moves to `QUEUE-poison`. A message received more often than that moves there without
a run. A poison queue has no poison queue: what fails there stays hidden for the rest of its time, and is not run
again after its last attempt.

The next batch is fetched while no more than `newBatchThreshold` messages are being worked on. An idle queue is polled
after random, doubling pauses from `min_poll` to `maxPollingInterval`; a message resets them.
"""

import asyncio
import base64
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

from devhost.config import QueueRules
from devhost.functions import Function
from devhost.messages import TypedData
from devhost.runtime import Outcome

POISON = "-poison"

_log = logging.getLogger("devhost.queue")

type Run = Callable[[Function, TypedData, dict[str, TypedData]], Awaitable[Outcome]]


@dataclass
class Backoff:
    """Pauses between polls of an idle queue, in seconds."""

    low: float
    high: float
    _step: int = 0

    def reset(self) -> None:
        """Back to the shortest pause."""
        self._step = 0

    def next(self) -> float:
        """A longer pause each time, with a fifth of chance either way."""
        pause = min(self.low * float(2**self._step), self.high)
        if pause < self.high:
            self._step += 1
        return min(pause * random.uniform(0.8, 1.2), self.high)


@dataclass
class Held:
    """A message this host has received; its receipt changes with every update, so there is one update at a time."""

    message: QueueMessage
    receipt: str
    done: asyncio.Event = field(default_factory=asyncio.Event)
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)
    settled: bool = False
    # Its function has succeeded.
    succeeded: bool = False


class QueueListener:
    """Serves one queue function. `queue` and `poison` are clients without message policies; `poison` may be missing."""

    def __init__(
        self,
        function: Function,
        queue: QueueClient,
        poison: QueueClient | None,
        rules: QueueRules,
        run: Run,
        *,
        visibility: float,
        min_poll: float,
    ) -> None:
        self._function = function
        self._queue = queue
        self._poison = poison
        self._rules = rules
        self._run = run
        self._visibility = visibility
        self._backoff = Backoff(min_poll, max(min_poll, rules.max_polling_interval))
        # By reception: a host that was frozen may receive a message again while it still works on it.
        self._held: dict[int, Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._room.set()
        self._stop = asyncio.Event()
        # Held while a poll is under way.
        self._polling = asyncio.Lock()
        # Set once the queue is there and polled.
        self.ready = asyncio.Event()

    async def listen(self) -> None:
        """Receives and runs messages until `stop`, and returns when the last of them is settled.

        A storage failure is logged and tried again.
        """
        while not self._stop.is_set() and not await self._create():
            await self._pause()
        self.ready.set()
        while not self._stop.is_set():
            async with self._polling:
                received = await self._receive()
            if received:
                self._backoff.reset()
            else:
                await self._pause()
            await self._room.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        """Takes no more messages; those being worked on go on."""
        self._stop.set()

    async def quiesce(self) -> None:
        """Takes no more messages, and returns when no poll is under way that could still bring one."""
        self.stop()
        async with self._polling:
            pass

    async def release(self) -> None:
        """Gives every message back as failed whose function has not succeeded, because this process is about to die.

        Those of a poison queue too, but for the last attempt: their functions did not fail.

        Only after `quiesce`, of the poison queue's listener too: this process would receive what it gives back, and
        hide it from every other one when it dies.
        """
        held_now = list(self._held.values())
        outcomes = await asyncio.gather(*(self._settle(held, dying=True) for held in held_now), return_exceptions=True)
        for held, outcome in zip(held_now, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                _log.warning("Message %s was not given back: %r", held.message.id, outcome)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self._backoff.next())

    async def _create(self) -> bool:
        try:
            with contextlib.suppress(ResourceExistsError):
                await self._queue.create_queue()
        except (AzureError, OSError) as error:
            _log.warning("%s cannot be reached: %s", self._queue.queue_name, error)
            return False
        return True

    async def _receive(self) -> int:
        try:
            pages = self._queue.receive_messages(
                messages_per_page=self._rules.batch_size,
                max_messages=self._rules.batch_size,
                visibility_timeout=_whole(self._visibility),
            ).by_page()
            batch = [message async for message in await anext(pages)]
        except StopAsyncIteration:
            return 0
        except (AzureError, OSError) as error:
            _log.warning("%s cannot be polled: %s", self._queue.queue_name, error)
            return 0
        for message in batch:
            held = Held(message, str(message.pop_receipt))
            self._held[id(held)] = held
            task = asyncio.create_task(self._handle(held), name=f"queue:{self._function.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._mind_room()
        return len(batch)

    def _mind_room(self) -> None:
        if len(self._held) <= self._rules.new_batch_threshold:
            self._room.set()
        else:
            self._room.clear()

    async def _handle(self, held: Held) -> None:
        renewal = asyncio.create_task(self._renew(held))
        try:
            held.succeeded = await self._attempt(held)
            held.done.set()
            await renewal
            await self._settle(held)
        except ResourceNotFoundError:
            _log.warning("Message %s was taken over or removed before it was settled.", held.message.id)
        except (AzureError, OSError) as error:
            _log.warning("Message %s could not be settled: %s", held.message.id, error)
        finally:
            renewal.cancel()
            del self._held[id(held)]
            self._mind_room()

    async def _attempt(self, held: Held) -> bool:
        """Runs the function, unless the message has had its attempts or cannot be read; whether it succeeded."""
        message = held.message
        if (message.dequeue_count or 0) > self._rules.max_dequeue_count:
            return False
        try:
            text = self._decode(message.content)
        except ValueError as error:
            _log.error("Message %s is not base64-encoded text: %s", message.id, error)
            message.dequeue_count = self._rules.max_dequeue_count
            return False
        outcome = await self._run(self._function, TypedData(string=text), metadata(message))
        return outcome.succeeded

    def _decode(self, content: str) -> str:
        return base64.b64decode(content, validate=True).decode() if self._rules.base64 else content

    async def _renew(self, held: Held) -> None:
        while True:
            try:
                await asyncio.wait_for(held.done.wait(), self._visibility / 2)
            except TimeoutError:
                try:
                    async with held.updating:
                        await self._update(held, self._visibility)
                except (AzureError, OSError) as error:
                    _log.warning("Message %s could not be renewed: %s", held.message.id, error)
            else:
                return

    async def _update(self, held: Held, visibility: float) -> None:
        updated = await self._queue.update_message(
            str(held.message.id), held.receipt, visibility_timeout=_whole(visibility)
        )
        held.receipt = str(updated.pop_receipt)

    async def _settle(self, held: Held, *, dying: bool = False) -> None:
        """Ends the message for this host, once: a function may end while its message is given back."""
        async with held.updating:
            if not held.settled:
                await (self._delete(held) if held.succeeded else self._fail(held, dying))
                held.settled = True

    async def _delete(self, held: Held) -> None:
        await self._queue.delete_message(str(held.message.id), held.receipt)

    async def _fail(self, held: Held, dying: bool) -> None:
        if self._poison is None and not dying:
            return
        if (held.message.dequeue_count or 0) < self._rules.max_dequeue_count:
            await self._update(held, self._rules.visibility_timeout)
            return
        if self._poison is None:
            return
        _log.error(
            "Message %s of %s, received %s times, moves to the poison queue.",
            held.message.id,
            self._queue.queue_name,
            held.message.dequeue_count,
        )
        try:
            await self._poison.send_message(held.message.content)
        except ResourceNotFoundError:
            with contextlib.suppress(ResourceExistsError):
                await self._poison.create_queue()
            await self._poison.send_message(held.message.content)
        await self._delete(held)


def metadata(message: QueueMessage) -> dict[str, TypedData]:
    """The trigger metadata of a queue message."""
    times = {
        "InsertionTime": message.inserted_on,
        "ExpirationTime": message.expires_on,
        "NextVisibleTime": message.next_visible_on,
    }
    return {
        "Id": TypedData(string=str(message.id)),
        "DequeueCount": TypedData(json=str(message.dequeue_count or 1)),
        "PopReceipt": TypedData(string=str(message.pop_receipt or "")),
        **{name: TypedData(string=_stamp(moment)) for name, moment in times.items() if moment is not None},
    }


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S+00:00")


def _whole(seconds: float) -> int:
    return max(0, round(seconds))
