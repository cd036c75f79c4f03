"""The line from a host to the emulator: what its weather does to calls, as a client without patience sees it."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from random import Random

import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.data.tables.aio import TableClient

from storage.connection import PREFIX_SETTING, SETTING
from tests.chaos.line import REFUSALS, Line, Weather
from tests.support.azurite import AzuriteServer

CALLS = 200
STORM = 0.2


@dataclass
class Inserts:
    """What a client was told of its inserts, and which of them are there."""

    done: set[str] = field(default_factory=set)
    refused: dict[str, int | None] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)
    there: set[str] = field(default_factory=set)

    async def one(self, table: TableClient, key: str) -> None:
        try:
            await table.create_entity({"PartitionKey": "p", "RowKey": key})
        except (ServiceRequestError, ServiceResponseError):
            self.unanswered.add(key)
        except HttpResponseError as error:
            self.refused[key] = error.status_code
        else:
            self.done.add(key)


@pytest.fixture
async def line(azurite: AzuriteServer) -> AsyncIterator[Line]:
    async with Line.before(azurite, Random(7)) as made:
        yield made


async def inserts(line: Line, environment: Mapping[str, str], weather: Weather, calls: int) -> Inserts:
    name = f"{environment[PREFIX_SETTING]}weather"
    seen = Inserts()
    text = line.through(environment[SETTING])
    # By POST: a PUT that got no answer is repeated below the storage client.
    async with TableClient.from_connection_string(text, name, retry_total=0) as table:
        await table.create_table()
        line.weather = weather
        for number in range(calls):
            await seen.one(table, f"{number:03}")
        line.weather = Weather()
        seen.there = {entity["RowKey"] async for entity in table.list_entities()}
    return seen


# The storage client's own way of looking at an error's body.
@pytest.mark.filterwarnings("ignore:Testing an element's truth value:DeprecationWarning")
async def test_a_storm_refuses_some_calls_and_loses_the_replies_of_others_that_were_carried_out(
    line: Line, azurite_environment: Mapping[str, str]
) -> None:
    seen = await inserts(line, azurite_environment, Weather(storm=STORM), CALLS)
    failed = len(seen.refused) + len(seen.unanswered)
    assert 0.6 * STORM < failed / CALLS < 1.4 * STORM
    assert set(seen.refused.values()) == set(REFUSALS) == {500, 503, 429}
    assert min(Counter(seen.refused.values()).values()) > 1
    assert len(seen.unanswered) > 5
    assert seen.there == seen.done | seen.unanswered, "refused means not done, a lost reply means done"
    assert line.failed == failed, "each is counted once"


async def test_a_partition_lets_nothing_through(line: Line, azurite_environment: Mapping[str, str]) -> None:
    seen = await inserts(line, azurite_environment, Weather(partitioned=True), 5)
    assert len(seen.unanswered) == 5
    assert not seen.there


async def test_a_clear_sky_lets_everything_through(line: Line, azurite_environment: Mapping[str, str]) -> None:
    seen = await inserts(line, azurite_environment, Weather(), 5)
    assert seen.there == seen.done == {f"{number:03}" for number in range(5)}
    assert line.failed == 0
