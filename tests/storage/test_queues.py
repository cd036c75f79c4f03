import asyncio
import time
from datetime import timedelta

import pytest

from storage.connection import Storage
from storage.driver import WATCH_QUEUE, WORK_QUEUE, QueueMessage, QueueReceipt, StorageDriver
from storage.errors import NotFound, PreconditionFailed
from storage.queues import MalformedMessage, StartMessage, WatchMessage, parse_start, parse_watch
from tests.storage.conftest import Account

SECOND = timedelta(seconds=1)


async def received(driver: StorageDriver, queue: str, visibility: float = 30) -> QueueMessage:
    message = await driver.receive_message(queue, visibility=visibility)
    assert message is not None
    return message


async def test_a_start_message_arrives_once(storage: Storage, driver: StorageDriver) -> None:
    await storage.work.send_start("tenant", "resp_1")
    message = await received(driver, WORK_QUEUE)
    assert message.text == '{"v":1,"tenant":"tenant","id":"resp_1"}'
    assert parse_start(message.text) == StartMessage("tenant", "resp_1")
    assert message.dequeue_count == 1
    assert await driver.receive_message(WORK_QUEUE, visibility=30) is None


async def test_a_delayed_message_arrives_later(account: Account) -> None:
    before = time.monotonic()
    await account.storage.work.send_start("tenant", "resp_1", delay=2)
    early = await account.driver.receive_message(WORK_QUEUE, visibility=30)
    if early is None:
        await account.after(2, lambda: account.driver.receive_message(WORK_QUEUE, visibility=30))
    # Where time is real, the first look may have come late.
    assert early is None if account.clock is not None else time.monotonic() - before > 0.9


async def test_a_message_not_deleted_comes_back_with_a_higher_count(account: Account) -> None:
    await account.storage.work.send_start("tenant", "resp_1")
    first = await received(account.driver, WORK_QUEUE, visibility=1)
    again = await account.after(1, lambda: account.driver.receive_message(WORK_QUEUE, visibility=30))
    assert again.receipt.message_id == first.receipt.message_id
    assert again.receipt.pop_receipt != first.receipt.pop_receipt
    assert again.dequeue_count == 2
    assert again.text == first.text


async def test_a_spent_receipt_cannot_delete(account: Account) -> None:
    await account.storage.work.send_start("tenant", "resp_1")
    first = await received(account.driver, WORK_QUEUE, visibility=1)
    again = await account.after(1, lambda: account.driver.receive_message(WORK_QUEUE, visibility=30))
    with pytest.raises((PreconditionFailed, NotFound)):
        await account.driver.delete_message(WORK_QUEUE, first.receipt)
    await account.driver.delete_message(WORK_QUEUE, again.receipt)
    with pytest.raises(NotFound):
        await account.driver.delete_message(WORK_QUEUE, again.receipt)


async def test_a_message_is_deleted_for_good(account: Account) -> None:
    await account.storage.work.send_start("tenant", "resp_1")
    message = await received(account.driver, WORK_QUEUE, visibility=1)
    await account.driver.delete_message(WORK_QUEUE, message.receipt)
    await account.storage.work.send_start("tenant", "resp_2", delay=2)
    later = await account.after(2, lambda: account.driver.receive_message(WORK_QUEUE, visibility=30))
    assert parse_start(later.text).id == "resp_2"


async def test_each_of_many_messages_goes_to_one_receiver(storage: Storage, driver: StorageDriver) -> None:
    await asyncio.gather(*(storage.work.send_start("tenant", f"resp_{number}") for number in range(10)))
    messages = await asyncio.gather(*(driver.receive_message(WORK_QUEUE, visibility=30) for _ in range(12)))
    ids = [parse_start(message.text).id for message in messages if message is not None]
    assert sorted(ids) == sorted(f"resp_{number}" for number in range(10))


async def test_every_push_gives_a_new_receipt_and_spends_the_old(storage: Storage, driver: StorageDriver) -> None:
    first = await storage.watch.send("w1", delay=30)
    second = await driver.update_message(WATCH_QUEUE, first, delay=30)
    assert second.message_id == first.message_id
    assert second.pop_receipt != first.pop_receipt
    with pytest.raises(PreconditionFailed):
        await driver.update_message(WATCH_QUEUE, first, delay=30)
    await driver.update_message(WATCH_QUEUE, second, delay=0)
    assert parse_watch((await received(driver, WATCH_QUEUE)).text) == WatchMessage("w1")


