"""The tests of this layer talk HTTP to a server that plays what its test gives it; every answer is judged."""

from tests.support.virtual_time import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]
