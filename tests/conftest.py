"""Fixtures that every layer of tests shares."""

import os
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from tests.support.azurite import AzuriteServer

NO_CONSTANTS = Constants()

# The suite judges a change, so it has to say the same twice; new examples are for the long targets with their seeds.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")
# Hypothesis mixes constants into its examples that it finds in whatever modules of the project are imported by then,
# `derandomize` or not: which files a worker got, and in what order, would choose the examples of the next one.
vars(providers)["_get_local_constants"] = lambda: NO_CONSTANTS


LONGEST_FIRST = ("resilience", "samples", "chaos", "clients", "integration", "contract", "storage", "model", "unit")
"""Files of few tests that wait for processes to die come first, so that no worker is left with them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files in the order of their directories; xdist hands them out in this order."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.parent.name, len(place)))


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