async def test_a_watch_message_keeps_its_epoch_however_often_it_is_pushed(
    storage: Storage, driver: StorageDriver
) -> None:
    receipt = await storage.watch.send("w1", delay=30, epoch=7)
    receipt = await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1", 7), receipt, 0)
    message = await received(driver, WATCH_QUEUE)
    told = parse_watch(message.text)
    assert (told.worker, told.epoch, told.again) == ("w1", 7, False)


async def test_a_watch_message_that_was_never_pushed_has_only_its_worker_and_epoch(
    storage: Storage, driver: StorageDriver
) -> None:
    await storage.watch.send("w1", delay=0, epoch=7)
    message = await received(driver, WATCH_QUEUE)
    assert message.text == '{"v":1,"worker":"w1","epoch":7}'
    assert parse_watch(message.text) == WatchMessage("w1", 7)


async def test_a_watch_message_that_is_sent_again_says_so(storage: Storage, driver: StorageDriver) -> None:
    await storage.watch.send("w1", delay=0, epoch=7, hidden_until=12.5, again=True)
    message = await received(driver, WATCH_QUEUE)
    assert message.text == '{"v":1,"worker":"w1","epoch":7,"hidden_until":12.5,"again":true}'
    assert parse_watch(message.text) == WatchMessage("w1", 7, 12.5, again=True)


async def test_a_pushed_message_tells_until_when_it_was_hidden_before_by_the_clock_of_the_service(
    storage: Storage, driver: StorageDriver
) -> None:
    """In whole seconds each, the service's clock and what it says of the message."""
    before = await storage.ledger.service_time()
    receipts = [await storage.watch.send("w1", delay=30, epoch=7)]
    for delay in (60, 0):
        pushed = await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1", 7), receipts[-1], delay)
        receipts.append(pushed)
    after = await storage.ledger.service_time()
    for receipt, delay in zip(receipts, (30, 60, 0), strict=True):
        assert receipt.hidden_until is not None
        assert before - SECOND <= receipt.hidden_until - timedelta(seconds=delay) <= after + SECOND
    told = parse_watch((await received(driver, WATCH_QUEUE)).text)
    assert receipts[1].hidden_until is not None
    assert told == WatchMessage("w1", 7, receipts[1].hidden_until.timestamp())


async def test_a_push_that_is_refused_leaves_the_text(storage: Storage, driver: StorageDriver) -> None:
    first = await storage.watch.send("w1", delay=30)
    second = await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1", 1), first, 0)
    with pytest.raises((PreconditionFailed, NotFound)):
        await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1", 2), first, 0)
    assert first.hidden_until is not None
    assert second.message_id == first.message_id
    told = parse_watch((await received(driver, WATCH_QUEUE)).text)
    assert told == WatchMessage("w1", 1, first.hidden_until.timestamp())


async def test_a_push_by_the_receipt_before_the_last_is_refused(storage: Storage, driver: StorageDriver) -> None:
    """What a lost reply to a push leads to."""
    first = await storage.watch.send("w1", delay=30)
    last = await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1"), first, 30)
    with pytest.raises((PreconditionFailed, NotFound)):
        await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1"), first, 30)
    with pytest.raises((PreconditionFailed, NotFound)):
        await storage.watch.delete(first)
    await storage.watch.delete(last)


async def test_a_watch_message_is_pushed_forward_from_a_thread(account: Account) -> None:
    watch = account.storage.watch
    receipt = await watch.send("w1", delay=2)
    for _ in range(3):
        receipt = await asyncio.to_thread(watch.push_blocking, WatchMessage("w1"), receipt, 60)
    assert await account.driver.receive_message(WATCH_QUEUE, visibility=30) is None
    await asyncio.to_thread(watch.push_blocking, WatchMessage("w1"), receipt, 2)
    assert account.storage.seam.counts["queue.push_watch"] == 4
    message = await account.after(2, lambda: account.driver.receive_message(WATCH_QUEUE, visibility=30))
    assert message.dequeue_count == 1
    assert parse_watch(message.text).worker == "w1"


