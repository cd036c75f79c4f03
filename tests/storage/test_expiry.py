"""The index by which retention goes."""

import pytest

from storage.connection import Storage
from storage.expiry import MAX_RESPONSES, StoredResponse, hour_of

NOON = 1_795_435_200.0  # a full hour
HOUR = 3600.0


def responses(count: int, name: str = "resp") -> list[StoredResponse]:
    return [StoredResponse(f"tenant-{'p' * 18}", f"{name}_{number:050}") for number in range(count)]


async def test_what_was_noted_is_due_when_its_hour_is_over(storage: Storage) -> None:
    await storage.expiry.note(NOON + 10, responses(3))
    assert await storage.expiry.due(NOON + HOUR - 1, 10) == []
    (due,) = await storage.expiry.due(NOON + HOUR, 10)
    assert due.responses == tuple(responses(3))
    assert due.hour == hour_of(NOON)


async def test_a_key_is_noted_as_one_beside_responses(storage: Storage) -> None:
    noted = [StoredResponse("p", "resp_1"), StoredResponse("p", "resp_1", "hash of a key")]
    await storage.expiry.note(NOON, noted)
    (due,) = await storage.expiry.due(NOON + HOUR, 10)
    assert due.responses == tuple(noted)


async def test_the_oldest_hours_come_first_and_no_more_than_asked_for(storage: Storage) -> None:
    for hour in (3, 1, 2):
        await storage.expiry.note(NOON + hour * HOUR, responses(1, f"in{hour}"))
    due = await storage.expiry.due(NOON + 10 * HOUR, 2)
    assert [each.responses[0].id[:3] for each in due] == ["in1", "in2"]


async def test_a_line_that_is_done_is_gone_and_doing_it_again_is_fine(storage: Storage) -> None:
    await storage.expiry.note(NOON, responses(1))
    (due,) = await storage.expiry.due(NOON + HOUR, 10)
    await storage.expiry.done(due)
    await storage.expiry.done(due)
    assert await storage.expiry.due(NOON + HOUR, 10) == []


async def test_a_row_holds_as_many_responses_as_it_may(storage: Storage) -> None:
    await storage.expiry.note(NOON, responses(MAX_RESPONSES))
    (due,) = await storage.expiry.due(NOON + HOUR, 1)
    assert len(due.responses) == MAX_RESPONSES


@pytest.mark.parametrize(("time", "name"), [(0.0, "1970010100"), (NOON, "2026112312"), (NOON - 1, "2026112311")])
def test_an_hour_has_a_name_that_sorts(time: float, name: str) -> None:
    assert hour_of(time) == name
