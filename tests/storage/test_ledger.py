import asyncio
from datetime import datetime, timedelta

import pytest

from storage.connection import Storage
from storage.driver import Insert, StorageDriver
from storage.errors import AlreadyExists, MalformedRecord, NotFound, PreconditionFailed
from storage.ledger import MAX_CHANGES, MAX_OPENED_BYTES, LedgerEntry, WorkerRecord, fitting
from tests.storage.conftest import Account


def run(name: str, **data: str | int | bool) -> LedgerEntry:
    return LedgerEntry(f"run-{name}", "run", dict(data))


async def test_begin_opens_the_ledger_with_its_entries(storage: Storage) -> None:
    opened = [run("a", tenant="t", row=1, kind="data of its own", background=True), LedgerEntry("adopt-w0", "adopt")]
    record = await storage.ledger.begin("w1", opened)
    assert (record.worker_id, record.state, record.revision) == ("w1", "open", 1)
    read = await storage.ledger.read("w1")
    assert (read.state, read.revision, read.etag) == ("open", 1, record.etag)
    assert read.heartbeat is not None
    assert await storage.ledger.entries("w1") == [opened[1], opened[0]]
    assert storage.seam.counts["ledger.begin"] == 1


async def test_a_worker_id_is_used_once(storage: Storage) -> None:
    await storage.ledger.begin("w1", [])
    with pytest.raises(AlreadyExists):
        await storage.ledger.begin("w1", [run("a")])
    assert await storage.ledger.entries("w1") == []


async def test_commit_opens_replaces_and_closes_in_one_call(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [run("a"), run("b", step=1)])
    storage.seam.reset()
    record = await storage.ledger.commit(record, [run("b", step=2), run("c")], ["run-a"])
    assert storage.seam.counts == {"ledger.commit": 1}
    assert record.revision == 2
    assert await storage.ledger.entries("w1") == [run("b", step=2), run("c")]
    record = await storage.ledger.commit(record, [], [])
    read = await storage.ledger.read("w1")
    assert (read.revision, read.etag) == (3, record.etag)


async def test_an_entry_is_open_until_it_is_closed_even_in_a_dead_ledger(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [run("a"), run("b")])
    await storage.ledger.mark_dead(await storage.ledger.read("w1"))
    assert await storage.ledger.is_open("w1", "run-a")
    await storage.ledger.wipe(record.worker_id, keep=["run-b"])
    assert [await storage.ledger.is_open("w1", key) for key in ("run-a", "run-b", "run-c")] == [False, True, False]
    assert not await storage.ledger.is_open("w2", "run-a")


async def test_a_commit_tells_a_new_epoch_and_others_keep_it(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [])
    assert (record.epoch, (await storage.ledger.read("w1")).epoch) == (0, 0)
    record = await storage.ledger.commit(record, [run("a")], [], epoch=3)
    assert (record.epoch, (await storage.ledger.read("w1")).epoch) == (3, 3)
    record = await storage.ledger.commit(record, [], ["run-a"])
    assert (record.epoch, (await storage.ledger.read("w1")).epoch) == (3, 3)
    dead = await storage.ledger.mark_dead(await storage.ledger.read("w1"))
    assert (dead.epoch, (await storage.ledger.read("w1")).epoch) == (3, 3)


async def test_after_mark_dead_no_epoch_can_be_told(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [])
    await storage.ledger.mark_dead(record)
    with pytest.raises(PreconditionFailed):
        await storage.ledger.commit(record, [], [], epoch=1)
    assert (await storage.ledger.read("w1")).epoch == 0


async def test_a_ledger_of_an_earlier_version_has_epoch_zero(storage: Storage, driver: StorageDriver) -> None:
    await driver.insert_entity("workers", Insert("w1", "worker", {"v": 1, "state": "open", "revision": 4}))
    record = await storage.ledger.read("w1")
    assert (record.epoch, record.revision) == (0, 4)
    assert (await storage.ledger.commit(record, [], [], epoch=1)).epoch == 1


@pytest.mark.parametrize("changes", [{"revision": "many"}, {"revision": 1, "epoch": "late"}])
async def test_a_row_that_cannot_be_read_is_told_by_itself_and_hides_no_other(
    account: Account, changes: dict[str, str | int]
) -> None:
    ledger = account.storage.ledger
    await account.driver.insert_entity("workers", Insert("damaged", "worker", {"v": 1, "state": "open", **changes}))
    await ledger.begin("w1", [])
    assert await ledger.stale(await ledger.service_time() + timedelta(seconds=60)) == ["damaged", "w1"]
    with pytest.raises(MalformedRecord):
        await ledger.read("damaged")


async def test_a_heartbeat_moves_the_timestamp(account: Account) -> None:
    ledger = account.storage.ledger
    record = await ledger.begin("w1", [])
    before = (await ledger.read("w1")).heartbeat

    async def beat() -> WorkerRecord | None:
        nonlocal record
        record = await ledger.commit(record, [], [])
        read = await ledger.read("w1")
        assert read.heartbeat is not None
        assert before is not None
        return read if read.heartbeat > before else None

    await account.after(1, beat)


