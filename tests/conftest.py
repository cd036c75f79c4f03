"""Fixtures that every layer of tests shares."""

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import settings

from tests.support.azurite import AzuriteServer

# The suite judges a change, so it has to say the same twice; new examples are for the long targets with their seeds.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzuriteServer]:
    """A storage emulator for the whole session (one for each xdist worker)."""
    server = AzuriteServer.start(None)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def azurite_environment(azurite: AzuriteServer) -> Iterator[Mapping[str, str]]:
    """Settings for one test: the shared emulator, names of its own, removed afterwards."""
    with azurite.namespace() as environment:
        yield environment
