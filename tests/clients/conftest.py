"""One server for the sessions of all clients: a real local host with the example agent and some more to judge.

`RESPONSES_TEST_URL` names a server that runs already, under whatever host, with that agent; then none is started.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx2
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from tests.clients.judge import Judge
from tests.resilience.conftest import pytest_runtest_makereport
from tests.support.servers import deployment

__all__ = ["pytest_runtest_makereport"]

AGENT = "tests.support.agents.versatile:app"
# The session must not leave this machine, whatever keys the environment holds.
NO_MODEL = {"OPENAI_API_KEY": "", "AZURE_OPENAI_API_KEY": ""}


@contextmanager
def served(request: pytest.FixtureRequest, agent: str) -> Iterator[str]:
    """The address of a server of that agent, without a path."""
    if running := os.environ.get("RESPONSES_TEST_URL"):
        yield running.rstrip("/")
        return
    with deployment(request.getfixturevalue("azurite"), agent=agent, **NO_MODEL) as made:
        made.start_blocking()
        yield made.hosts[0].base_url


@pytest.fixture(scope="session")
def clients_server(request: pytest.FixtureRequest) -> Iterator[str]:
    with served(request, AGENT) as address:
        yield address


@pytest.fixture
def base_url(clients_server: str) -> str:
    """What a client is configured with."""
    return f"{clients_server}/v1"


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    """The wire under a client; whatever a test does with the client, all that came over it was strictly right."""
    made = Judge()
    yield made
    made.check()


@pytest.fixture
async def http_client(judge: Judge) -> AsyncIterator[httpx2.AsyncClient]:
    """The client's own choice of settings, over that transport."""
    async with DefaultAsyncHttpxClient(transport=judge) as made:
        yield made


@pytest.fixture
def openai_client(base_url: str, http_client: httpx2.AsyncClient) -> AsyncOpenAI:
    """What the frameworks speak through."""
    return AsyncOpenAI(base_url=base_url, api_key="local", max_retries=0, http_client=http_client)
