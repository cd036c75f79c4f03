"""One server for the sessions of all clients: a real local host with the example agent and some more to judge."""

from collections.abc import AsyncIterator, Iterator

import pytest
from openai import AsyncOpenAI

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
async def transport(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    """The client that the frameworks below speak through."""
    async with AsyncOpenAI(base_url=base_url, api_key="local", max_retries=0) as made:
        yield made
