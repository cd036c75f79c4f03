"""The answers to pushes, and the thread that makes them."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from resilience.options import EngineSettings
from resilience.watch_pusher import Lost, Pushes, ThreadPusher
from storage.driver import QueueReceipt
from storage.errors import NotFound, PreconditionFailed, StorageError, StorageRejected, StorageUnavailable

SETTINGS = EngineSettings(watch_push_interval=0.01)
PATIENCE = 20.0


class Queue:
    """Answers in the order given, then with receipts."""

    def __init__(self, *answers: type[StorageError] | None) -> None:
        self.answers = list(answers)
        self.pushed: list[QueueReceipt] = []
        self.lost: list[Lost] = []
        self.pulses = 0

    def pulse(self) -> None:
        self.pulses += 1
        self._answer()

    def push(self, receipt: QueueReceipt, delay: float) -> QueueReceipt:
        self.pushed.append(receipt)
        self._answer()
        return receipt_of(len(self.pushed))

    def _answer(self) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer is StorageRejected:
            raise StorageRejected(400)
        if answer is not None:
            raise answer

    def pushes(self) -> Pushes:
        return Pushes(self.push, self.pulse, receipt_of(0), SETTINGS, self.lost.append)


def receipt_of(number: int) -> QueueReceipt:
    return QueueReceipt("m", str(number))


@pytest.mark.parametrize("refusal", [PreconditionFailed, NotFound, StorageRejected])
@pytest.mark.parametrize(
    ("before", "lost"),
    [
        ([], Lost.RECEIVED),
        ([None], Lost.RECEIVED),
        ([StorageUnavailable], Lost.SUPERSEDED),
        ([StorageUnavailable, StorageUnavailable, StorageUnavailable], Lost.SUPERSEDED),
        ([StorageUnavailable, None], Lost.RECEIVED),
        ([StorageUnavailable, None, StorageUnavailable], Lost.SUPERSEDED),
    ],
)
def test_a_refusal_means_something_else_after_a_push_without_an_answer(
    before: list[type[StorageError] | None], lost: Lost, refusal: type[StorageError]
) -> None:
    queue = Queue(*before, refusal)
    pushes = queue.pushes()
    for _ in before:
        assert pushes.once() is not None
        assert not queue.lost
    pause = pushes.once()
    assert queue.lost == [lost]
    assert pause == (0.0 if lost is Lost.SUPERSEDED else None)


@pytest.mark.parametrize(("silence", "lost"), [(4.9, Lost.RECEIVED), (5.1, Lost.SUPERSEDED)])
@pytest.mark.parametrize("pushed", [0, 2])
def test_a_refusal_means_something_else_when_the_message_lay_visible_before(
    pushed: int, silence: float, lost: Lost
) -> None:
    """As for a process that was stopped: who received it late may not have judged by it."""
    queue = Queue(*[None] * pushed, PreconditionFailed)
    now = 100.0
    pushes = Pushes(queue.push, queue.pulse, receipt_of(0), SETTINGS, queue.lost.append, lambda: now)
    for _ in range(pushed):
        now += 4.0
        assert pushes.once() == SETTINGS.watch_push_interval
    now += silence
    assert pushes.once() == (0.0 if lost is Lost.SUPERSEDED else None)
    assert queue.lost == [lost]


@pytest.mark.parametrize("last", [NotFound, PreconditionFailed, StorageRejected, StorageUnavailable])
def test_pulses_stand_in_for_a_superseded_message_as_long_as_they_are_answered(last: type[StorageError]) -> None:
    queue = Queue(StorageUnavailable, PreconditionFailed, None, None, None, last)
    pushes = queue.pushes()
    interval = SETTINGS.watch_push_interval
    assert [pushes.once() for _ in range(6)] == [0.0, 0.0, interval, interval, interval, None]
    assert (len(queue.pushed), queue.pulses) == (2, 4)
    assert queue.lost == [Lost.SUPERSEDED]


def test_nothing_stands_in_for_a_message_that_was_received() -> None:
    queue = Queue(None, PreconditionFailed)
    pushes = queue.pushes()
    assert [pushes.once() for _ in range(2)] == [SETTINGS.watch_push_interval, None]
    assert queue.pulses == 0


def test_only_the_first_push_without_an_answer_is_made_again_at_once() -> None:
    queue = Queue(StorageUnavailable, StorageUnavailable, None, StorageUnavailable)
    pushes = queue.pushes()
    interval = SETTINGS.watch_push_interval
    assert [pushes.once() for _ in range(5)] == [0.0, interval, interval, 0.0, interval]
    assert [receipt.pop_receipt for receipt in queue.pushed] == ["0", "0", "0", "3", "3"]


async def test_a_stopped_thread_gives_the_newest_receipt_and_pushes_no_more() -> None:
    queue = Queue()
    pusher = ThreadPusher(queue.push, queue.pulse, receipt_of(0), SETTINGS, queue.lost.append)
    pusher.start()
    await reached(lambda: len(queue.pushed) >= 3)
    receipt = await asyncio.wait_for(pusher.stop(), PATIENCE)
    assert receipt == receipt_of(len(queue.pushed))
    assert await pusher.stop() == receipt


async def test_a_thread_is_stopped_although_all_threads_of_the_executor_are_occupied() -> None:
    queue, over = Queue(), threading.Event()
    pusher = ThreadPusher(queue.push, queue.pulse, receipt_of(0), SETTINGS, queue.lost.append)
    pusher.start()
    occupied = [asyncio.create_task(asyncio.to_thread(over.wait, PATIENCE * 2)) for _ in range(64)]
    try:
        await asyncio.sleep(0)
        await asyncio.wait_for(pusher.stop(), PATIENCE)
    finally:
        over.set()
        await asyncio.gather(*occupied)


async def test_a_thread_that_lost_its_message_is_stopped_like_any_other() -> None:
    queue = Queue(PreconditionFailed)
    pusher = ThreadPusher(queue.push, queue.pulse, receipt_of(0), SETTINGS, queue.lost.append)
    pusher.start()
    await reached(lambda: queue.lost)
    assert await asyncio.wait_for(pusher.stop(), PATIENCE) == receipt_of(0)


def test_a_thread_whose_loop_is_closed_ends_quietly() -> None:
    """An error out of it would be told by the test run."""
    queue = Queue()
    may_answer = threading.Event()

    def slow(receipt: QueueReceipt, delay: float) -> QueueReceipt:
        queue.pushed.append(receipt)
        may_answer.wait(PATIENCE)
        raise PreconditionFailed

    async def start() -> None:
        ThreadPusher(slow, queue.pulse, receipt_of(0), SETTINGS, queue.lost.append).start()
        await reached(lambda: queue.pushed)

    before = set(threading.enumerate())
    asyncio.run(start())
    (thread,) = (each for each in threading.enumerate() if each not in before)
    may_answer.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert queue.lost == [Lost.RECEIVED]


async def reached(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
