import asyncio
import gc
import threading
import time

import pytest

from storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageRejected, StorageUnavailable
from storage.seam import Fault, Moment, Operation, Seam


class Store:
    """Something to call: counts what reached it."""

    def __init__(self) -> None:
        self.reached = 0

    async def write(self) -> int:
        self.reached += 1
        return self.reached

    def write_blocking(self) -> int:
        self.reached += 1
        return self.reached

    async def refuse(self) -> int:
        raise PreconditionFailed


async def test_calls_are_counted_by_name() -> None:
    seam, store = Seam(), Store()
    assert await seam.run(Operation.LOG_APPEND, store.write()) == 1
    assert await seam.run("log.append", store.write()) == 2
    assert seam.run_blocking("queue.push_watch", store.write_blocking) == 3
    assert seam.counts == {"log.append": 2, "queue.push_watch": 1}
    assert seam.total() == 3
    seam.reset()
    assert seam.total() == 0


async def test_an_error_learns_the_operation_it_came_from() -> None:
    seam, store = Seam(), Store()
    with pytest.raises(PreconditionFailed, match=r"row\.replace: Storage refused the write") as caught:
        await seam.run("row.replace", store.refuse())
    assert caught.value.operation == "row.replace"
    assert seam.counts == {"row.replace": 1}


async def test_an_error_keeps_the_operation_it_has() -> None:
    async def fail() -> None:
        raise NotFound(operation="row.read")

    with pytest.raises(NotFound) as caught:
        await Seam().run("outer", fail())
    assert caught.value.operation == "row.read"


async def test_a_fault_before_keeps_the_call_from_storage() -> None:
    seam, store = Seam(), Store()
    fault = seam.inject(Fault(operation="log.*", kind="before"))
    with pytest.raises(StorageUnavailable) as caught:
        await seam.run("log.append", store.write())
    assert caught.value.operation == "log.append"
    with pytest.raises(StorageUnavailable):
        seam.run_blocking("log.append", store.write_blocking)
    gc.collect()  # a coroutine left un-awaited would warn here
    assert store.reached == 0
    assert fault.hits == 2
    fault.remove()
    fault.remove()
    assert await seam.run("log.append", store.write()) == 1
    assert fault.hits == 2


async def test_a_fault_after_happens_although_storage_did_it() -> None:
    seam, store = Seam(), Store()
    seam.inject(Fault(operation="row.replace", kind="after", error=AlreadyExists))
    with pytest.raises(AlreadyExists):
        await seam.run("row.replace", store.write())
    with pytest.raises(AlreadyExists):
        seam.run_blocking("row.replace", store.write_blocking)
    assert store.reached == 2


async def test_a_fault_hits_only_operations_that_match() -> None:
    seam, store = Seam(), Store()
    fault = seam.inject(Fault(operation="log.*", kind="before"))
    assert await seam.run("row.replace", store.write()) == 1
    assert fault.hits == 0


async def test_a_fault_spares_the_first_calls_and_ends_after_its_times() -> None:
    seam, store = Seam(), Store()
    seam.inject(Fault(operation="*", kind="before", after=2, times=2))
    outcomes = [
        outcome
        for _ in range(6)
        for outcome in await asyncio.gather(seam.run("row.read", store.write()), return_exceptions=True)
    ]
    assert [isinstance(outcome, StorageUnavailable) for outcome in outcomes] == [False, False, True, True, False, False]


async def test_chance_is_repeatable_by_seed() -> None:
    async def pattern(seed: int) -> list[bool]:
        seam, store = Seam(seed), Store()
        seam.inject(Fault(operation="*", kind="before", probability=0.5))
        calls = [seam.run("row.read", store.write()) for _ in range(40)]
        return [isinstance(outcome, int) for outcome in await asyncio.gather(*calls, return_exceptions=True)]

    assert await pattern(1) == await pattern(1)
    assert await pattern(1) != await pattern(2)
    assert 5 < sum(await pattern(1)) < 35


async def test_a_fault_raises_the_error_it_was_given() -> None:
    seam, store = Seam(), Store()
    seam.inject(Fault(operation="*", kind="before", error=lambda: StorageRejected(403)))
    with pytest.raises(StorageRejected) as caught:
        await seam.run("row.read", store.write())
    assert caught.value.status == 403


async def test_a_delay_comes_before_the_call() -> None:
    seam, store = Seam(), Store()
    seam.inject(Fault(operation="*", kind="delay", delay=0.05))
    began = time.monotonic()
    assert await seam.run("row.read", store.write()) == 1
    assert seam.run_blocking("row.read", store.write_blocking) == 2
    assert time.monotonic() - began >= 0.09


async def test_a_call_hangs_until_the_fault_is_removed() -> None:
    seam, store = Seam(), Store()
    fault = seam.inject(Fault(operation="*", kind="hang"))
    task = asyncio.create_task(seam.run("row.read", store.write()))
    thread = asyncio.create_task(asyncio.to_thread(seam.run_blocking, "row.read", store.write_blocking))
    done, _ = await asyncio.wait({task, thread}, timeout=0.05)
    assert not done
    assert store.reached == 0
    fault.remove()
    async with asyncio.timeout(5):
        assert {await task, await thread} == {1, 2}


async def test_a_hanging_call_can_be_cancelled() -> None:
    seam, store = Seam(), Store()
    fault = seam.inject(Fault(operation="*", kind="hang"))
    task = asyncio.create_task(seam.run("row.read", store.write()))
    await asyncio.wait({task}, timeout=0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gc.collect()
    assert store.reached == 0
    fault.remove()


async def test_hooks_are_called_around_each_call() -> None:
    seam, store = Seam(), Store()
    seen: list[tuple[str, str, int]] = []

    async def hook(name: str, moment: Moment) -> None:
        seen.append((name, moment, store.reached))

    seam.hooks.append(hook)
    await seam.run("row.read", store.write())
    with pytest.raises(PreconditionFailed):
        await seam.run("row.replace", store.refuse())
    assert seen == [("row.read", "before", 0), ("row.read", "after", 1), ("row.replace", "before", 1)]


@pytest.mark.parametrize(("moment", "reached"), [("before", 0), ("after", 1)])
async def test_a_hook_can_stop_a_call_at_either_side(moment: Moment, reached: int) -> None:
    class Killed(BaseException):
        pass

    seam, store = Seam(), Store()

    async def hook(_: str, now: Moment) -> None:
        if now == moment:
            raise Killed

    seam.hooks.append(hook)
    with pytest.raises(Killed):
        await seam.run("row.read", store.write())
    gc.collect()
    assert store.reached == reached


async def test_counts_from_many_threads_add_up() -> None:
    seam = Seam()
    threads = [
        threading.Thread(target=lambda: [seam.run_blocking("a", lambda: 1) for _ in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seam.counts == {"a": 4000}


def test_operation_names_are_distinct_and_dotted() -> None:
    values = [operation.value for operation in Operation]
    assert len(set(values)) == len(values)
    assert all(value.count(".") == 1 for value in values)
