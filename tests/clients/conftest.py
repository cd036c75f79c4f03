"""One server for the sessions of all clients: a real local host with the example agent and some more to judge."""

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from tests.clients.judge import Judge
from tests.support.azurite import AzuriteServer
from tests.support.servers import Deployment, deployment

AGENT = "tests.support.agents.versatile:app"
# The session must not leave this machine, whatever keys the environment holds.
NO_MODEL = {"OPENAI_API_KEY": "", "AZURE_OPENAI_API_KEY": ""}


@pytest.fixture(scope="session")
def clients_deployment(azurite: AzuriteServer) -> Iterator[Deployment]:
    with deployment(azurite, agent=AGENT, **NO_MODEL) as made:
        made.start_blocking()
        yield made


@pytest.fixture
def base_url(clients_deployment: Deployment) -> str:
    """What a client is configured with."""
    return f"{clients_deployment.hosts[0].base_url}/v1"


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