async def test_commit_after_mark_dead_is_refused(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [run("a")])
    dead = await storage.ledger.mark_dead(await storage.ledger.read("w1"))
    assert dead.state == "dead"
    with pytest.raises(PreconditionFailed) as caught:
        await storage.ledger.commit(record, [run("b")], ["run-a"])
    assert caught.value.operation == "ledger.commit"
    with pytest.raises(PreconditionFailed):
        await storage.ledger.end(record, ["run-a"])
    assert await storage.ledger.entries("w1") == [run("a")]
    read = await storage.ledger.read("w1")
    assert (read.state, read.etag) == ("dead", dead.etag)


async def test_mark_dead_after_a_commit_is_refused(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [])
    seen = await storage.ledger.read("w1")
    await storage.ledger.commit(record, [run("a")], [])
    with pytest.raises(PreconditionFailed):
        await storage.ledger.mark_dead(seen)
    assert (await storage.ledger.read("w1")).state == "open"


async def test_of_many_adopters_and_the_worker_exactly_one_wins(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [])
    calls = [storage.ledger.mark_dead(record) for _ in range(10)]
    calls.append(storage.ledger.commit(record, [run("a")], []))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, WorkerRecord) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 10


async def test_commit_with_a_used_record_is_refused(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [])
    await storage.ledger.commit(record, [run("a")], [])
    with pytest.raises(PreconditionFailed):
        await storage.ledger.commit(record, [run("b")], [])
    assert await storage.ledger.entries("w1") == [run("a")]


async def test_a_missing_ledger_refuses_commits(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [run("a")])
    await storage.ledger.wipe("w1")
    with pytest.raises(NotFound):
        await storage.ledger.commit(record, [run("b")], [])
    assert await storage.ledger.entries("w1") == []


async def test_closing_what_is_not_open_changes_nothing(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [run("a")])
    with pytest.raises(NotFound):
        await storage.ledger.commit(record, [run("b")], ["run-nothing"])
    assert await storage.ledger.entries("w1") == [run("a")]
    await storage.ledger.commit(record, [run("b")], [])


async def test_end_removes_the_ledger_in_one_call(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [run("a"), run("b")])
    storage.seam.reset()
    await storage.ledger.end(record, ["run-a", "run-b"])
    assert storage.seam.counts == {"ledger.end": 1}
    with pytest.raises(NotFound):
        await storage.ledger.read("w1")
    assert await storage.ledger.entries("w1") == []


async def test_begin_after_end_is_a_new_ledger_and_the_old_record_is_dead(storage: Storage) -> None:
    old = await storage.ledger.begin("w1", [])
    await storage.ledger.end(old, [])
    new = await storage.ledger.begin("w1", [])
    assert new.revision == 1
    assert new.etag != old.etag
    with pytest.raises(PreconditionFailed):
        await storage.ledger.commit(old, [run("late")], [])
    await storage.ledger.commit(new, [run("a")], [])


async def test_a_full_transaction_fits_and_more_is_refused(storage: Storage) -> None:
    entries = [run(f"{number:03}") for number in range(MAX_CHANGES)]
    record = await storage.ledger.begin("w1", entries)
    record = await storage.ledger.commit(record, entries[1:], [entries[0].key])
    with pytest.raises(ValueError, match=f"{MAX_CHANGES + 1} changes"):
        await storage.ledger.commit(record, [*entries, run("more")], [])


async def test_end_closes_more_entries_than_a_transaction_takes(storage: Storage) -> None:
    entries = [run(f"{number:03}") for number in range(150)]
    record = await storage.ledger.begin("w1", entries[:MAX_CHANGES])
    record = await storage.ledger.commit(record, entries[MAX_CHANGES:], [])
    await storage.ledger.end(record, [entry.key for entry in entries])
    assert await storage.ledger.entries("w1") == []


async def test_wipe_removes_everything_and_can_be_repeated(storage: Storage, driver: StorageDriver) -> None:
    for start in range(0, 230, 46):
        await driver.transact("workers", [Insert("w1", f"run-{start + n:03}", {"kind": "run"}) for n in range(46)])
    await storage.ledger.begin("w1", [])
    other = await storage.ledger.begin("w2", [run("a")])
    await storage.ledger.wipe("w1")
    assert await driver.query_entities("workers", partition_key="w1") == []
    assert storage.seam.counts["ledger.wipe"] == 3
    await storage.ledger.wipe("w1")
    await storage.ledger.commit(other, [], ["run-a"])


async def test_wipe_keeps_what_it_is_told_and_the_ledger_with_it(storage: Storage) -> None:
    await storage.ledger.mark_dead(await storage.ledger.begin("w1", [run("a"), run("b"), run("c")]))
    await storage.ledger.wipe("w1", keep=["run-b"])
    assert await storage.ledger.entries("w1") == [run("b")]
    assert (await storage.ledger.read("w1")).state == "dead"
    await storage.ledger.wipe("w1", keep=["run-b"])
    await storage.ledger.wipe("w1")
    assert await storage.driver.query_entities("workers", partition_key="w1") == []