async def test_a_push_holds_a_message_back_past_its_first_delay(account: Account) -> None:
    receipt = await account.storage.watch.send("w1", delay=2)
    pushed = time.monotonic()
    await asyncio.to_thread(account.storage.watch.push_blocking, WatchMessage("w1"), receipt, 4)
    if account.clock is not None:
        account.clock.advance(3)
        assert await account.driver.receive_message(WATCH_QUEUE, visibility=30) is None
    await account.after(4, lambda: account.driver.receive_message(WATCH_QUEUE, visibility=30))
    assert account.clock is not None or time.monotonic() - pushed > 2.9


async def test_a_push_after_somebody_received_the_message_is_refused(account: Account) -> None:
    receipt = await account.storage.watch.send("w1", delay=0)
    await received(account.driver, WATCH_QUEUE)
    with pytest.raises(PreconditionFailed) as caught:
        await asyncio.to_thread(account.storage.watch.push_blocking, WatchMessage("w1"), receipt, 5)
    assert caught.value.operation == "queue.push_watch"


async def test_a_push_of_a_deleted_message_is_not_found(storage: Storage) -> None:
    receipt = await storage.watch.send("w1", delay=30)
    await storage.watch.delete(receipt)
    with pytest.raises(NotFound):
        await asyncio.to_thread(storage.watch.push_blocking, WatchMessage("w1"), receipt, 5)
    with pytest.raises(NotFound):
        await storage.watch.delete(receipt)


async def test_a_visible_message_can_still_be_pushed_by_its_last_receipt(account: Account) -> None:
    receipt = await account.storage.watch.send("w1", delay=0)
    receipt = await asyncio.to_thread(account.storage.watch.push_blocking, WatchMessage("w1"), receipt, 30)
    assert isinstance(receipt, QueueReceipt)
    assert await account.driver.receive_message(WATCH_QUEUE, visibility=30) is None


async def test_the_depth_counts_visible_hidden_and_delayed_messages(storage: Storage, driver: StorageDriver) -> None:
    assert await storage.work.depth() == 0
    for number, delay in enumerate((0, 0, 60)):
        await storage.work.send_start("tenant", f"resp_{number}", delay=delay)
    message = await received(driver, WORK_QUEUE)
    assert await storage.work.depth() == 3
    await driver.delete_message(WORK_QUEUE, message.receipt)
    assert await storage.work.depth() == 2
    assert storage.seam.counts["queue.depth"] == 3


async def test_texts_of_others_are_given_as_they_are(driver: StorageDriver) -> None:
    text = "naïve \U0001f600 <tag/> &amp; line\nbreak"
    await driver.send_message(WORK_QUEUE, text)
    assert (await received(driver, WORK_QUEUE)).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "1",
        "{}",
        '{"v":2,"tenant":"t","id":"i"}',
        '{"v":1,"tenant":"t"}',
        '{"v":1,"tenant":"t","id":3}',
        '{"v":1,"tenant":"","id":"i"}',
        '{"v":1,"tenant":"t/u","id":"i"}',
        f'{{"v":1,"tenant":"{"t" * 48_000}","id":"i"}}',
    ],
)
def test_a_malformed_start_message_is_told(text: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse_start(text)
    assert caught.value.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        '{"v":1}',
        '{"worker":"w"}',
        '{"v":1,"worker":null}',
        '{"v":1,"worker":"w","epoch":"1"}',
        '{"v":1,"worker":"w","epoch":true}',
        '{"v":1,"worker":"w#"}',
        f'{{"v":1,"worker":"{"w" * 40_000}"}}',
    ],
)
def test_a_malformed_watch_message_is_told(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_watch(text)


def test_fields_of_later_versions_are_ignored() -> None:
    assert parse_watch('{"v":1,"worker":"w","since":1}') == WatchMessage("w")


@pytest.mark.parametrize("hint", ['"soon"', "null", "true", "[]"])
def test_a_watch_message_counts_although_it_does_not_tell_when_it_became_visible(hint: str) -> None:
    text = f'{{"v":1,"worker":"w","epoch":3,"hidden_until":{hint},"again":1}}'
    assert parse_watch(text) == WatchMessage("w", 3)


def test_a_watch_message_of_an_earlier_version_has_no_epoch() -> None:
    assert parse_watch('{"v":1,"worker":"w"}').epoch is None
    assert parse_watch('{"v":1,"worker":"w","epoch":0}').epoch == 0
