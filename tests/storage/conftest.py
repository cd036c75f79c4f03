"""The same tests run against the twin in memory and against a real emulator."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from storage.clock import ManualClock
from storage.connection import Storage, StorageSettings, memory_storage, open_storage
from storage.driver import StorageDriver


@dataclass
class Account:
    """A storage account under test, and how time passes in it (`clock` is None where time is real)."""

    storage: Storage
    clock: ManualClock | None

    @property
    def driver(self) -> StorageDriver:
        return self.storage.driver

    async def after[T](self, seconds: float, check: Callable[[], Awaitable[T | None]], slack: float = 30.0) -> T:
        """What `check` gives, when `seconds` have passed or a little later."""
        if self.clock is not None:
            self.clock.advance(seconds)
            result = await check()
            assert result is not None
            return result
        deadline = time.monotonic() + seconds + slack
        while (result := await check()) is None:
            assert time.monotonic() < deadline, "it did not happen in time"
            await asyncio.sleep(0.1)
        return result


@pytest.fixture(params=["memory", "azurite"])
async def account(request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    if request.param == "memory":
        clock = ManualClock()
        opened = Account(memory_storage(clock), clock)
    else:
        environment = request.getfixturevalue("azurite_environment")
        # Blocking calls are impatient in production, for their worker's sake; here none is at stake.
        settings = replace(StorageSettings.from_environment(environment), blocking_timeout=60.0)
        opened = Account(open_storage(settings), None)
    try:
        yield opened
    finally:
        await opened.storage.aclose()


@pytest.fixture
def storage(account: Account) -> Storage:
    return account.storage


@pytest.fixture
def driver(account: Account) -> StorageDriver:
    return account.driver
