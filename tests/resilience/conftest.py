"""What all tests with processes need: time, and failures that show what the processes wrote."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.servers import account_of_all

LONGEST_SECONDS = 300
"""More than the deadlines of a test together: these say what is missing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this directory may last so long, unless it says otherwise."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONGEST_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The logs of the hosts that fixtures started, beside the message of a failed test."""
    report = yield
    if report.failed and (account := account_of_all()):
        report.sections.append(("hosts", account))
    return report