async def test_what_fits_by_size_is_taken_by_the_service(storage: Storage) -> None:
    """As many as there can be, each as large as it can be."""
    entries = [LedgerEntry(f"run-{number:03}", "run", {"record": b"\xff" * 32_768}) for number in range(MAX_CHANGES)]
    count = fitting(entries)
    assert 16 <= count < MAX_CHANGES
    small = [run(f"small-{number:03}") for number in range(MAX_CHANGES - count)]
    record = await storage.ledger.begin("w1", small)
    await storage.ledger.commit(record, entries[:count], [entry.key for entry in small])
    assert len(await storage.ledger.entries("w1")) == count


def test_what_fits_goes_by_what_is_sent() -> None:
    small = [run(str(number)) for number in range(200)]
    assert fitting(small) == MAX_CHANGES
    assert fitting(small[:5]) == 5
    assert fitting([]) == 0
    text = LedgerEntry("run-a", "run", {"text": "\u20ac" * (MAX_OPENED_BYTES // 12)})
    assert fitting([text, text, text]) == 1
    huge = LedgerEntry("run-b", "run", {"record": b"x" * MAX_OPENED_BYTES})
    assert fitting([huge, huge]) == 1


async def test_wipe_deletes_the_worker_row_last(storage: Storage) -> None:
    record = await storage.ledger.begin("w1", [run(f"{number:03}") for number in range(MAX_CHANGES)])
    # Sorts behind "worker", so that order by key would not do.
    await storage.ledger.commit(record, [LedgerEntry("zombie", "run")], [])
    seen: list[bool] = []

    async def look(name: str, moment: str) -> None:
        if name == "ledger.wipe" and moment == "after":
            seen.append(bool(await storage.driver.query_entities("workers", partition_key="w1", row_key="worker")))

    storage.seam.hooks.append(look)
    await storage.ledger.wipe("w1")
    assert seen == [True, False]


async def test_adopters_can_wipe_one_ledger_at_once(storage: Storage, driver: StorageDriver) -> None:
    await storage.ledger.begin("w1", [run(str(number)) for number in range(50)])
    await asyncio.gather(*(storage.ledger.wipe("w1") for _ in range(5)))
    assert await driver.query_entities("workers", partition_key="w1") == []


async def test_stale_finds_ledgers_by_the_service_clock(account: Account) -> None:
    ledger = account.storage.ledger
    await ledger.begin("silent", [run("a")])
    await ledger.mark_dead(await ledger.begin("marked", []))
    alive = await ledger.begin("alive", [])

    async def later() -> WorkerRecord | None:
        nonlocal alive
        alive = await ledger.commit(alive, [], [])
        read, silent = await ledger.read("alive"), await ledger.read("marked")
        assert read.heartbeat is not None
        assert silent.heartbeat is not None
        return read if read.heartbeat > silent.heartbeat + timedelta(milliseconds=100) else None

    heartbeat = (await account.after(2, later)).heartbeat
    assert heartbeat is not None
    assert await ledger.stale(heartbeat - timedelta(milliseconds=10)) == ["marked", "silent"]


async def test_a_pulse_keeps_a_silent_ledger_from_being_stale(account: Account) -> None:
    ledger = account.storage.ledger
    await ledger.begin("silent", [run("a")])
    blocked = await ledger.begin("blocked", [run("a")])
    await ledger.mark_dead(await ledger.begin("marked", []))

    async def later() -> datetime | None:
        await asyncio.to_thread(ledger.pulse_blocking, "blocked")
        await asyncio.to_thread(ledger.pulse_blocking, "marked")
        pulse = (await account.storage.driver.get_entity("workers", "blocked", "pulse")).timestamp
        silent = (await ledger.read("marked")).heartbeat
        assert silent is not None
        return pulse if pulse > silent + timedelta(milliseconds=100) else None

    pulse = await account.after(2, later)
    assert await ledger.stale(pulse - timedelta(milliseconds=10)) == ["marked", "silent"]
    # It is no part of the fence.
    assert await ledger.entries("blocked") == [run("a")]
    await ledger.end(await ledger.commit(blocked, [], []), ["run-a"])
    assert await account.storage.driver.query_entities("workers", partition_key="blocked") == []


@pytest.mark.parametrize("ending", ["end", "wipe"])
async def test_a_pulse_that_comes_after_the_ledger_leaves_nothing(storage: Storage, ending: str) -> None:
    record = await storage.ledger.begin("w1", [])
    await (storage.ledger.end(record, []) if ending == "end" else storage.ledger.wipe("w1"))
    with pytest.raises(NotFound):
        await asyncio.to_thread(storage.ledger.pulse_blocking, "w1")
    assert await storage.driver.query_entities("workers", partition_key="w1") == []


async def test_service_time_is_the_clock_of_the_timestamps(account: Account) -> None:
    ledger = account.storage.ledger
    await ledger.begin("w1", [])
    heartbeat = (await ledger.read("w1")).heartbeat
    time = await ledger.service_time()
    assert heartbeat is not None
    assert abs(time - heartbeat) < timedelta(seconds=30)
    assert await ledger.stale(time - timedelta(seconds=60)) == []
    assert await ledger.stale(time + timedelta(seconds=60)) == ["w1"]
