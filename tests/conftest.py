"""Fixtures that every layer of tests shares."""

import os
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import settings

from tests.support.azurite import AzuriteServer

# The suite judges a change, so it has to say the same twice; new examples are for the long targets with their seeds.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _environment_is_left_as_it_was() -> Iterator[None]:
    """A setting that a test leaves behind makes another server of those that later tests start."""
    before = dict(os.environ)
    yield
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    assert not changed - {"PYTEST_CURRENT_TEST"}


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
