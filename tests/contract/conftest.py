"""The tests of this layer talk HTTP to a server that plays what its test gives it; every answer is judged."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.api_server import ApiServer, serving
from tests.support.virtual_time import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server() -> AsyncIterator[ApiServer]:
    async with serving() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def server(shared_server: ApiServer) -> AsyncIterator[ApiServer]:
    """One server for a whole module; it says what it was told. Its `runs` are those of this test."""
    shared_server.runs.clear()
    yield shared_server
    shared_server.judge.check()
